"""agent: the channel of the task that this runs in, see runner/channel/client.py."""

import click

from ..channel import client


@click.command(
    short_help="For what runs within a task.",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def agent(arguments: tuple[str, ...]) -> None:
    """Create children, wait for them, hand over, ask: alone it tells what there is. Works within a task only."""
    raise click.exceptions.Exit(client.main(list(arguments)))
