"""logs and wait: what goes on while tasks run, through lost connections."""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import TypeVar

import click
import psycopg

from .. import queries
from ..connection import Yard
from ..errors import TaskyardError
from ..queries import Ending, Try
from .failures import CANCELLED, FAILED, TIMED_OUT, Unreachable, is_lost
from .options import State, duration, json_option, task_id, task_ids
from .output import clean, colored, one_line, say, say_json, waiting

T = TypeVar("T")

POLL_TRANSCRIPT = 1.0  # seconds; rows of a transcript are not notified
POLL_STATUS = 2.0  # seconds; a notification may always be missed
RECONNECT_FOR = 600.0  # seconds until a database that does not come back is given up
STREAMS = ("output", "error")  # kinds whose rows are cut anywhere; a row of any other kind is complete
PLAIN = ("output", "text")  # kinds that are printed as they are


def no_task(ids: Iterable[int]) -> TaskyardError:
    """What to raise for ids that do not exist."""
    named = ", ".join(str(number) for number in ids)
    return TaskyardError(f"There is no task {named}.", "See: taskyard list", "TY002")


class Watch:
    """A connection that hears of changed tasks, and is made anew when it is lost."""

    def __init__(self, state: State, ids: Iterable[int]) -> None:
        self._state = state
        self._database = state.database()
        self._ids = frozenset(ids)
        self._connection = self._listening()
        self._lost = False

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ask(self, query: Callable[[Yard], T], deadline: float | None = None) -> T:
        """Run a query, on a new connection where the old one is lost.

        Raises Unreachable where the database stays away for ten minutes, or until the deadline.
        """
        give_up = min(time.monotonic() + RECONNECT_FOR, deadline or float("inf"))
        pause = 0.25
        while True:
            try:
                if self._connection.closed:
                    self._connection = self._listening()
                    self._lost = False
                    say("connected again", err=True)
                return query(self._connection)
            except (psycopg.Error, Unreachable) as error:
                if not is_lost(error) or time.monotonic() >= give_up:
                    raise
                self._lose()
            time.sleep(min(pause, max(0.0, give_up - time.monotonic())))
            pause = min(pause * 2, 5.0)

    def pause(self, seconds: float) -> None:
        """Wait until something is said about one of the tasks, at most so long."""
        try:
            queries.hear(self._connection, seconds, self._ids)
        except psycopg.OperationalError:
            self._lose()  # the next question makes another

    def _lose(self) -> None:
        self._connection.close()
        if not self._lost:
            say("the connection is lost, trying again", err=True)
        self._lost = True

    def _listening(self) -> Yard:
        connection = self._state.connect(self._database)
        queries.listen(connection)
        return connection


def await_ends(state: State, ids: Iterable[int], seconds: float | None) -> tuple[list[Ending], bool]:
    """Wait until all the tasks have ended. Returns where they are, and whether time ran out before.

    Raises TaskyardError for a task that does not exist.
    """
    wanted = list(dict.fromkeys(ids))
    deadline = None if seconds is None else time.monotonic() + seconds
    watch = Watch(state, wanted)
    with waiting("") as show:
        try:
            while True:
                found = watch.ask(lambda yard: queries.statuses(yard, wanted), deadline)
                if missing := [number for number in wanted if number not in found]:
                    raise no_task(missing)
                open_now = sorted(status for status in found.values() if status not in queries.ENDED)
                left = POLL_STATUS if deadline is None else deadline - time.monotonic()
                if not open_now or left <= 0:
                    break
                counts = {status: open_now.count(status) for status in open_now}
                show("waiting: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
                watch.pause(min(left, POLL_STATUS))
            ends = watch.ask(lambda yard: queries.endings(yard, wanted))
        finally:
            watch.close()
    return ends, any(end.status not in queries.ENDED for end in ends)


def exit_code(ends: Iterable[Ending], timed_out: bool) -> int:
    """One code for several tasks: a failure outweighs a cancellation, running out of time outweighs both."""
    statuses = {end.status for end in ends}
    if timed_out:
        return TIMED_OUT
    return FAILED if "failed" in statuses else CANCELLED if "cancelled" in statuses else 0


@click.command(short_help="Wait until tasks have ended.")
@task_ids
@click.option("--timeout", metavar="DURATION", callback=duration, help="Give up after this long, like 10m.")
@json_option
@click.pass_obj
def wait(state: State, ids: tuple[int, ...], timeout: timedelta | None) -> None:
    """Wait until all of these tasks have ended.

    Exit code 0 if all completed, 1 if any failed, 6 if any was cancelled and none failed, 5 if --timeout ran out.
    """
    seconds = None if timeout is None else timeout.total_seconds()
    ends, timed_out = await_ends(state, ids, seconds)
    if state.json:
        say_json(ends)
    else:
        for end in ends:
            reason = f": {one_line(end.error)}" if end.error and end.status != "completed" else ""
            say(f"{end.id} {colored(end.status)}{reason}")
    raise click.exceptions.Exit(exit_code(ends, timed_out))


class Text:
    """Rows of a transcript as text: output and the agent's words as they are, all else with its kind on every line."""

    def __init__(self) -> None:
        self._kind = ""
        self._at_line_start = True

    def add(self, kind: str, body: str) -> str:
        """What to print for one more row."""
        text = clean(body)
        before = "\n" if kind != self._kind and not self._at_line_start else ""
        fresh = self._at_line_start or before != ""
        self._kind = kind
        if kind not in STREAMS and not text.endswith("\n"):
            text += "\n"
        if not text:
            return before
        self._at_line_start = text.endswith("\n")
        if kind in PLAIN:
            return before + text
        mark = click.style(f"[{one_line(kind)}]", fg="red" if kind == "error" else "blue")
        lines = text.splitlines(keepends=True)
        return before + "".join(
            line if index == 0 and not fresh else f"{mark} {line}" for index, line in enumerate(lines)
        )

    def end(self) -> str:
        """What to print after the last row."""
        at_start, self._at_line_start, self._kind = self._at_line_start, True, ""
        return "" if at_start else "\n"


@click.command(short_help="What a task's agent said and did.")
@task_id
@click.option("--follow", "-f", is_flag=True, help="Go on, through later attempts, until the task ends.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Attempt number N instead of the latest.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Begin with the last N entries.")
@json_option
@click.pass_obj
def logs(state: State, task_id: int, follow: bool, attempt: int | None, tail: int | None) -> None:
    """Print the transcript of a task's latest attempt.

    What a command printed, or an agent said, is printed as it is; other lines begin with their kind, like [tool_call].
    With --json it is one object per entry.
    """
    watch = Watch(state, [task_id])
    try:
        _Logs(state, watch, task_id, tail).run(attempt, follow)
    finally:
        watch.close()


class _Logs:
    def __init__(self, state: State, watch: Watch, task: int, tail: int | None) -> None:
        self._json = state.json
        self._watch = watch
        self._task = task
        self._tail = tail
        self._text = Text()

    def run(self, number: int | None, follow: bool) -> None:
        """Print from attempt `number` (the latest if None) on; that one only unless `follow`."""
        status, tries = self._progress()
        done = self._start(number, tries) - 1
        if not tries:
            hint = "waiting for it to start" if follow else f"taskyard explain {self._task} says why"
            say(f"Task {self._task} is {status} and has no attempt yet; {hint}.", err=True)
        seen: int | None = None
        while True:
            current = next((found for found in tries if found.number > done), None)
            if current is not None:
                seen = self._print(current, self._skipped(current) if seen is None else seen)
                # The ending was read before the rows, and nothing is added after an ending: these were all.
                if follow and current.outcome is not None:
                    self._finish(f"attempt {current.number}: {current.outcome}")
                    done, seen = current.number, 0
                    continue
            if not follow or status in queries.ENDED:
                break
            self._watch.pause(POLL_TRANSCRIPT if status == "running" else POLL_STATUS)
            status, tries = self._progress()
        self._finish()

    def _progress(self) -> tuple[str, list[Try]]:
        found = self._watch.ask(lambda yard: queries.progress(yard, self._task))
        if found is None:
            raise no_task([self._task])
        return found

    def _start(self, number: int | None, tries: list[Try]) -> int:
        numbers = [found.number for found in tries]
        if number is not None and number not in numbers:
            there = f"It has {', '.join(map(str, numbers))}." if numbers else "It has none yet."
            raise TaskyardError(f"Task {self._task} has no attempt {number}.", there, "TY002")
        return number or max(numbers, default=1)

    def _skipped(self, current: Try) -> int:
        tail = self._tail
        if tail is None:
            return 0
        return self._watch.ask(lambda yard: queries.before_tail(yard, current.id, tail))

    def _print(self, current: Try, seen: int) -> int:
        while True:
            page = self._watch.ask(partial(queries.transcript, attempt_id=current.id, after=seen))
            for entry in page:
                if self._json:
                    say_json({"attempt": current.number, "attempt_id": current.id, **asdict(entry)}, line=True)
                else:
                    say(self._text.add(entry.kind, entry.body), newline=False)
                seen = entry.seq
            if len(page) < queries.PAGE:
                return seen

    def _finish(self, said: str = "") -> None:
        if not self._json:
            say(self._text.end(), newline=False)
            if said:
                say(click.style(said, dim=True), err=True)
