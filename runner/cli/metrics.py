"""metrics: the yard in numbers, for Prometheus and its like."""

import sys

import click

from .. import logs
from .options import State, dsn_option, log_option
from .output import say


@click.command(short_help="Numbers for Prometheus.")
@click.option("--once", is_flag=True, help="Print them and end; for a textfile collector.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=9465, show_default=True, help="Its port.")
@log_option
@dsn_option
@click.pass_obj
def metrics(state: State, once: bool, host: str, port: int, log_format: logs.Format) -> None:
    """Serve the yard's numbers at /metrics as OpenMetrics text, until Ctrl-C.

    Any login of taskyard_viewer that sees all scopes will do. They hold names of scopes, agents, accounts and runners,
    and no prompt: listen beyond this machine only where all may know those.
    """
    database = state.database()
    from ..metrics import metrics_text, serve  # a web server, for which no other command should wait

    with state.connect(database) as yard:
        text = metrics_text(yard)  # what is wrong is told at once
    if once:
        sys.stdout.write(text)
        return
    logs.set_up(log_format)
    say(f"The numbers are at http://{f'[{host}]' if ':' in host else host}:{port}/metrics until Ctrl-C.")
    serve(lambda: state.connect(database), host, port)
