# SPDX-License-Identifier: Apache-2.0
"""The command tree, lazily: a noun's module is imported when a command of it is run."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from pmuctl import __version__
from pmuctl.cli.options import Options
from pmuctl.value import field_defaults

NOUNS = {
    "host": "This machine: its kernel, its KVM, its CPUs.",
    "pmu": "The CPU performance monitors of this host.",
    "vm": "The VMs of this host: their PMU, counters and event filter.",
    "affinity": "The CPUs that vCPU threads may be on, held against their PMU.",
}
"""Nouns are groups of verbs: each a module of this package with an `app`."""

VERBS: dict[str, str] = {
    "completion": "Print the TAB completion of a shell, as a script.",
    "conformance": "Check whether a VMM's control socket keeps to the protocol.",
    "doctor": "Find what is wrong with this host and its VMs, and what mends it.",
    "monitor": "Tell what changes on this host, as it happens.",
    "run": "Start an unmodified VMM with its PMU and its event filter.",
}
"""Verbs without a noun: each a module of this package whose `app` has that one command."""

CONTEXT: Mapping[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}
"""The settings of every command's parser."""


class Command(TyperCommand):
    """A leaf command, whose usage line writes arguments as the manual pages do."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line's words, `VM` where typer would write `{VM}`."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class LazyGroup(TyperGroup):
    """The root group: it names its commands from a table and imports the one that is used."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.commands: Any = dict.fromkeys((*NOUNS, *VERBS))  # for "Did you mean …?"

    def list_commands(self, ctx: Any) -> list[str]:
        """The nouns, then the verbs, in the order of their tables."""
        return [*NOUNS, *VERBS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The group of a noun or the command of a verb; None for any other word."""
        if cmd_name not in NOUNS and cmd_name not in VERBS:
            return None
        return typer.main.get_command(import_module(f"pmuctl.cli.{cmd_name}").app)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list in `--help`, from the tables: nothing is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([*NOUNS.items(), *VERBS.items()])


def make_app(help: str | None = None, cls: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """A Typer app as all of pmuctl's are."""
    return typer.Typer(
        cls=cls,
        help=help,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=dict(CONTEXT),
    )


def make_noun(name: str) -> typer.Typer:
    """The app of a noun: a group, also of a single verb."""
    app = make_app(NOUNS[name])
    app.callback()(lambda: None)
    return app


Handler = Callable[..., int | None]
"""What carries out a command: it returns an exit status that is no error's, or None for 0."""


def command(
    app: typer.Typer,
    name: str,
    *groups: Sequence[str],
    parsing: Mapping[str, Any] | None = None,
) -> Callable[[Handler], Handler]:
    """Declare a handler as the command `name` that takes these groups of shared options.

    The handler gets a Context with the options first, then its own parameters.
    `parsing` are settings of the parser that differ from those of all commands.
    """
    settings = {**CONTEXT, **parsing} if parsing else None
    hints = get_type_hints(Options, include_extras=True)
    defaults = field_defaults(Options)
    names = [its for group in groups for its in group]

    def declare(handler: Handler) -> Handler:
        own = list(inspect.signature(handler).parameters.values())[1:]
        shared = [
            inspect.Parameter(
                its, inspect.Parameter.KEYWORD_ONLY, default=defaults[its], annotation=hints[its]
            )
            for its in names
        ]
        typer_context = inspect.Parameter(
            "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )

        def run(ctx: typer.Context, **given: Any) -> int | None:
            options = Options(**{its: given.pop(its) for its in names})
            path = ctx.command_path.partition(" ")[2]
            return handler(ctx.obj.for_command(path, options), **given)

        parameters = [typer_context, *own, *shared]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {its.name: its.annotation for its in parameters}
        run.__doc__ = handler.__doc__
        app.command(name, cls=Command, context_settings=settings)(run)
        return handler

    return declare


def _print_version(value: Any) -> None:
    if value:
        typer.echo(f"pmuctl {__version__}")
        raise typer.Exit


def root() -> Any:
    """The command tree's root."""
    app = make_app(cls=LazyGroup)

    @app.callback(
        help="Choose the PMU, the counters and the event filter of KVM guests on arm64 hosts.",
        epilog="Exit status: 0 done, 1 no, 2 usage, 3 unreachable, 4 not found, 5 sealed, "
        "6 permission, 7 unsupported, 9 refused, 10 outcome unknown, 64 partly done, 70 bug, "
        "74 output, 125 ended by run, 126 not executable, 127 no command, 130 interrupted, "
        "141 closed pipe, 143 terminated.",
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
