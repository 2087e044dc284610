"""One attempt: from the claim to the report."""

import asyncio
import logging
import os
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import psycopg

from .. import verbs
from ..adapters import Adapter, CannotRun, Exit, Launch, Reading, Run, Said, Session
from ..adapters.registry import adapters, probe
from ..sandbox.artifacts import collect
from ..sandbox.errors import SandboxError
from ..sandbox.levels import Confinement
from ..verbs import Claim, Ending, Event
from . import confined, snapshot
from .lines import Lines
from .link import Link
from .places import Places, Rooms
from .process import STDOUT_TAIL, STRUCTURED_TAIL, Child, Reaper
from .reports import Reports
from .strays import end_strays
from .transcript import Transcript
from .watch import Late, Watch

log = logging.getLogger("taskyard.runner")

Reason = Literal["lost", "cancel", "wait", "release", "shutdown"]

SPOKEN = ("text", "thinking", "tool_call", "tool_result")
LOOK = 0.5  # seconds between two looks at the time-outs
SETTLE = 60.0  # seconds between two looks at what the tool left outside of its own folders
RETRY = timedelta(seconds=15)  # until a task is claimed again whose sandbox could not be set up here


class Attempt:
    """Runs one claim. stop() may be called at any time; run() reports, unless the attempt was lost."""

    def __init__(self, claim: Claim, link: Link, reaper: Reaper, places: Places, confinement: Confinement) -> None:
        self.claim = claim
        self.sandbox_failed: SandboxError | None = None
        self._link = link
        self._reaper = reaper
        self._places = places
        self._confinement = confinement
        self._network = confined.Network()
        self._adapter: Adapter = adapters()[claim.adapter]
        self._child: Child | None = None
        self._reason: Reason | None = None
        self._why = "the runner was stopped"
        self._late: tuple[Late, str] | None = None
        self._transcript = Transcript(self._send)
        self._reports = Reports(claim.attempt_id, link.call)

    @property
    def progress_at(self) -> datetime | None:
        """When it last showed output."""
        return self._transcript.progress_at

    def stop(self, reason: Reason, why: str | None = None) -> None:
        """End the work, at once where the attempt is lost, politely otherwise.

        wait: a human was asked; release and shutdown: the task is given back, saying `why`.
        """
        if self._reason != "lost":
            self._reason = reason
            self._why = why or self._why
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
            async with self._places.rooms(claim, self._given(), lasting=self._adapter.structured) as rooms:
                ending = await self._run(rooms)
                await self._collect(rooms)
                if self._adapter.structured and ending.outcome != "completed":
                    await self._keep(rooms, ending)
        except CannotRun as error:
            return await self._cannot_run(str(error))
        except SandboxError as error:
            self.sandbox_failed = error
            return Ending("network", error=str(error))
        except OSError as error:
            return Ending("failed", error=f"The command could not be started: {error.strerror or error}.")
        return ending

    async def _cannot_run(self, why: str) -> Ending:
        """A tool or login that went since it was offered is this host's trouble; anything else is the task's."""
        offer = await asyncio.to_thread(probe, self._adapter, self.claim.settings, os.environ)
        outcome = "permission_denied" if offer.state == "ready" else "network"
        return Ending(outcome, error=why, evidence=why)

    def _given(self) -> Path | None:
        """The directory that the task names. Raises CannotRun where this host does not have it."""
        if self.claim.workspace is None:
            return None
        given = Path(self.claim.workspace).expanduser()
        if not given.is_absolute() or not given.is_dir():
            raise CannotRun(f"This host has no directory {self.claim.workspace}.")
        account = self._confinement.account
        if account is not None and account.switch and "write" in self.claim.permissions:
            confined.check_writable(given, account)
        return given

    async def _run(self, rooms: Rooms) -> Ending:
        claim, adapter, confinement = self.claim, self._adapter, self._confinement
        jailed = confinement.level == "strict"
        run = Run(claim, rooms.workspace, rooms.tool, os.environ, confined.GATEWAY if jailed else None)
        launch = await asyncio.to_thread(adapter.prepare, run)
        reading = adapter.read(run)
        try:
            async with confined.started(claim, launch, rooms, confinement, self._reaper, self._network) as self._child:
                log.debug("task %s: attempt %s is process %s", claim.task_id, claim.number, self._child.pid)
                if self._reason is not None:
                    self._child.stop()
                ended = await self._attend(self._child, run, launch, reading)
        finally:
            if adapter.structured:
                if not jailed:
                    await asyncio.to_thread(end_strays, str(claim.attempt_id))
                await asyncio.to_thread(adapter.settle, run)
        return self._ending(ended, reading)

    async def _attend(self, child: Child, run: Run, launch: Launch, reading: Reading) -> Exit:
        """Listen to the child until it ends, and stop it where it takes too long."""
        claim, adapter = self.claim, self._adapter
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
        running = asyncio.create_task(child.run(launch.stdin, sink, tail))
        settled = watch.started
        try:
            while not running.done():
                # The wall clock may end within the next look.
                left = watch.started + claim.timeout.total_seconds() - time.monotonic()
                await asyncio.wait({running}, timeout=LOOK if self._late else max(0.01, min(LOOK, left)))
                if not running.done() and self._late is None and (late := watch.verdict(time.monotonic())):
                    self._late = late
                    child.stop()
                for refusal in self._network.refusals():
                    await self._transcript.say("note", refusal, None)
                if time.monotonic() - settled > SETTLE:
                    settled = time.monotonic()
                    await asyncio.to_thread(adapter.settle, run)
            ended = await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        if hearing is not None:
            await hearing.end()
        return ended

    def _ending(self, ended: Exit, reading: Reading) -> Ending:
        """Who ended it decides first: the exit of a child that we stopped tells nothing."""
        if self._reason is not None:
            ending = Ending("waiting" if self._reason == "wait" else "cancelled", exit_code=ended.code)
        elif self._late is not None:
            outcome, sentence = self._late
            ending = Ending(outcome, error=sentence, exit_code=ended.code, evidence=ended.stderr[-2000:])
        else:
            ending = reading.ending(ended)
        return replace(
            ending, usage=ending.usage or self._reports.usage, session_id=ending.session_id or self._reports.session
        )

    async def _collect(self, rooms: Rooms) -> None:
        """What the child left to be kept, and what it did in the network: nothing of it is at work any more."""
        if self._reason == "lost":
            return
        jailed = self._confinement.level == "strict" and "write" in self.claim.permissions
        if rooms.given and jailed and confined.put_aside(rooms.workspace):
            await self._transcript.say("note", ".git/commondir was put aside: git would have obeyed it.", None)
        found = await asyncio.to_thread(collect, rooms.artifacts)
        for a in found.artifacts:
            await self._link.call(verbs.add_artifact, self.claim.attempt_id, a.path, a.size, a.sha256, a.content)
        for path, why in found.refused[:20]:
            await self._transcript.say("note", f"The artifact {path} was not kept: {why}", None)
        if not found.complete:
            await self._transcript.say("note", "There were more artifacts than are kept of one attempt.", None)
        for refusal in self._network.refusals():
            await self._transcript.say("note", refusal, None)
        if (summary := self._network.summary()) is not None:
            await self._transcript.say("note", *summary)

    async def _keep(self, rooms: Rooms, ending: Ending) -> None:
        """Whoever takes over finds the work so far as a commit, where the workspace is a git repository."""
        claim = self.claim
        if self._reason == "lost":
            return
        message = f"Task {claim.task_id}, attempt {claim.number}: work so far\n\n{ending.error or ending.outcome}"
        kept = await snapshot.take(rooms, claim.task_id, claim.number, message, self._confinement)
        if kept is not None:
            note = f"The work so far is commit {kept.commit[:12]} ({kept.ref}), {kept.files} files."
            await self._transcript.say("note", note, {"commit": kept.commit, "ref": kept.ref, "files": kept.files})

    async def _report(self, ending: Ending) -> None:
        claim = self.claim
        if self._reason == "lost":
            log.warning("task %s: attempt %s is lost; its work was stopped", claim.task_id, claim.number)
            return
        if self._reason in ("shutdown", "release"):
            status = await self._link.call(verbs.release_task, claim.attempt_id, self._why)
        elif self.sandbox_failed is not None:
            # Not the task's trouble, nor its provider's.
            status = await self._link.call(verbs.release_task, claim.attempt_id, str(self.sandbox_failed), RETRY)
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
