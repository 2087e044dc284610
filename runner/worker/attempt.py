"""One attempt: from the claim to the report."""

import asyncio
import contextlib
import logging
import os
import tempfile
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import psycopg

from .. import verbs
from ..adapters import Adapter, CannotRun, Exit, Reading, Run, Said, Session
from ..adapters.registry import adapters, probe
from ..verbs import Claim, Ending, Event
from . import snapshot
from .lines import Lines
from .link import Link
from .places import Places
from .process import STDOUT_TAIL, STRUCTURED_TAIL, Child, Reaper, spawn
from .reports import Reports
from .strays import MARK, end_strays
from .transcript import Transcript
from .watch import Late, Watch

log = logging.getLogger("taskyard.runner")

Reason = Literal["lost", "cancel", "shutdown"]

SPOKEN = ("text", "thinking", "tool_call", "tool_result")
LOOK = 0.5  # seconds between two looks at the time-outs


class Attempt:
    """Runs one claim. stop() may be called at any time; run() reports, unless the attempt was lost."""

    def __init__(self, claim: Claim, link: Link, reaper: Reaper, places: Places) -> None:
        self.claim = claim
        self._link = link
        self._reaper = reaper
        self._places = places
        self._adapter: Adapter = adapters()[claim.adapter]
        self._child: Child | None = None
        self._reason: Reason | None = None
        self._late: tuple[Late, str] | None = None
        self._transcript = Transcript(self._send)
        self._reports = Reports(claim.attempt_id, link.call)

    @property
    def progress_at(self) -> datetime | None:
        """When it last showed output."""
        return self._transcript.progress_at

    def stop(self, reason: Reason) -> None:
        """End the work: politely for a cancellation or a shutdown, at once where the attempt is lost."""
        if self._reason != "lost":
            self._reason = reason
        if self._child is not None:
            if reason == "lost":
                self._child.kill()
            else:
                self._child.stop()

    async def run(self) -> None:
        """Run to the end and report it. Raises nothing that the runner would have to handle."""
        claim = self.claim
        log.info("task %s: attempt %s starts (%s)", claim.task_id, claim.number, _who(claim))
        sending = asyncio.create_task(self._transcript.run())
        reporting = asyncio.create_task(self._report_on())
        try:
            try:
                ending = await self._work()
            finally:
                self._transcript.close()
            self._reports.close()
            if self._reason != "lost":
                await asyncio.gather(sending, reporting)
            await self._report(ending)
        except psycopg.Error as error:
            if not verbs.is_lost(error):
                raise
            log.warning("task %s: attempt %s is lost; its work was stopped", claim.task_id, claim.number)
        finally:
            sending.cancel()
            reporting.cancel()
            await asyncio.gather(sending, reporting, return_exceptions=True)

    async def _work(self) -> Ending:
        claim = self.claim
        if self._reason is not None:
            return Ending("cancelled")
        try:
            async with self._folders() as (workspace, home):
                ending = await self._run(Run(claim, workspace, home, os.environ))
                if self._adapter.structured and ending.outcome != "completed":
                    await self._keep(workspace, ending)
        except CannotRun as error:
            return await self._cannot_run(str(error))
        except OSError as error:
            return Ending("failed", error=f"The command could not be started: {error.strerror or error}.")
        return ending

    async def _cannot_run(self, why: str) -> Ending:
        """A tool or login that went since it was offered is this host's trouble; anything else is the task's."""
        offer = await asyncio.to_thread(probe, self._adapter, self.claim.settings, os.environ)
        outcome = "permission_denied" if offer.state == "ready" else "network"
        return Ending(outcome, error=why, evidence=why)

    async def _run(self, run: Run) -> Ending:
        claim, adapter = self.claim, self._adapter
        launch = adapter.prepare(run)
        reading = adapter.read(run)
        mark = str(claim.attempt_id)
        env = {"TASKYARD_TASK": str(claim.task_id), "TASKYARD_ATTEMPT": str(claim.number), MARK: mark}
        self._child = await spawn(launch, run.workspace, env, self._reaper)
        log.debug("task %s: attempt %s is process %s", claim.task_id, claim.number, self._child.pid)
        if self._reason is not None:
            self._child.stop()
        hearing = _Hearing(self, reading) if adapter.structured else None
        watch = Watch(
            time.monotonic(),
            claim.timeout,
            claim.first_output_timeout or adapter.first_output,
            claim.idle_timeout or adapter.idle,
        )

        async def sink(kind: str, text: str) -> None:
            if hearing is None or kind == "error":
                await self._transcript.add(kind, text)
                watch.sign_of_life(time.monotonic(), hearing is None)
            else:
                watch.sign_of_life(time.monotonic(), await hearing.hear(text))

        tail = STDOUT_TAIL if hearing is None else STRUCTURED_TAIL
        running = asyncio.create_task(self._child.run(launch.stdin, sink, tail))
        try:
            while not running.done():
                # The wall clock may end within the next look.
                left = watch.started + claim.timeout.total_seconds() - time.monotonic()
                await asyncio.wait({running}, timeout=LOOK if self._late else max(0.01, min(LOOK, left)))
                if not running.done() and self._late is None and (late := watch.verdict(time.monotonic())):
                    self._late = late
                    self._child.stop()
            ended = await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            if hearing is not None:
                await asyncio.to_thread(end_strays, mark)
        if hearing is not None:
            await hearing.end()
        return self._ending(ended, reading)

    def _ending(self, ended: Exit, reading: Reading) -> Ending:
        """Who ended it decides first: the exit of a child that we stopped tells nothing."""
        if self._reason is not None:
            ending = Ending("cancelled", exit_code=ended.code)
        elif self._late is not None:
            outcome, sentence = self._late
            ending = Ending(outcome, error=sentence, exit_code=ended.code, evidence=ended.stderr[-2000:])
        else:
            ending = reading.ending(ended)
        return replace(
            ending, usage=ending.usage or self._reports.usage, session_id=ending.session_id or self._reports.session
        )

    async def _keep(self, directory: Path, ending: Ending) -> None:
        """Whoever takes over finds the work so far as a commit, where the workspace is a git repository."""
        claim = self.claim
        if self._reason == "lost":
            return
        message = f"Task {claim.task_id}, attempt {claim.number}: work so far\n\n{ending.error or ending.outcome}"
        kept = await snapshot.take(directory, claim.task_id, claim.number, message)
        if kept is not None:
            note = f"The work so far is commit {kept.commit[:12]} ({kept.ref}), {kept.files} files."
            await self._transcript.say("note", note, {"commit": kept.commit, "ref": kept.ref, "files": kept.files})

    async def _report(self, ending: Ending) -> None:
        claim = self.claim
        if self._reason == "lost":
            log.warning("task %s: attempt %s is lost; its work was stopped", claim.task_id, claim.number)
            return
        if self._reason == "shutdown":
            status = await self._link.call(verbs.release_task, claim.attempt_id, "the runner was stopped")
        else:
            status = await self._link.call(verbs.complete_task, claim.attempt_id, ending)
        why = f" ({ending.error})" if ending.error and ending.outcome != "cancelled" else ""
        log.info("task %s: attempt %s %s, the task is %s%s", claim.task_id, claim.number, ending.outcome, status, why)
        if self._adapter.structured and status in ("completed", "cancelled"):
            await asyncio.to_thread(self._places.forget, claim.task_id)

    async def _report_on(self) -> None:
        try:
            await self._reports.run()
        except psycopg.Error as error:
            if verbs.is_lost(error):
                self.stop("lost")
            else:  # its work goes on; the ending brings the numbers once more
                log.warning("task %s: a report was refused: %s", self.claim.task_id, error)

    async def _send(self, events: list[Event]) -> None:
        try:
            await self._link.call(verbs.append_transcript, self.claim.attempt_id, events)
        except psycopg.Error as error:
            if verbs.is_lost(error):
                self.stop("lost")
            raise

    @contextlib.asynccontextmanager
    async def _folders(self) -> AsyncGenerator[tuple[Path, Path]]:
        """Working directory and tool's home: kept for a later attempt on this host, so that a session can be resumed.

        A plain command resumes nothing: it gets fresh ones, which go with the attempt.
        """
        claim = self.claim
        given = None
        if claim.workspace is not None:
            given = Path(claim.workspace).expanduser()
            if not given.is_absolute() or not given.is_dir():
                raise CannotRun(f"This host has no directory {claim.workspace}.")
        if self._adapter.structured:
            yield given or self._places.scratch(claim.task_id), self._places.home(claim.task_id, claim.provider)
            return
        with tempfile.TemporaryDirectory(prefix=f"taskyard-{claim.task_id}-", ignore_cleanup_errors=True) as folder:
            yield given or Path(folder), Path(folder)

    async def seen(self, seen: object) -> bool:
        """Pass on what a reading saw; returns whether it was the agent who spoke."""
        if isinstance(seen, Said):
            await self._transcript.say(seen.kind, seen.body, seen.data)
            return seen.kind in SPOKEN
        if isinstance(seen, Session):
            self._reports.note(seen.id)
            return False
        assert isinstance(seen, verbs.Usage | verbs.Window)
        self._reports.note(seen)
        return False

    def give_up(self) -> None:
        """The reading sees that the child will not end by itself."""
        if self._child is not None:
            self._child.stop()


class _Hearing:
    """Feeds a reading line by line."""

    def __init__(self, attempt: Attempt, reading: Reading) -> None:
        self._attempt = attempt
        self._reading = reading
        self._lines = Lines()

    async def hear(self, chunk: str) -> bool:
        """Returns whether the agent spoke."""
        return await self._read(self._lines.add(chunk))

    async def end(self) -> None:
        """No more output will come."""
        await self._read(self._lines.end())
        if self._lines.left_out:
            await self._attempt.seen(Said("note", f"{self._lines.left_out} lines were too long to read"))

    async def _read(self, lines: list[str]) -> bool:
        spoke = False
        for line in lines:
            for seen in self._reading.line(line):
                spoke |= await self._attempt.seen(seen)
            if self._reading.hopeless:
                self._attempt.give_up()
        return spoke


def _who(claim: Claim) -> str:
    return claim.agent if claim.provider in (claim.agent, "command") else f"{claim.agent} by {claim.provider}"
