"""The command line of Taskyard. One file per idea; all SQL is in taskyard.runner.queries and actions."""

from importlib.metadata import version

import click

from .failures import EPILOG, Commands
from .options import State, dsn_option

Commands.places = {
    "up": "runner.up",
    "submit": "submit.submit",
    "list": "tasks.list_",
    "show": "tasks.show",
    "logs": "watch.logs",
    "wait": "watch.wait",
    "tui": "tui.tui",
    "explain": "tasks.explain",
    "cancel": "tasks.cancel",
    "retry": "tasks.retry",
    "inbox": "inbox.inbox",
    "approve": "inbox.approve",
    "deny": "inbox.deny",
    "answer": "inbox.answer",
    "say": "say.say",
    "checkpoint": "documents.checkpoint",
    "handoff": "documents.handoff",
    "agent": "agent.agent",
    "schedule": "schedules.schedule",
    "schedules": "schedules.schedules",
    "pause": "fleet.pause",
    "resume": "fleet.resume",
    "drain": "fleet.drain",
    "runner": "runner.runner",
    "notify": "notify.notify",
    "metrics": "metrics.metrics",
    "phone-role": "phone.phone_role",
    "invite": "hosts.invite",
    "join": "hosts.join",
    "leave": "hosts.leave",
    "import-sqlite": "import_sqlite.import_sqlite",
    "install": "database.install",
    "uninstall": "database.uninstall",
    "db": "database.db",
    "doctor": "doctor.doctor",
    "completion": "completion.completion",
}


@click.group("taskyard", cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@dsn_option
@click.version_option(version("taskyard"), prog_name="taskyard")
@click.pass_context
def main(context: click.Context) -> None:
    """A queue for AI agent work inside PostgreSQL.

    Begin with: taskyard up

    The database is, in this order: --dsn, TASKYARD_DSN, libpq's variables (PGHOST, PGSERVICE ...), the one
    that this host has joined, the embedded server.
    """
    context.ensure_object(State)


__all__ = ["main"]
