# SPDX-License-Identifier: Apache-2.0
"""The command tree, lazily: a noun's module is imported when a command of it is run."""

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from pmuctl import __version__

NOUNS = {
    "pmu": "The CPU performance monitors of this host.",
    "vm": "VMs with a control socket: their PMU, counters and event filter.",
}
"""The nouns, each a module of this package with an `app`, and what `--help` says of it."""


class Command(TyperCommand):
    """A leaf command, whose usage line writes arguments as the manual pages do."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line's words, `VM` where typer would write `{VM}`."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class LazyGroup(TyperGroup):
    """The root group: it names the nouns from a table and imports the one that is used."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.commands: Any = dict.fromkeys(NOUNS)  # for "Did you mean …?"

    def list_commands(self, ctx: Any) -> list[str]:
        """The nouns, in the order of the table."""
        return list(NOUNS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The group of a noun, or None."""
        if cmd_name not in NOUNS:
            return None
        return typer.main.get_command(import_module(f"pmuctl.cli.{cmd_name}").app)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list in `--help`, from the table: nothing is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl(list(NOUNS.items()))


def make_app(help: str | None = None, cls: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """A Typer app as all of pmuctl's are."""
    return typer.Typer(
        cls=cls,
        help=help,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def _print_version(value: Any) -> None:
    if value:
        typer.echo(f"pmuctl {__version__}")
        raise typer.Exit


def root() -> Any:
    """The command tree's root."""
    app = make_app(cls=LazyGroup)

    @app.callback(
        epilog="Exit status: 0 done, 1 no, 2 usage, 3 unreachable, 4 not found, 5 sealed, "
        "6 permission, 7 unsupported, 9 refused, 10 outcome unknown, 70 bug, 74 output."
    )
    def pmuctl(
        *,
        version: Annotated[
            bool,
            typer.Option(
                "--version", callback=_print_version, is_eager=True, help="Print it and exit."
            ),
        ] = False,
    ) -> None:
        """Choose the PMU, the counters and the event filter of KVM guests on arm64 hosts."""

    return typer.main.get_command(app)
