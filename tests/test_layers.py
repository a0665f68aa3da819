# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, read from the syntax tree: data flows one way, downwards."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = "__main__ cli render manage launch conformance control host model uapi".split()
"""From the top: a room imports from the rooms below it, and from itself."""

REST = "*"
"""All modules of a room that have no floor of their own."""

FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "cli": (("entry", "completion"), ("tab",), (REST,)),
    "manage": (("settings", "diagnosis"), ("affinity", "start", "snapshot"), ("inventory", REST)),
    "launch": (("__main__",), ("serve",), (REST,), ("trace",), ("spec", "ioctls", "failures")),
    "control": (("server", "client"), (REST, "runtime"), ("protocol",)),
}
"""Inside a room, from the top: a module or folder imports from its floor and from those below it;
two folders of one floor do not import each other."""

FOR_ALL = ("errors", "schema", "value")
THIRD_PARTY = {"typer": {"cli"}, "rich": {"render"}, "pyudev": {"host"}}
"""The one room that knows each library."""

# values and rules read nothing
FORBIDDEN = {"model": {"os", "subprocess", "socket", "pathlib", "threading", "time"}}


def modules() -> list[Path]:
    return sorted((ROOT / "pmuctl").rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "pmuctl").parts
    return parts[0] if len(parts) > 1 else parts[0].removesuffix(".py")


def modules_of_tests() -> list[Path]:
    return sorted((ROOT / "tests").rglob("*.py"))


def check(path: Path) -> Iterator[str]:
    its = room(path)
    for line, name in imports(path):
        top, _, rest = name.partition(".")
        if top == "pmuctl":
            other = rest.partition(".")[0]
            if other in (*FOR_ALL, "__version__"):
                continue
            if its not in LAYERS or other not in LAYERS:
                yield f"{path}:{line}: {its} imports {name}"
            elif LAYERS.index(other) < LAYERS.index(its):
                yield f"{path}:{line}: {its} imports upwards: {name}"
        elif top in FORBIDDEN.get(its, ()):
            yield f"{path}:{line}: {its} imports {top}"
        elif top not in sys.stdlib_module_names and its not in THIRD_PARTY.get(top, ()):
            yield f"{path}:{line}: {its} imports {top}"


def check_test(path: Path) -> Iterator[str]:
    for line, name in imports(path):
        top, *rest = name.split(".")
        if top == "tests" and any(word.startswith("test_") for word in rest):
            yield f"{path}:{line}: imports {name}"


def find_floor(place: str, name: str) -> int:
    named = [number for number, names in enumerate(FLOORS[place]) if name in names]
    return named[0] if named else find_floor(place, REST)


def check_floors(path: Path) -> Iterator[str]:
    parts = path.relative_to(ROOT / "pmuctl").with_suffix("").parts
    if len(parts) < 2 or parts[0] not in FLOORS or parts[1] == "__init__":
        return
    place, own = parts[:2]
    for line, name in imports(path):
        other = name.split(".")[1:]
        if name.split(".")[0] != "pmuctl" or other[0] != place or other[1] == own:
            continue
        are_folders = all((ROOT / "pmuctl" / place / part).is_dir() for part in (own, other[1]))
        distance = find_floor(place, other[1]) - find_floor(place, own)
        if distance < 0 or (are_folders and distance == 0):
            yield f"{path}:{line}: {place}/{own} imports {name}"


def test_every_import_goes_downwards() -> None:
    assert [fault for path in modules() for fault in check(path)] == []
    assert [fault for path in modules() for fault in check_floors(path)] == []


def test_what_answers_tab_loads_nothing_else_of_cli() -> None:
    names = {name for _, name in imports(ROOT / "pmuctl/cli/tab/candidates.py")}
    assert [name for name in names if name.startswith("pmuctl.cli")] == []
    users = {
        path.stem
        for path in ROOT.glob("pmuctl/cli/*.py")
        if any(name.startswith("pmuctl.cli.tab") for _, name in imports(path))
    }
    assert users == {"entry", "completion"}


def test_no_folder_is_a_hall() -> None:
    folders = {path.parent for path in modules()}
    sizes = {folder: len(list(folder.glob("[!_]*.py"))) for folder in folders}
    assert {str(folder): size for folder, size in sizes.items() if size > 20} == {}
    assert [path for path in modules() if path.with_suffix("").is_dir()] == []


def test_no_import_circle() -> None:
    """Also none inside a function, but for those that are TYPE_CHECKING's alone."""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in modules()
    }

    def find_imported(path: Path) -> set[str]:
        found = {name for _, name in imports(path)}
        found |= {name.rpartition(".")[0] for name in found}
        return found & names.keys()

    graph = {name: find_imported(path) - {name} for name, path in names.items()}
    while leaves := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert graph == {}


def test_the_rule_finds_what_it_forbids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that cannot fail would be no check."""
    bad = {
        "pmuctl/model/x.py": "import os\nfrom pmuctl.host.sysfs import Sysfs\n",
        "pmuctl/host/y.py": "import rich\nimport typer\n",
        "pmuctl/control/z.py": "from pmuctl.cli import context\n",
        "pmuctl/manage/inventory/w.py": "from pmuctl.manage.affinity.assess import assess\n",
        "pmuctl/manage/start/v.py": "from pmuctl.manage.affinity.assess import assess\n",
        "pmuctl/manage/affinity/assess.py": "",
    }
    for name, text in bad.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    faults = [fault for path in modules() for fault in check(path)]
    assert len(faults) == 5
    assert len([fault for path in modules() for fault in check_floors(path)]) == 2


def test_no_test_module_imports_another() -> None:
    """What two share is in tests/fakes, in a module beside them, or in a conftest.py."""
    assert [fault for path in modules_of_tests() for fault in check_test(path)] == []


def test_an_import_of_a_test_module_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(
        "import tests.cli.test_a\nfrom tests.cli import test_b\n"
        "from tests.cli.test_c import D\nfrom tests.fakes.vmm import FakeVm\n"
    )
    assert len([*check_test(tmp_path / "test_x.py")]) == 3


def test_modules_stay_small() -> None:
    """Over 400 lines a file wants to be two rooms."""
    sizes = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in modules()}
    assert [f"{path}: {size}" for path, size in sizes.items() if size > 400] == []


def test_the_house_is_told_room_by_room() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([a-z]+)/` \|", text, re.MULTILINE)
    there = {path.parent.name for path in ROOT.glob("pmuctl/*/__init__.py")}
    assert told == [*(its for its in LAYERS if its in there), "data"]
    assert {*told} == there
