"""say: a word to the agent of a task."""

import sys

import click

from .. import actions
from .options import State, json_option, task_id
from .output import clean, say_json
from .output import say as tell


@click.command(short_help="Write to a task's agent.")
@task_id
@click.argument("text")
@json_option
@click.pass_obj
def say(state: State, task_id: int, text: str) -> None:
    """Write TEXT (or -, for standard input) to a task's agent.

    While it works it reads that with its next step; otherwise it begins, or goes on, with it.
    """
    if text == "-":
        text = sys.stdin.read()
    with state.connect() as yard:
        answer = actions.say(yard, task_id, text)
    if state.json:
        say_json({"id": task_id, "message": answer})
    else:
        tell(clean(answer))
