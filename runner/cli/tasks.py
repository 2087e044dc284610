"""list, show, cancel, retry, explain: looking at tasks, and saying what becomes of them."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import click
import psycopg

from .. import actions, queries
from ..connection import Yard
from ..queries import Task
from .failures import explain as explain_error
from .failures import is_lost, report
from .options import State, json_option, task_id, task_ids
from .output import (
    Column,
    ago,
    clean,
    colored,
    fit,
    indented,
    one_line,
    pairs,
    relative,
    say,
    say_json,
    table,
    terminal_width,
)
from .watch import no_task

WIDE = 70  # columns from which on the table has room for agent and scope
BLOCKS = ("prompt", "payload", "verify", "result", "error")  # shown as blocks of text, not beside their names
SHOWN_APART = {"id", "status", "attempt_id", "attempt_count", "depends_on", "on_dependency_failure", *BLOCKS}
LABELS = {
    "run_at": "not before",
    "parent_id": "parent",
    "failure_count": "failures",
    "failed_dependency": "failed by",
    "cancel_requested_at": "cancelled",
    "cancel_reason": "why",
}


@click.command("list", short_help="Tasks, newest first.")
@click.option("--status", "-s", type=click.Choice(queries.STATUSES), multiple=True, help="Repeatable.")
@click.option("--agent", "-a", help="Of this agent.")
@click.option("--scope", help="Of this scope.")
@click.option("--mine", is_flag=True, help="Submitted by this login.")
@click.option("--limit", "-n", type=click.IntRange(1, 100_000), default=50, show_default=True)
@json_option
@click.pass_obj
def list_(state: State, status: Sequence[str], agent: str | None, scope: str | None, mine: bool, limit: int) -> None:
    """List tasks, newest first. The time is since the task ended, began, or was submitted."""
    width = terminal_width()
    with state.connect() as yard:
        length = None if state.json else 4 * width
        found = queries.list_tasks(yard, status, agent, scope, mine, limit, length)
        now = queries.now(yard)
    if state.json:
        say_json(found)
    elif not found:
        say("There are no such tasks.", err=True)
    else:
        for line in task_table(found, now, width):
            say(line)


def task_table(tasks: Sequence[Task], now: datetime, width: int) -> list[str]:
    """Lines of at most `width` columns, with a heading."""
    columns = [Column("id", right=True), Column("status"), Column("time", right=True)]
    if width >= WIDE:
        columns += [Column("agent", most=12), Column("scope", most=12)]
    columns.append(Column("task"))
    rows: list[list[str]] = []
    for task in tasks:
        where = [one_line(task.agent), one_line(task.scope)] if width >= WIDE else []
        said = f"{task.error} · {task.prompt}" if task.status == "failed" and task.error else task.prompt
        rows.append([str(task.id), task.status, _when(task, now), *where, one_line(said)])
    lines = table(columns, rows, width)
    for index, task in enumerate(tasks, 1):
        lines[index] = lines[index].replace(task.status, colored(task.status), 1)
    return lines


def _when(task: Task, now: datetime) -> str:
    if task.status == "scheduled" and task.run_at is not None and task.run_at > now:
        return f"in {ago(task.run_at - now)}"
    began = task.started_at if task.status in ("running", "waiting") else None
    return ago(now - (task.finished_at or began or task.created_at))


@click.command(short_help="All of a task.")
@task_id
@json_option
@click.pass_obj
def show(state: State, task_id: int) -> None:
    """Show a task, its attempts, its dependencies, and its result or error."""
    with state.connect() as yard:
        task = queries.task(yard, task_id)
        if task is None:
            raise no_task([task_id])
        attempts = queries.attempts(yard, task_id)
        dependencies = queries.dependencies(yard, task_id)
        now = queries.now(yard)
    if state.json:
        say_json({**task, "attempts": attempts, "dependencies": dependencies})
        return
    width = terminal_width()
    say(f"Task {task_id}: {colored(task['status'])}")
    fields = {key: given for key, given in task.items() if key not in SHOWN_APART}
    items = [(LABELS.get(key, key.replace("_", " ")), _field(given, now)) for key, given in fields.items()]
    for line in pairs([item for item in items if item[1]], width):
        say(line)
    for name in BLOCKS:
        if (given := task[name]) is not None:
            text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, indent=2)
            say(f"\n{name}\n{indented(text)}")
    if dependencies:
        anyway = task["on_dependency_failure"] == "run"
        say(f"\ndepends on{' (and runs even if one fails)' if anyway else ''}")
    for other in dependencies:
        line = f"  {other['id']} {other['status'] or 'deleted'} {one_line(other['prompt'] or '')}"
        say(fit(line, width))
    if attempts:
        say("\nattempts")
    for attempt in attempts:
        for line in _attempt(attempt, now, width):
            say(line)


def _field(value: Any, now: datetime) -> str:
    if value is None or value in ([], 0):
        return ""
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M} ({relative(value, now)})"
    if isinstance(value, timedelta):
        return str(value)
    return one_line(", ".join(str(part) for part in value) if isinstance(value, list) else str(value))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _attempt(attempt: dict[str, Any], now: datetime, width: int) -> list[str]:
    took = ago((attempt["finished_at"] or now) - attempt["started_at"])
    how = attempt["outcome"] or "running"
    by = ":".join(part for part in (attempt["provider"], attempt["model"]) if part)
    lines = [fit(f"  {attempt['number']} {how}, {took}, {attempt['runner'] or 'a runner'}, {one_line(by)}", width)]
    facts = {
        "exit code": attempt["exit_code"],
        "turns": attempt["turns"],
        "tokens in": attempt["input_tokens"],
        "tokens out": attempt["output_tokens"],
        "US$": attempt["cost_usd"],
    }
    if told := ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None):
        lines.append(fit(f"    {told}", width))
    if attempt["evidence"]:
        lines.append(fit(f"    {one_line(attempt['evidence'][:1000])}", width))
    return lines


@click.command(short_help="Why a task is not running.")
@task_id
@json_option
@click.pass_obj
def explain(state: State, task_id: int) -> None:
    """Say what a task waits for, one reason per line."""
    with state.connect() as yard:
        lines = queries.explain_task(yard, task_id)
    if state.json:
        say_json({"id": task_id, "reasons": lines})
        return
    for line in lines:
        say(clean(line))


@click.command(short_help="Cancel tasks, running ones too.")
@task_ids
@click.option("--why", metavar="TEXT", help="Kept with the task.")
@click.option("--keep-children", is_flag=True, help="Their children, and those who took over from them, go on.")
@json_option
@click.pass_obj
def cancel(state: State, ids: tuple[int, ...], why: str | None, keep_children: bool) -> None:
    """Cancel tasks with their children. What waits is cancelled at once; what runs is stopped by its runner."""
    _each(state, ids, lambda yard, number: actions.cancel_task(yard, number, why, not keep_children))


@click.command(short_help="Give failed or cancelled tasks another go.")
@task_ids
@json_option
@click.pass_obj
def retry(state: State, ids: tuple[int, ...]) -> None:
    """Give failed or cancelled tasks all their attempts again; make scheduled ones due now."""
    _each(state, ids, actions.retry_task)


def _each(state: State, ids: Sequence[int], verb: Callable[[Yard, int], str]) -> None:
    """One refusal does not keep the others from being done; the exit code tells of it."""
    done: list[dict[str, Any]] = []
    worst = 0
    with state.connect() as yard:
        for number in dict.fromkeys(ids):
            try:
                status = verb(yard, number)
            except psycopg.Error as error:
                if is_lost(error):
                    raise
                told, worst = explain_error(error)
                report(told, state.json)
                continue
            done.append({"id": number, "status": status})
            if not state.json:
                say(f"{number} {colored(status)}")
    if state.json:
        say_json(done)
    raise click.exceptions.Exit(worst)
