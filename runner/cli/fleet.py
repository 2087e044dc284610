"""pause, resume, drain: holding back scopes, providers and runners."""

import click

from .. import actions
from .options import State, json_option
from .output import clean, say, say_json

kind = click.argument("kind", type=click.Choice(["scope", "provider"]))
name = click.argument("name", metavar="NAME")


def _tell(state: State, said: str) -> None:
    if state.json:
        say_json({"message": said})
    else:
        say(clean(said))


@click.command(short_help="Claim nothing more of a scope or for a provider.")
@kind
@name
@click.option("--why", metavar="TEXT", help="Shown by: taskyard explain")
@json_option
@click.pass_obj
def pause(state: State, kind: str, name: str, why: str | None) -> None:
    """Hold back a scope or a provider. What runs goes on."""
    with state.connect() as yard:
        _tell(state, actions.pause(yard, kind, name, why))


@click.command(short_help="Undo pause.")
@kind
@name
@json_option
@click.pass_obj
def resume(state: State, kind: str, name: str) -> None:
    """Let a paused scope or provider be claimed again."""
    with state.connect() as yard:
        _tell(state, actions.resume(yard, kind, name))


@click.command(short_help="Let a runner finish what it has.")
@click.argument("runner", metavar="RUNNER")
@click.option("--off", is_flag=True, help="Let it claim again.")
@json_option
@click.pass_obj
def drain(state: State, runner: str, off: bool) -> None:
    """Stop a runner from claiming tasks. What it runs goes on."""
    with state.connect() as yard:
        _tell(state, actions.drain_runner(yard, runner, not off))
