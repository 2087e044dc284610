"""tui: the screens, in a terminal or in a browser."""

import click

from ..connection import Database
from .options import State, dsn_option
from .output import say


@click.command(short_help="The yard, live.")
@click.option("--web", is_flag=True, help="In a browser instead of this terminal.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the browser's page listens.")
@click.option("--port", default=8765, show_default=True, help="Its port.")
@click.option(
    "--password",
    envvar="TASKYARD_WEB_PASSWORD",
    help="What the page asks for; beyond loopback one is made up where none is given.",
)
@dsn_option
@click.pass_obj
def tui(state: State, web: bool, host: str, port: int, password: str | None) -> None:
    """See tasks, what needs you, runners and limits, scopes and spend, as they change; approve, cancel, retry, say.

    Keys are shown at the bottom; ? tells all of them.
    """
    database: Database = state.database()
    state.connect(database).close()  # what is wrong with it is told here, and not on a screen that is gone at once
    # Textual takes half a second, for which no other command should wait.
    if not web:
        from taskyard.tui.app import Taskyard

        Taskyard(database.dsn).run()
        return
    from taskyard.tui.web import USER, Web, listen

    where = listen(host, port, password)
    say(f"The yard is at {where.url()} until Ctrl-C.")
    if where.password is not None:
        say(f"Name {USER}, password {where.password}; whoever has it acts as your database login.")
        if not where.loopback:
            say("The connection is not encrypted: use it inside a VPN such as Tailscale, or behind a proxy with TLS.")
    Web(where, database.dsn).serve()
