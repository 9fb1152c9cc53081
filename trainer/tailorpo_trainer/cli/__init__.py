"""The command line. Nothing large is imported before a command runs, so that `--help` and completion are instant."""

import os
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click

from tailorpo_trainer import terminal
from tailorpo_trainer.cli import checkpoints, completion, error_exit, results, run, streams, validate

PROGRAM = "tailorpo"
COMPLETE = "_TAILORPO_COMPLETE"
"""Variable that the shell's completion script sets when it asks for completions."""
OPERATOR = "tailorpo_operator"


class Formatter(click.HelpFormatter):
    """Help whose column of options leaves room for their texts on a narrow terminal too."""

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        super().write_dl(rows, 8 if self.width < 50 else col_max, col_spacing)


class Context(click.Context):
    formatter_class = Formatter


class Program(click.Group):
    """The trainer's and the operator's commands. The operator's package imports this one, so it is imported late."""

    context_class = Context

    @cached_property
    def operator_commands(self) -> dict[str, click.Command]:
        """The commands of the operator, where it is installed."""
        commands = import_module(f"{OPERATOR}.cli").COMMANDS if find_spec(OPERATOR) else ()
        return {command.name: command for command in commands}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.operator_commands])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name) or self.operator_commands.get(cmd_name)
        for command in (found, *getattr(found, "commands", {}).values()):
            if command is not None:
                command.context_class = Context
        return found


@click.group(
    name=PROGRAM,
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit status: 0 done, 2 wrong use, 65 bad data, 69 a service is gone, 70 a bug, 71 out of memory "
    "or disk, 75 stopped after a checkpoint, 76 not finite, 78 wrong document, 130 interrupted.",
)
@click.version_option(package_name=PROGRAM, prog_name=PROGRAM, message="%(prog)s %(version)s")
def app() -> None:
    """Align text-to-image diffusion models with a preference, from one YAML file."""


app.add_command(run.run)
app.add_command(validate.validate)
for command in (results.sample, results.evaluate, results.report, results.compare, results.estimate):
    app.add_command(command)
app.add_command(checkpoints.checkpoints)
app.add_command(completion.completion)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status, and prints why if that is not 0."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    state = run.RunState()
    streams.prepare()
    error_exit.note_interrupts()
    try:
        instruction = os.environ.get(COMPLETE)
        if instruction:
            from click.shell_completion import shell_complete

            return shell_complete(app, {}, PROGRAM, COMPLETE, instruction)
        return _invoke(arguments, state)
    except BaseException as error:
        status = error_exit.show(error)
        if arguments[:1] == [run.run.name]:
            error_exit.report_end(error, status, state.reporter)
        return status


def _invoke(arguments: list[str], state: run.RunState) -> int:
    # click wraps its help at 50 columns or more.
    columns = terminal.width(sys.stdout)
    narrow: dict[str, Any] = {"terminal_width": columns - 2} if columns is not None and columns < 52 else {}
    # `app.main()` would treat any EOFError or broken socket of a training run as an abort by the user.
    try:
        with app.make_context(PROGRAM, arguments, obj=state, **narrow) as context:
            app.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        sys.stdout.flush()
        return end.exit_code
    return 0
