"""Options and argument types that several commands share."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import click

from ..connection import Database, Yard, find_database, open_yard
from ..errors import TaskyardError
from ..logs import FORMATS
from .failures import Unreachable

F = TypeVar("F", bound=Callable[..., Any])


def log_option(command: F) -> F:
    """--log-format, of the commands that go on until Ctrl-C."""
    return click.option(
        "--log-format",
        envvar="TASKYARD_LOG_FORMAT",
        type=click.Choice(FORMATS),
        default="text",
        show_default=True,
        help="One line, or one JSON object, for each event.",
    )(command)


UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


@dataclass
class State:
    """What was said for all commands: which database, and whether a program reads the answers."""

    dsn: str | None = None
    json: bool = False

    def database(self) -> Database:
        """Which database is meant. Raises Unreachable where nothing names one."""
        try:
            return find_database(self.dsn)
        except TaskyardError as error:
            raise Unreachable(error.message, error.hint, error.code) from error

    def connect(self, database: Database | None = None) -> Yard:
        """A connection. Raises Unreachable."""
        try:
            return open_yard((database or self.database()).dsn)
        except TaskyardError as error:
            raise Unreachable(error.message, error.hint, error.code) from error


def _keep_dsn(context: click.Context, _: click.Parameter, given: str | None) -> None:
    if given is not None:
        context.ensure_object(State).dsn = given


def _keep_json(context: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        context.ensure_object(State).json = True


def dsn_option(command: F) -> F:
    """--dsn, before or after the name of the command."""
    return click.option(
        "--dsn", metavar="DSN", expose_value=False, callback=_keep_dsn, help="Connection string or URL of the database."
    )(command)


def json_option(command: F) -> F:
    """--json, with --dsn: for every command that prints data of a database. Eager, so that errors know of it."""
    option = click.option(
        "--json", "-j", is_flag=True, expose_value=False, is_eager=True, callback=_keep_json, help="Print JSON."
    )
    return option(dsn_option(command))


def parse_duration(text: str) -> timedelta | None:
    """90s, 10m, 1h30m, 2d; None if it is none of that. Raises OverflowError beyond 2.7 million years."""
    if not re.fullmatch(r"(\d{1,12}[wdhms])+", text):
        return None
    parts = re.findall(r"(\d+)([wdhms])", text)
    return sum((timedelta(**{UNITS[unit]: int(count)}) for count, unit in parts), timedelta())


def duration(context: click.Context, option: click.Parameter, given: str | None) -> timedelta | None:
    """Callback of an option that takes a length of time. Raises click's usage error."""
    if given is None:
        return None
    try:
        found = parse_duration(given.strip().lower())
    except OverflowError:
        raise click.BadParameter(f"{given!r} is too long.", context, option) from None
    if found is None:
        hint = f"{given!r} is not a duration; write it like 90s, 10m, 1h30m or 2d."
        raise click.BadParameter(hint, context, option)
    return found


def moment(context: click.Context, option: click.Parameter, given: str | None) -> datetime | timedelta | None:
    """Callback of an option that takes an ISO time, local where it names no zone, or a delay from the database's now.

    Raises click's usage error.
    """
    if given is None:
        return None
    try:
        delay = parse_duration(given.strip().lower())
        return datetime.fromisoformat(given.strip()).astimezone() if delay is None else delay
    except (ValueError, OverflowError):
        hint = f"{given!r} is not a time; write it like 10m, 2026-03-01T09:00 or 2026-03-01T09:00+01:00."
        raise click.BadParameter(hint, context, option) from None


def id_list(context: click.Context, option: click.Parameter, given: Iterable[str]) -> list[int]:
    """Callback of a repeatable option that takes ids separated by commas. Raises click's usage error."""
    parts = [part.strip() for text in given for part in text.split(",")]
    for part in parts:
        if not (part.isascii() and part.isdigit() and 1 <= int(part) <= LARGEST_ID):
            hint = f"{part!r} is not the id of a task; write 17, or 3,4,5."
            raise click.BadParameter(hint, context, option)
    return [int(part) for part in parts]


LARGEST_ID = 2**63 - 1  # beyond a bigint there is no task; a usage error says so better than one about types
task_id = click.argument("task_id", metavar="ID", type=click.IntRange(1, LARGEST_ID))
task_ids = click.argument("ids", metavar="ID...", type=click.IntRange(1, LARGEST_ID), nargs=-1, required=True)
