"""runner and up: doing the work of the yard on this host."""

import os
import re
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click

from .. import logs, queries
from ..connection import Database, Yard, find_database, is_pooled, redacted
from ..errors import TaskyardError
from ..install import install, schema_number
from ..postgres import Cluster
from ..postgres.lan import firewall_hint
from ..sandbox.levels import LEVELS, Level
from .options import State, dsn_option, duration, log_option
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
        log_option,
        click.option("--verbose", "-v", is_flag=True, help="Log what goes on in detail."),
        click.option(
            "--pooler",
            is_flag=True,
            help="A transaction pooler is in between; PgBouncer is noticed without this.",
        ),
        click.option(
            "--lease",
            metavar="DURATION",
            callback=duration,
            default="60s",
            show_default=True,
            help="They outlive it.",
        ),
        click.option(
            "--keep",
            envvar="TASKYARD_KEEP",
            metavar="DURATION",
            callback=duration,
            default="14d",
            show_default=True,
            help="How long the files of tasks that are over stay on this host: a day or more.",
        ),
        click.option(
            "--quota",
            envvar="TASKYARD_QUOTA",
            type=click.IntRange(1),
            metavar="GIB",
            default=20,
            show_default=True,
            help="How much of the disk one task may fill.",
        ),
        click.option("--label", "labels", multiple=True, help="What tasks may require. Repeatable."),
        click.option("--slots", type=int, default=2, show_default=True, help="Tasks at once."),
        click.option("--host", help="Name of this host, where the system's changes: sessions are resumed by it."),
        click.option("--name", help="Default: the name of this host."),
        dsn_option,
    ):
        command = option(command)
    return command


def lan_option(command: F) -> F:
    """--lan, of the commands that start the embedded server."""
    return click.option(
        "--lan", metavar="RANGE", help="Let hosts in this range connect, like 192.168.1.0/24; off: none. It is kept."
    )(command)


def others_told(cluster: Cluster | None) -> list[str]:
    """What a person has to know about a server that other hosts may reach: where, how, and what protects it."""
    status = cluster.status() if cluster is not None else None
    if status is None or not status.lan:
        return []
    if not status.addresses:
        return [f"Hosts in {status.lan} may connect, but this host has no address there now.", ""]
    where = " and ".join(f"{address}, port {status.port}" for address in status.addresses)
    lines = [f"Hosts in {status.lan} reach the database at {where}.", "To let one in: taskyard invite NAME"]
    if (command := firewall_hint(status.lan, status.port or 0)) is not None:
        lines.append(f"If the firewall keeps them out: {command}")
    if not status.tls:
        lines.append("Not encrypted: these programs have no TLS, so others there can read along (docs/hosts.md).")
    return [*lines, ""]


def _run(
    database: Database,
    name: str | None,
    host: str | None,
    slots: int,
    labels: tuple[str, ...],
    lease: timedelta,
    keep: timedelta,
    quota: int,
    pooler: bool,
    verbose: bool,
    log_format: logs.Format,
    sandbox: Level,
    unsafe_no_sandbox: bool,
) -> int:
    if sandbox == "none":
        _check_bare(unsafe_no_sandbox)
    from ..worker.main import Options, run  # the worker needs asyncio and all adapters; other commands do not

    logs.set_up(log_format, verbose)
    return run(
        Options(
            dsn=database.dsn,
            name=name or host or host_name(),
            host=host or socket.gethostname(),
            slots=slots,
            labels=list(labels),
            lease=lease,
            keep=keep,
            quota=quota << 30,
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
    with state.connect(database) as yard:  # one clear sentence now, instead of a runner that tries for ever
        options["pooler"] |= is_pooled(yard)
    raise click.exceptions.Exit(_run(database, **options))


@click.command(short_help="Start everything: a database, and a runner.")
@runner_options
@lan_option
@click.pass_obj
def up(state: State, lan: str | None, **options: Any) -> None:
    """Start the embedded database server, install Taskyard, and run tasks until Ctrl-C.

    Where --dsn, TASKYARD_DSN, libpq's variables or `taskyard join` name a database, that one is used instead. The
    server goes on running afterwards.
    """
    database = _database(state, lan)
    with state.connect(database) as yard:
        _install(yard)
        agents = queries.agents(yard)
        options["pooler"] |= is_pooled(yard)
    for line in (*_welcome(database, agents), *others_told(database.cluster)):
        say(line, err=True)
    code = _run(database, **options)
    if database.cluster is not None:
        say("The runner has stopped. The database server goes on; end it with: taskyard db stop", err=True)
    raise click.exceptions.Exit(code)


def _progress(step: str) -> None:
    say(f"... {step}", err=True)


def _database(state: State, lan: str | None) -> Database:
    try:
        database = find_database(state.dsn)
    except TaskyardError:
        database = None  # nothing is named, and there is no embedded server yet
    if database is not None and database.cluster is None:
        if lan is not None:
            raise click.UsageError(f"--lan is about the embedded server, but {database.source} names another one.")
        return database
    cluster = Cluster(progress=_progress)
    if not cluster.start(lan):
        _progress("the database server runs already")
    return Database(cluster.url(), "the embedded server", cluster)


def _install(yard: Yard) -> None:
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
