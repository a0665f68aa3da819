# SPDX-License-Identifier: Apache-2.0
"""The command tree, loaded lazily: the module of a command is imported when it is used."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cache, partial
from importlib import import_module
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from pmuctl import __version__
from pmuctl.cli.options import Options
from pmuctl.value import field_defaults

NOUNS = {
    "host": "Show or capture this host.",
    "pmu": "List and show the CPU PMUs of this host.",
    "vm": "List VMs; set their PMU, counters, affinity and event filter.",
    "affinity": "Set, align and check the CPU affinity of vCPU threads.",
}
"""Noun → its help. A noun is a group of verbs: a module of this package with an `app`."""

VERBS: dict[str, str] = {
    "completion": "Print a shell completion script.",
    "conformance": "Test whether a VMM's control socket follows the protocol.",
    "doctor": "Find problems of this host and its VMs, and print the fixes.",
    "help": "Show the help of a command.",
    "monitor": "Print changes on this host as they happen.",
    "run": "Start an unmodified VMM with a PMU and an event filter.",
}
"""Verb without a noun → its help: a module of this package whose `app` has that one command."""

CONTEXT: Mapping[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}
"""The settings of every command's parser."""


class Command(TyperCommand):
    """A leaf command with a usage line in the style of the manual pages."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line, with `VM` instead of typer's `{VM}`."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write what the command takes, its columns, two examples and its manual page."""
        # imported here, because only --help needs it
        from pmuctl.cli.help_page import write_more, write_options

        write_options(self.get_params(ctx), ctx, formatter)
        write_more(ctx.command_path.partition(" ")[2], formatter)


class LazyGroup(TyperGroup):
    """A group that builds the parser of a command when it is used, and of no other."""

    apps: "Mapping[str, Callable[[], typer.Typer | Noun]]"
    """Name of a command → function that returns its app."""
    commands: Any
    """Name of a command → its parser, None before that was built."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the parser of a command or of a group of commands, None for any other word."""
        if cmd_name not in self.apps:
            return None
        if self.commands[cmd_name] is None:
            self.commands[cmd_name] = _build_parser(self.apps[cmd_name]())
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the first word names; raise UsageError if it is none."""
        if args[0] not in self.apps and not args[0].startswith("-"):
            # imported here, because only wrong words need it
            from pmuctl.cli.near_misses.commands import check_command

            check_command(root(), ctx.command_path.partition(" ")[2], args)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands in `--help`, each with the whole first line of its help."""
        commands = {name: self.get_command(ctx, name) for name in self.apps}
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, (verb.help or "").partition("\n")[0]) for name, verb in commands.items()]
            )


class RootGroup(LazyGroup):
    """The root group, which lists its commands from the tables and imports only the one used."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands in `--help` from the tables, importing no command."""
        with formatter.section("Commands"):
            formatter.write_dl([*NOUNS.items(), *VERBS.items()])


class Noun:
    """A group of verbs, each an app of its own, because building a parser takes a while."""

    def __init__(self, help: str) -> None:
        self.help = help
        self.verbs: dict[str, typer.Typer] = {}

    def add_verb(self, name: str) -> typer.Typer:
        """Return the app of a new verb."""
        assert name not in self.verbs
        self.verbs[name] = make_app()
        return self.verbs[name]

    def make_group(self) -> LazyGroup:
        """Return the group of the verbs."""
        group = make_app(self.help, cls=LazyGroup)
        group.callback()(lambda: None)
        return _make_group(
            group, {name: partial(self.verbs.__getitem__, name) for name in self.verbs}
        )


def _build_parser(app: typer.Typer | Noun) -> Any:
    return app.make_group() if isinstance(app, Noun) else typer.main.get_command(app)


def _make_group(app: typer.Typer, apps: Mapping[str, Any]) -> LazyGroup:
    group = typer.main.get_command(app)
    assert isinstance(group, LazyGroup)
    group.apps = apps
    group.commands = dict.fromkeys(apps)
    return group


def make_app(help: str | None = None, cls: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """Return a Typer app with the settings that all apps of pmuctl share."""
    return typer.Typer(
        cls=cls,
        help=help,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=dict(CONTEXT),
    )


Handler = Callable[..., int | None]
"""The function of a command. It returns an exit status, or None for 0; errors are raised."""


def command(
    app: typer.Typer | Noun,
    name: str,
    *groups: Sequence[str],
    parsing: Mapping[str, Any] | None = None,
    helps: Mapping[str, str] | None = None,
) -> Callable[[Handler], Handler]:
    """Return a decorator that adds a handler to `app` as the command `name`.

    `groups` are the groups of shared options that the command accepts. The handler's first
    parameter is the Context, which has these options; its own parameters follow. `parsing`
    overrides parser settings of CONTEXT, `helps` the help of shared options.
    """
    settings = {**CONTEXT, **parsing} if parsing else None
    hints = get_type_hints(Options, include_extras=True)
    defaults = field_defaults(Options)
    names = [name for group in groups for name in group]
    hints |= {option: _with_help(hints[option], help) for option, help in (helps or {}).items()}

    def declare(handler: Handler) -> Handler:
        own = list(inspect.signature(handler).parameters.values())[1:]
        shared = [
            inspect.Parameter(
                option,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults[option],
                annotation=hints[option],
            )
            for option in names
        ]
        typer_context = inspect.Parameter(
            "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )

        def run(ctx: typer.Context, **given: Any) -> int | None:
            options = Options(**{option: given.pop(option) for option in names})
            path = ctx.command_path.partition(" ")[2]
            return handler(ctx.obj.for_command(path, options), **given)

        parameters = [typer_context, *own, *shared]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__ = handler.__doc__
        verb = app.add_verb(name) if isinstance(app, Noun) else app
        verb.command(name, cls=Command, context_settings=settings)(run)
        return handler

    return declare


def _with_help(annotation: Any, help: str) -> Any:
    """Return the annotation of an option with another help."""
    declaration = copy(annotation.__metadata__[0])
    declaration.help = help
    return Annotated[annotation.__origin__, declaration]


def _print_version(value: Any) -> None:
    if value:
        typer.echo(f"pmuctl {__version__}")
        raise typer.Exit


@cache
def root() -> LazyGroup:
    """Return the root of the command tree: one for all command lines of a process."""
    app = make_app(cls=RootGroup)

    @app.callback(
        help="Choose the PMU, the counters and the event filter of KVM guests on arm64.",
        epilog="Exit status: 0 success, 1 negative answer, 2 usage, 3 unreachable, "
        "4 not found, 5 sealed, 6 denied, 7 unsupported, 9 refused, 10 unknown outcome, "
        "64 partial success, 70 bug, 74 output error, 125 VMM ended, 126 not executable, "
        "127 not found, 130 interrupted, 141 closed pipe, 143 terminated.",
    )
    def pmuctl(
        *,
        version: Annotated[
            bool,
            typer.Option(
                "--version",
                callback=_print_version,
                is_eager=True,
                help="Show the version and exit.",
            ),
        ] = False,
    ) -> None:
        """Choose the PMU, the counters and the event filter of KVM guests on arm64 hosts."""

    return _make_group(app, {name: partial(_import_app, name) for name in (*NOUNS, *VERBS)})


def _import_app(name: str) -> typer.Typer | Noun:
    app: typer.Typer | Noun = import_module(f"pmuctl.cli.{name}").app
    return app
