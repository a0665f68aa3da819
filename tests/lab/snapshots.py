# SPDX-License-Identifier: Apache-2.0
"""Trees that `host snapshot` has written in the lab, read on this machine."""

import io
import json
from pathlib import Path
from typing import Any

from pmuctl.cli.context import Context
from pmuctl.cli.main import main
from pmuctl.host.host import Host
from pmuctl.render.streams import guarded


def here(root: Path, *words: str, status: int = 0) -> Any:
    """What pmuctl says on this machine of a captured tree, as JSON."""
    out, err = io.StringIO(), io.StringIO()
    env = Context(stdout=guarded(out), stderr=err, host=Host(environ={}, uid=0))
    assert main([*words, "-J", "--sysroot", str(root)], env) == status, err.getvalue()
    return json.loads(out.getvalue())
