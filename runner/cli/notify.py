"""notify: news to ntfy and to webhooks."""

import asyncio
import contextlib

import click

from .. import logs
from ..connection import is_pooled
from .options import State, dsn_option, log_option
from .output import say


@click.command(short_help="Send news to ntfy or a webhook.")
@click.option("--once", is_flag=True, help="Send what is due now, and end.")
@click.option("--pooler", is_flag=True, help="The database is behind a transaction pooler.")
@log_option
@dsn_option
@click.pass_obj
def notify(state: State, once: bool, pooler: bool, log_format: logs.Format) -> None:
    """Send what needs you, what failed, and an hourly digest to where the table push_targets says; until Ctrl-C.

    Needs a login of taskyard_admin. Begin with a row: insert into push_targets (name, kind, url) values ('me', 'ntfy',
    'https://ntfy.example/a-topic-nobody-guesses'); what was sent: select * from sent; All of it: docs/notifications.md
    """
    database = state.database()
    with state.connect(database) as yard:  # what is wrong with it is told at once
        pooler |= is_pooled(yard)
    logs.set_up(log_format)
    from ..notify import Notifier  # an HTTP client, for which no other command should wait

    notifier = Notifier(database.dsn, database.cluster, pooler)
    if once:
        sent = asyncio.run(notifier.once())
        say(f"{sent} sent.")
        return
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(notifier.run())
