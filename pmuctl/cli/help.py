# SPDX-License-Identifier: Apache-2.0
"""pmuctl help: the help of a command, as its --help prints it."""

from typing import Annotated

import typer

from pmuctl.cli.app import VERBS, command, make_app, root
from pmuctl.cli.command_line import find_commands
from pmuctl.cli.context import Context
from pmuctl.cli.near_misses.commands import check_command
from pmuctl.errors import UsageError

app = make_app(VERBS["help"])


@command(app, "help")
def show_help(
    context: Context,
    noun: Annotated[
        str | None, typer.Argument(metavar="[COMMAND]", help="Command, or noun of commands.")
    ] = None,
    verb: Annotated[str | None, typer.Argument(metavar="[VERB]", help="Verb of the noun.")] = None,
) -> None:
    """Show the help of a command."""
    tree = root()
    words = [word for word in (noun, verb) if word is not None]
    for depth, word in enumerate(words):
        path = " ".join(words[:depth])
        if word not in find_commands(tree, path):
            check_command(tree, path, words[depth:], prefix=("help",))
            group = f"pmuctl {path}".strip()
            raise UsageError(f"{word}: not a command of {group}", fix=f"{group} --help")
    tree.main(
        args=[*words, "--help"],
        prog_name="pmuctl",
        standalone_mode=False,
        obj=context,
        complete_var="",
    )
