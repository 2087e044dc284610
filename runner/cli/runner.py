"""runner and up: doing the work of the yard on this host."""

import logging
import os
import re
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click

from .. import queries
from ..connection import Database, find_database, redacted
from ..errors import TaskyardError
from ..install import install, schema_number
from ..postgres import Cluster
from ..sandbox.levels import LEVELS, Level
from .options import State, dsn_option, duration
from .output import clean, say

F = TypeVar("F", bound=Callable[..., Any])

LEASE = "After this long without a sign of life its tasks go to others; default: 60s."
NOT_ALLOWED = "42501"  # SQLSTATE insufficient_privilege


def host_name() -> str:
    """This host's name as a runner's name; what such a name may not hold becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9_.@:-]", "-", socket.gethostname()).lstrip("_.@:-")[:100] or "runner"


def runner_options(command: F) -> F:
    """The options of `runner`, which `up` shares."""
    for option in (
        click.option(
            "--unsafe-no-sandbox", is_flag=True, help="Needed for --sandbox none, so that nobody says it by mistake."
        ),
        click.option(
            "--sandbox",
            type=click.Choice(LEVELS),
            default="strict",
            show_default=True,
            help="How tasks are confined: docs/sandbox.md.",
        ),
        click.option("--verbose", "-v", is_flag=True, help="Log what goes on in detail."),
        click.option("--pooler", is_flag=True, help="The database is behind a transaction pooler."),
        click.option(
            "--lease",
            metavar="DURATION",
            callback=duration,
            default="60s",
            show_default=True,
            help="They outlive it.",
        ),
        click.option("--label", "labels", multiple=True, help="What tasks may require. Repeatable."),
        click.option("--slots", type=int, default=2, show_default=True, help="Tasks at once."),
        click.option("--host", help="Name of this host, where the system's changes: sessions are resumed by it."),
        click.option("--name", help="Default: the name of this host."),
        dsn_option,
    ):
        command = option(command)
    return command


def _run(
    database: Database,
    name: str | None,
    host: str | None,
    slots: int,
    labels: tuple[str, ...],
    lease: timedelta,
    pooler: bool,
    verbose: bool,
    sandbox: Level,
    unsafe_no_sandbox: bool,
) -> int:
    if sandbox == "none":
        _check_bare(unsafe_no_sandbox)
    from ..worker import Options, run  # the worker needs asyncio and all adapters; other commands do not

    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
    )
    # Its debug log quotes every event of the loop, and nobody asked for those.
    logging.getLogger("asyncio").setLevel(logging.INFO)
    return run(
        Options(
            dsn=database.dsn,
            name=name or host or host_name(),
            host=host or socket.gethostname(),
            slots=slots,
            labels=list(labels),
            lease=lease,
            pooler=pooler,
            sandbox=sandbox,
            cluster=database.cluster,
        )
    )


def _check_bare(said_twice: bool) -> None:
    """Raises TaskyardError unless the operator knows what it means, and is not root."""
    if not said_twice:
        raise TaskyardError(
            "Without a sandbox, whatever an agent does, it does as your user: it reads your keys, for example.",
            "If that is what you want: --sandbox none --unsafe-no-sandbox",
        )
    if os.geteuid() == 0:
        raise TaskyardError(
            "As root nothing is run without a sandbox.", "Run it as an ordinary user, or leave --sandbox none out."
        )


@click.command(short_help="Run tasks on this host, in the foreground.")
@runner_options
@click.pass_obj
def runner(state: State, **options: Any) -> None:
    """Run tasks on this host until Ctrl-C.

    The first Ctrl-C lets running tasks end, the second stops them and gives them back.
    """
    database = state.database()
    state.connect(database).close()  # one clear sentence now, instead of a runner that tries for ever
    raise click.exceptions.Exit(_run(database, **options))


@click.command(short_help="Start everything: a database, and a runner.")
@runner_options
@click.pass_obj
def up(state: State, **options: Any) -> None:
    """Start the embedded database server, install Taskyard, and run tasks until Ctrl-C.

    Where --dsn, TASKYARD_DSN or libpq's variables name a database, that one is used instead. The server goes on running
    afterwards.
    """
    database = _database(state)
    with state.connect(database) as yard:
        _install(yard)
        agents = queries.agents(yard)
    for line in _welcome(database, agents):
        say(line, err=True)
    code = _run(database, **options)
    if database.cluster is not None:
        say("The runner has stopped. The database server goes on; end it with: taskyard db stop", err=True)
    raise click.exceptions.Exit(code)


def _progress(step: str) -> None:
    say(f"... {step}", err=True)


def _database(state: State) -> Database:
    try:
        database = find_database(state.dsn)
    except TaskyardError:
        database = None  # nothing is named, and there is no embedded server yet
    if database is not None and database.cluster is None:
        return database
    cluster = Cluster(progress=_progress)
    if not cluster.start():
        _progress("the database server runs already")
    return Database(cluster.url(), "the embedded server", cluster)


def _install(yard: queries.Yard) -> None:
    try:
        install(yard, _progress)
    except TaskyardError as error:
        # A login that only runs tasks may use what an administrator installed.
        if error.code != NOT_ALLOWED or schema_number(yard) is None:
            raise
        _progress("Taskyard is installed here already")


def _welcome(database: Database, agents: list[dict[str, Any]]) -> list[str]:
    lines = ["", f"Taskyard is up. Database: {redacted(database.dsn) or database.source}"]
    lines += [f"  agent {agent['name']}: {clean(agent['description'] or '')}".rstrip(": ") for agent in agents]
    lines += [
        "",
        "Put in a task from another terminal:",
        "  taskyard submit --agent shell 'echo hello'",
        f"or from psql ({'taskyard db psql' if database.cluster else 'connected to the same database'}):",
        "  insert into tasks (prompt, agent) values ('echo hello', 'shell');",
        "and look: taskyard list, taskyard show 1, taskyard logs 1",
    ]
    return [*lines, "", "Ctrl-C lets running tasks end and stops the runner.", ""]
