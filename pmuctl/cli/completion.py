# SPDX-License-Identifier: Apache-2.0
"""pmuctl completion: shell completion scripts."""

from typing import Annotated

import typer

from pmuctl.cli.app import VERBS, command, make_app
from pmuctl.cli.context import Context
from pmuctl.cli.tab.scripts import Shell, write_script

app = make_app(VERBS["completion"])


@command(app, "completion")
def completion(
    context: Context,
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="Shell: bash, zsh or fish.")],
) -> None:
    """Print a shell completion script.

    Packages install these scripts where the shells look for them. Otherwise write the output to
    ~/.local/share/bash-completion/completions/pmuctl for bash, to a file _pmuctl in a directory of
    $fpath for zsh, or to ~/.config/fish/completions/pmuctl.fish for fish.
    """
    from pmuctl.cli.tab.command_tree import read_tree

    context.stdout.write(write_script(shell, read_tree()))
    context.stdout.flush()
