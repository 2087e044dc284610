"""What a row of another orchestrator means here. Pure: rows in, tasks and a report out.

Nothing is guessed silently: what is understood in another sense than it was written is counted in the report, what is
not understood stays in the task's payload, and a row of which the yard could do the wrong thing is left out.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from graphlib import CycleError, TopologicalSorter
from typing import Any

from . import values
from .source import Row

LONGEST_PROMPT = 4 << 20
TIMES = ("run_at", "created_at", "started_at", "finished_at")
OVER = ("completed", "failed", "cancelled")

# The first that a table has is taken. `--column prompt=ask` goes before them.
NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "task_id", "uuid"),
    "prompt": (
        "prompt", "instructions", "instruction", "description", "task", "body", "text", "content", "command", "title",
        "name",
    ),
    "status": ("status", "state"),
    "agent": ("agent", "agent_type", "agent_name", "assigned_to", "assignee", "worker", "tool"),
    "priority": ("priority",),
    "run_at": ("run_at", "scheduled_at", "scheduled_for", "not_before", "run_after"),
    "created_at": ("created_at", "created", "created_on", "inserted_at", "timestamp", "ctime"),
    "started_at": ("started_at", "started"),
    "finished_at": ("finished_at", "completed_at", "ended_at", "finished", "completed_on"),
    "workspace": ("workspace", "cwd", "working_dir", "working_directory", "workdir", "directory", "project_path"),
    "depends_on": ("depends_on", "dependencies", "blocked_by"),
    "parent": ("parent_id", "parent", "parent_task_id"),
    "result": ("result", "output", "response", "answer"),
    "error": ("error", "error_message", "last_error", "failure_reason"),
    "max_attempts": ("max_attempts", "max_tries"),
    "timeout": ("timeout", "timeout_seconds", "timeout_s", "time_limit"),
    "payload": ("payload", "metadata", "meta", "params", "context", "data"),
}  # fmt: skip
FLAGS = ("done", "is_done", "completed", "is_completed", "finished", "is_finished")  # instead of a status: 0 or 1

WAITING = ("pending", "queued", "new", "todo", "open", "ready", "created", "submitted", "scheduled")
RUNNING = ("running", "in_progress", "started", "active", "claimed", "processing", "assigned", "retrying")
COMPLETED = ("completed", "complete", "done", "finished", "success", "succeeded", "successful", "ok", "closed")
FAILED = ("failed", "failure", "error", "errored", "timeout", "timed_out", "dead", "crashed")
CANCELLED = ("cancelled", "canceled", "aborted", "skipped", "deleted", "archived")
STATUSES = {
    **dict.fromkeys(WAITING, "queued"),
    **dict.fromkeys(RUNNING, "running"),
    **dict.fromkeys(COMPLETED, "completed"),
    **dict.fromkeys(FAILED, "failed"),
    **dict.fromkeys(CANCELLED, "cancelled"),
}
_AGENT_WORDS = re.compile(r"[-_ ](code|cli|agent)$")


@dataclass(frozen=True)
class Task:
    """A task as the yard would have it. Times are ISO texts in UTC, `depends_on` and `parent` ids of the file."""

    id: str
    prompt: str
    status: str
    agent: str = "default"
    priority: int = 0
    run_at: str | None = None
    created_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    workspace: str | None = None
    depends_on: tuple[str, ...] = ()
    parent: str | None = None
    result: Any = None
    error: str | None = None
    max_attempts: int | None = None
    timeout: float | None = None
    payload: Any = None


@dataclass
class Report:
    """What became of the rows: `refused` are (id, reason), `notes` what was understood otherwise, with how often."""

    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter[str])
    refused: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    notes: Counter[str] = field(default_factory=Counter[str])
    kept: list[str] = field(default_factory=list[str])


class Refused(Exception):
    """This row is left out, for this reason."""


@dataclass
class Reading:
    """How the columns and words of one file are read, and the agents that are here, by their names in small letters."""

    columns: dict[str, str]
    flag: str | None
    statuses: dict[str, str]
    zone: tzinfo
    others: list[str]
    agents: dict[str, str]
    agent: str


def plan(
    columns: Iterable[str],
    named: Mapping[str, str] = {},
    statuses: Mapping[str, str] = {},
    zone: tzinfo = UTC,
    agents: Iterable[str] = (),
    agent: str = "default",
) -> Reading:
    """Which column means what. `named` and `statuses` are what the user says, beyond what is known here; `agents` are
    this yard's, and `agent` the one for tasks that name another.

    Raises ValueError for a name that is neither here nor there, or where no column is a prompt.
    """
    there = list(columns)
    found: dict[str, str] = {}
    for ours, theirs in named.items():
        if ours not in NAMES:
            raise ValueError(f"{ours} is nothing that a task has; it has: {', '.join(NAMES)}")
        if theirs.lower() not in there:
            raise ValueError(f"There is no column {theirs}; there are: {', '.join(there)}")
        found[ours] = theirs.lower()
    for ours, names in NAMES.items():
        theirs = next((name for name in names if name in there and name not in found.values()), None)
        if ours not in found and theirs is not None:
            found[ours] = theirs
    if "prompt" not in found:
        raise ValueError(
            f"None of the columns looks like a prompt: {', '.join(there)}. Say which: --column prompt=NAME"
        )
    flag = next((name for name in FLAGS if name in there and name not in found.values()), None)
    known = STATUSES | {word.lower(): status for word, status in statuses.items()}
    used = {*found.values(), *([flag] if flag and "status" not in found else [])}
    others = [name for name in there if name not in used]
    ours = {name.lower(): name for name in agents}
    return Reading(found, None if "status" in found else flag, known, zone, others, ours, agent)


def understand(rows: Iterable[Row], mapping: Reading) -> tuple[list[Task], Report]:
    """The tasks that the rows are, and what was not understood."""
    report = Report(kept=mapping.others)
    tasks: dict[str, Task] = {}
    for row in rows:
        report.rows += 1
        told = values.as_text(row.get(mapping.columns.get("id", ""))) or str(report.rows)
        try:
            if told in tasks:
                raise Refused("another row has the same id")
            tasks[told] = _task(told, row, mapping, report.notes)
        except Refused as reason:
            report.refused.append((told, str(reason)))
    _see_to_dependencies(tasks, report)
    report.statuses.update(task.status for task in tasks.values())
    return list(tasks.values()), report


def _task(told: str, row: Row, mapping: Reading, notes: Counter[str]) -> Task:
    def given(ours: str) -> Any:
        return row.get(mapping.columns.get(ours, ""))

    prompt = values.as_text(given("prompt"))
    if prompt is None or not re.search(r"[^\s\u00a0\u200b\u2060\ufeff]", prompt):
        raise Refused("it has no prompt")
    if len(prompt.encode()) > LONGEST_PROMPT:
        raise Refused("its prompt is longer than 4 MB")
    status = _status(row, mapping)
    if status == "running":
        notes["were running there, and are queued here"] += 1
        status = "queued"
    times = {name: values.moment(given(name), name, mapping.zone, notes) for name in TIMES}
    if status in OVER and times["finished_at"] is None:
        times["finished_at"] = times["started_at"] or times["created_at"]
    payload = values.json_value(given("payload"), "payload", notes)
    unread = {name: row[name] for name in mapping.others if row.get(name) is not None}
    named = values.as_text(given("agent"))
    agent = mapping.agents.get(_AGENT_WORDS.sub("", (named or mapping.agent).lower()))
    if agent is None:
        notes[f"for an agent {(named or '')[:40]!r}, which is not here, given to {mapping.agent}"] += 1
        unread["agent"] = named
        agent = mapping.agent
    if unread:
        payload = {**values.as_object(payload), "imported": unread}
    workspace = values.as_text(given("workspace"))
    if workspace is not None and (not workspace.startswith("/") or len(workspace.encode()) > 4096):
        notes["workspaces that are no absolute path, left out"] += 1
        workspace = None
    return Task(
        id=told,
        prompt=prompt,
        status=status,
        agent=agent,
        priority=values.priority(given("priority"), notes),
        **{name: when.isoformat() if when else None for name, when in times.items()},
        workspace=workspace,
        depends_on=values.ids(given("depends_on")),
        parent=values.as_text(given("parent")),
        result=values.result(given("result")) if status in OVER else None,
        error=values.as_text(given("error")) if status in OVER else None,
        max_attempts=values.whole_number(given("max_attempts"), 1, 100, "max_attempts", notes),
        timeout=values.seconds(given("timeout"), notes),
        payload=payload,
    )


def _status(row: Row, mapping: Reading) -> str:
    if "status" not in mapping.columns:
        return "completed" if mapping.flag and values.truth(row.get(mapping.flag)) else "queued"
    word = values.as_text(row.get(mapping.columns["status"]))
    if word is None:
        raise Refused("it has no status")
    found = mapping.statuses.get(word.lower()) or mapping.statuses.get(re.sub("[ -]", "_", word.lower()))
    if found is None:
        raise Refused(f"its status {word[:40]!r} is not known here (--status {word[:40]}=queued, say)")
    return found


def _see_to_dependencies(tasks: dict[str, Task], report: Report) -> None:
    """Leave out what waits for what cannot come, in as many rounds as it takes."""
    while True:
        bad = {task.id: reason for task in tasks.values() if (reason := _cannot_wait(task, tasks)) is not None}
        if not bad:
            break
        for told, reason in bad.items():
            del tasks[told]
            report.refused.append((told, reason))
    waiting = {task.id: task.depends_on for task in tasks.values() if task.status not in OVER}
    while True:
        try:
            TopologicalSorter(waiting).prepare()
            return
        except CycleError as error:
            for told in {told for told in error.args[1] if told in tasks}:
                del tasks[told], waiting[told]
                report.refused.append((told, "it waits for itself, by way of others"))
            for told in [task.id for task in tasks.values() if _cannot_wait(task, tasks)]:
                del tasks[told], waiting[told]
                report.refused.append((told, "it depends on a task that is left out"))


def _cannot_wait(task: Task, tasks: Mapping[str, Task]) -> str | None:
    if task.status in OVER:
        return None
    if len(task.depends_on) > 1000:
        return "it depends on more than 1,000 tasks"
    for needed in task.depends_on:
        found = tasks.get(needed)
        if found is None:
            return f"it depends on {needed[:40]}, which is not there or left out"
        if found.status in ("failed", "cancelled"):
            return f"it depends on {needed[:40]}, which {found.status} there"
    return None
