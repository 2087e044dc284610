"""inbox, approve, deny, answer: what agents ask a human, and what becomes of it."""

from collections.abc import Callable

import click

from .. import actions, queries
from ..connection import Yard
from .options import State, json_option
from .output import ago, clean, fit, indented, one_line, say, say_json, terminal_width

number = click.argument("number", metavar="ID", type=int)


@click.command(short_help="What waits for your decision.")
@click.option("--full", is_flag=True, help="Each question as it was asked.")
@json_option
@click.pass_obj
def inbox(state: State, full: bool) -> None:
    """List open questions, the most urgent first. Silence past the deadline means no."""
    with state.connect() as yard:
        asked = queries.inbox(yard)
    if state.json:
        say_json(asked)
        return
    for question in asked:
        left = f"{ago(question['left'])} left" if question["left"] is not None else "no deadline"
        about = f"task {question['task_id']}" if question["task_id"] else f"scope {question['scope']}"
        told = f"{question['id']} {question['kind']}, {about}, {left}"
        say(told if full else fit(f"{told}: {one_line(question['question'])}", terminal_width()))
        if full:
            say(indented(question["question"]))


def _tell(state: State, decide: Callable[[Yard], str]) -> None:
    with state.connect() as yard:
        said = decide(yard)
    if state.json:
        say_json({"message": said})
    else:
        say(clean(said))


@click.command(short_help="Allow what an agent asks for.")
@number
@click.option("--note", metavar="TEXT", help="Told to the agent.")
@json_option
@click.pass_obj
def approve(state: State, number: int, note: str | None) -> None:
    """Allow it, for that task alone; or as much again of a used-up budget."""
    _tell(state, lambda yard: actions.approve(yard, number, note))


@click.command(short_help="Refuse what an agent asks for.")
@number
@click.option("--why", metavar="TEXT", help="Told to the agent.")
@json_option
@click.pass_obj
def deny(state: State, number: int, why: str | None) -> None:
    """Refuse it; the agent goes on without."""
    _tell(state, lambda yard: actions.deny(yard, number, why))


@click.command(short_help="Answer an agent's question.")
@number
@click.argument("text")
@json_option
@click.pass_obj
def answer(state: State, number: int, text: str) -> None:
    """Answer a question; its session goes on with TEXT."""
    _tell(state, lambda yard: actions.answer(yard, number, text))
