"""The command line of Taskyard. One file per idea; all SQL is in taskyard.runner.queries."""

from importlib.metadata import version

import click

from . import completion, database, doctor, fleet, inbox, runner, submit, tasks, watch
from .failures import EPILOG, Commands
from .options import State, dsn_option


@click.group("taskyard", cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@dsn_option
@click.version_option(version("taskyard"), prog_name="taskyard")
@click.pass_context
def main(context: click.Context) -> None:
    """A queue for AI agent work inside PostgreSQL.

    Begin with: taskyard up

    The database is, in this order: --dsn, TASKYARD_DSN, libpq's variables (PGHOST, PGSERVICE ...), the embedded server.
    """
    context.ensure_object(State)


for command in (
    runner.up,
    submit.submit,
    tasks.list_,
    tasks.show,
    watch.logs,
    watch.wait,
    tasks.explain,
    tasks.cancel,
    tasks.retry,
    inbox.inbox,
    inbox.approve,
    inbox.deny,
    inbox.answer,
    fleet.pause,
    fleet.resume,
    fleet.drain,
    runner.runner,
    database.install,
    database.uninstall,
    database.db,
    doctor.doctor,
    completion.completion,
):
    main.add_command(command)

__all__ = ["main"]
