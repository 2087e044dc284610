"""How commands end: exit codes, and errors as one sentence with a hint instead of a traceback."""

import contextlib
import io
import json
import os
import sys
from importlib import import_module
from typing import Any, ClassVar

import click
import psycopg

from ..errors import TaskyardError, from_database
from ..postgres import PostgresError

FAILED = 1
USAGE = 2
REFUSED = 3
UNREACHABLE = 4
TIMED_OUT = 5
CANCELLED = 6
INTERRUPTED = 130
PIPE_CLOSED = 141

EPILOG = f"""\b
Exit codes:
  0    ok
  {FAILED}    the task failed, or a check did
  {USAGE}    the command line is wrong
  {REFUSED}    the yard refused, or has no such task
  {UNREACHABLE}    the database cannot be reached
  {TIMED_OUT}    wait ran into its --timeout
  {CANCELLED}    the task was cancelled
  {INTERRUPTED}  interrupted (Ctrl-C)
  {PIPE_CLOSED}  the reader of the output went away
"""

NOT_INSTALLED = (
    psycopg.errors.UndefinedTable
    | psycopg.errors.UndefinedFunction
    | psycopg.errors.UndefinedColumn
    | psycopg.errors.InvalidSchemaName
)


class Unreachable(TaskyardError):
    """There is no database to talk to."""


def explain(error: TaskyardError | PostgresError | psycopg.Error | OSError) -> tuple[TaskyardError, int]:
    """The sentence for a person, and the exit code."""
    if isinstance(error, Unreachable):
        return error, UNREACHABLE
    if isinstance(error, TaskyardError):
        return error, REFUSED
    if isinstance(error, PostgresError):
        return TaskyardError(error.message, error.hint), UNREACHABLE
    if isinstance(error, psycopg.Error):
        return _explain_database(error)
    where = f" ({error.filename})" if error.filename else ""
    return TaskyardError(f"{error.strerror or error}{where}."), FAILED


def _explain_database(error: psycopg.Error) -> tuple[TaskyardError, int]:
    told = from_database(error)
    if is_lost(error):
        return Unreachable(told.message, told.hint or "The connection was lost.", told.code), UNREACHABLE
    if isinstance(error, NOT_INSTALLED):
        message = "This database has no Taskyard, or one of another version."
        return TaskyardError(message, "Run: taskyard install", told.code), REFUSED
    return told, REFUSED


def is_lost(error: Exception) -> bool:
    """Whether the connection is gone, or could not be made: trying again later may help."""
    if isinstance(error, Unreachable):
        return True
    # Class 08 is about connections, 57P01 to 57P05 end or refuse sessions; libpq itself gives no code.
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and (
        error.sqlstate is None or error.sqlstate.startswith(("08", "57P"))
    )


def report(error: TaskyardError, as_json: bool) -> None:
    """Print it on standard error."""
    if as_json:
        said = {"error": error.message, "hint": error.hint, "code": error.code}
        click.echo(json.dumps(said, ensure_ascii=False), err=True)
        return
    click.echo(f"{click.style('error:', fg='red')} {error.message}", err=True)
    if error.hint:
        click.echo(error.hint, err=True)


class Commands(click.Group):
    """The outermost group: whatever goes wrong within is told here, once.

    `places` says by a command's name where it is (module.attribute): only the one that was asked for is loaded, which
    halves the time to start.
    """

    places: ClassVar[dict[str, str]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.places:
            return None
        module, _, name = self.places[cmd_name].rpartition(".")
        return getattr(import_module(f"{__package__}.{module}"), name)

    def invoke(self, ctx: click.Context) -> Any:
        """Raises click's Exit with the exit code."""
        for stream in (sys.stdout, sys.stderr):
            # A terminal that cannot show a character shows a question mark.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except click.Abort as abort:
            # Of click.prompt: an interrupt, or the end of the input.
            ctx.exit(INTERRUPTED if isinstance(abort.__context__, KeyboardInterrupt) else FAILED)
        except BrokenPipeError:
            # Python flushes standard output once more at its end, and would complain then.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(PIPE_CLOSED)
        except click.UsageError as error:
            if not _wants_json(ctx):
                raise
            report(TaskyardError(error.format_message()), as_json=True)
            ctx.exit(USAGE)
        except (TaskyardError, PostgresError, psycopg.Error, OSError) as error:
            told, code = explain(error)
            report(told, _wants_json(ctx))
            ctx.exit(code)


def _wants_json(context: click.Context) -> bool:
    return getattr(context.obj, "json", False)  # there is no State yet where the first option is wrong
