"""install, uninstall, db: the database itself, and the embedded server."""

import os
import sys
from pathlib import Path

import click

from .. import actions, queries
from .. import install as installer
from ..connection import connect
from ..errors import TaskyardError
from ..postgres import Cluster, PostgresError
from ..postgres.backup import backup, restore
from .failures import FAILED
from .options import State, json_option
from .output import pairs, say, say_json, terminal_width, waiting
from .runner import lan_option, others_told


@click.command(short_help="Install or upgrade Taskyard in a database.")
@json_option
@click.pass_obj
def install(state: State) -> None:
    """Install Taskyard in a database, or bring it to the current version. Repeating it changes nothing."""
    database = state.database()
    with state.connect(database) as yard, waiting("installing") as show:
        done = installer.install(yard, show)
        name = yard.info.dbname
    if state.json:
        say_json(done)
        return
    what = {None: "is installed", done.after: "was current already"}.get(
        done.before, f"is upgraded from schema {done.before}"
    )
    say(f"Taskyard {what} in database {name} (schema {done.after}).")
    say(f"pgmq: {done.pgmq}.")
    if not done.search_path_set:
        say(
            "The database is not ours, so its search_path is as it was."
            " Write taskyard.tasks instead of tasks, or let its owner run:"
        )
        say(f'  alter database {name} set search_path = "$user", public, taskyard;')


@click.command(short_help="Take Taskyard out of a database, with all tasks.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def uninstall(state: State, yes: bool) -> None:
    """Drop the schema taskyard with all tasks. pgmq and the roles stay."""
    with state.connect() as yard:
        if installer.schema_number(yard) is None:
            raise TaskyardError("This database has no Taskyard.")
        count, name = queries.count_tasks(yard), yard.info.dbname
        if not yes:
            question = f"This drops {count:,} {'task' if count == 1 else 'tasks'} for good from database {name}. Go on?"
            try:
                agreed = click.confirm(question, err=True)
            except click.Abort as abort:
                if isinstance(abort.__context__, KeyboardInterrupt):
                    raise
                say(err=True)
                agreed = False
            if not agreed:
                say("Nothing was changed. Without a question: --yes", err=True)
                raise click.exceptions.Exit(FAILED)
        with waiting("uninstalling"):
            installer.uninstall(yard)
    if state.json:
        say_json({"database": name, "tasks": count})
    else:
        say(f"Taskyard is gone from database {name}, with {count:,} tasks.")


@click.group(short_help="The embedded database server.")
@click.pass_obj
def db(state: State) -> None:
    """The embedded database server of this machine."""
    if state.dsn:
        raise click.UsageError("--dsn names another database; db is about the embedded server. Use: psql DSN")


@db.command(short_help="Start it; the first time, create it.")
@lan_option
@json_option
@click.pass_obj
def start(state: State, lan: str | None) -> None:
    """Start the server, and the first time create its database. It goes on running by itself."""
    cluster = Cluster()
    with waiting("starting the server") as show:
        cluster.progress = show
        started = cluster.start(lan)
    if state.json:
        say_json({"started": started, "url": cluster.url()})
    else:
        say("The server is up." if started else "The server runs already.")
        say(cluster.url())
        for line in others_told(cluster):
            say(line)


@db.command(short_help="Stop it.")
@json_option
@click.pass_obj
def stop(state: State) -> None:
    """Stop the server. Runners on this machine wait until it is back."""
    with waiting("stopping the server"):
        stopped = Cluster().stop()
    if state.json:
        say_json({"stopped": stopped})
    else:
        say("The server has stopped." if stopped else "The server was not running.")


@db.command("backup", short_help="Write a dump of it.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--keep", type=click.IntRange(1), metavar="N", help="Delete all but the newest N in that folder.")
@json_option
@click.pass_obj
def backup_(state: State, folder: Path, keep: int | None) -> None:
    """Write a dump of the database and its logins into a folder, while everything goes on.

    Both files are for your eyes only: they hold all prompts and results.
    """
    with waiting("dumping"):
        dump = backup(_running(), folder.expanduser().resolve(), keep)
    if state.json:
        say_json({"dump": dump, "bytes": dump.stat().st_size})
    else:
        say(f"{dump} ({dump.stat().st_size / 2**20:.1f} MiB), and the logins beside it")


@db.command("restore", short_help="Put a dump in its place.")
@click.argument("dump", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def restore_(state: State, dump: Path, yes: bool) -> None:
    """Put a dump in the place of the database; the one that was there stays beside it, under another name.

    What ran when the dump was made runs again. Whoever still works on it is told that it is lost.
    """
    cluster = _running()
    if not yes:
        click.confirm(f"The database becomes what it was at {dump.stem}. Go on?", err=True, abort=True)

    def finish(dsn: str) -> None:
        show("upgrading it")
        with connect(dsn) as yard:
            installer.install(yard)
            actions.after_restore(yard)

    with waiting("restoring") as show:
        before = restore(cluster, dump.resolve(), finish)
    if state.json:
        say_json({"before": before})
    else:
        say(f"Restored. What was there until now is the database {before};")
        say(f"when nobody needs it any more: drop database {before};   (taskyard db url --admin)")


def _running() -> Cluster:
    cluster = Cluster()
    if not cluster.status().running:
        raise PostgresError("The embedded server is not running.", "Start it with: taskyard db start")
    return cluster


@db.command(short_help="Whether it runs, and where.")
@json_option
@click.pass_obj
def status(state: State) -> None:
    """Say whether the server runs, and where. Exit code 0 if it does, else 1."""
    found = Cluster().status()
    if state.json:
        say_json(found)
    else:
        say("The server is up." if found.running else "The server is down.")
        facts = {
            "version": found.version,
            "pid": found.pid,
            "port": found.port,
            "sockets": found.socket_dir,
            "others": found.lan and f"{found.lan} at {', '.join(found.addresses) or 'no address of this host'}",
            "data": found.data_dir,
            "log": found.log,
        }
        for line in pairs([(name, str(fact)) for name, fact in facts.items() if fact], terminal_width()):
            say(line)
    raise click.exceptions.Exit(0 if found.running else FAILED)


@db.command(short_help="Its URL, for psql and other clients.")
@click.option("--admin", is_flag=True, help="As the superuser postgres.")
@json_option
@click.pass_obj
def url(state: State, admin: bool) -> None:
    """Print the URL for psql and other clients. It names the file with the password, not the password."""
    found = Cluster().url(admin=admin)
    if state.json:
        say_json({"url": found})
    else:
        say(found)


@db.command(
    short_help="psql in it; arguments go to psql.",
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": ["--help"],
    },
)
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
def psql(arguments: tuple[str, ...]) -> None:
    """Open psql in the embedded server's database, like: taskyard db psql -c 'select * from queue'"""
    cluster = _running()
    command = cluster.psql_command(arguments)
    sys.stdout.flush()
    os.execv(command[0], command)
