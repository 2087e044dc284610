"""One attempt: from the claim to the report."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import psycopg

from .. import agent_verbs, verbs
from ..adapters import Adapter, CannotRun, Exit, Launch, Reading, Run, Said, Session
from ..adapters.registry import adapters, probe
from ..channel import Address
from ..channel.server import Server, on_loopback
from ..channel.tools import Channel, Pause
from ..sandbox.errors import SandboxError
from ..sandbox.levels import Confinement
from ..verbs import Claim, Ending, Event
from ..workspaces import Cleaning, over_quota
from . import confined, events
from .hearing import Hearing
from .keeping import Keeping
from .link import Link
from .patience import Patience
from .places import Places, Rooms
from .process import STDOUT_TAIL, STRUCTURED_TAIL, Child, Reaper
from .reports import Reports
from .strays import end_strays
from .transcript import Transcript
from .verify import verify
from .watch import Late, Watch

log = logging.getLogger("taskyard.runner")

Reason = Literal["lost", "cancel", "wait", "handoff", "release", "shutdown"]

SPOKEN = ("text", "thinking", "tool_call", "tool_result")
AFTER = {"wait": "waiting", "handoff": "handed_off"}
LOOK = 0.5  # seconds between two looks at the time-outs
SETTLE = 60.0  # seconds between two looks at what the tool left outside of its own folders
OF_THE_PROVIDER = ("rate_limited", "quota_exhausted", "overloaded", "unauthenticated", "network")
RETRY = timedelta(seconds=15)  # until a task is claimed again whose sandbox could not be set up here


class Attempt:
    """Runs one claim. stop() may be called at any time; run() reports, unless the attempt was lost."""

    def __init__(
        self,
        claim: Claim,
        link: Link,
        reaper: Reaper,
        places: Places,
        confinement: Confinement,
        cleaning: Cleaning,
        quota: int,
    ) -> None:
        self.claim = claim
        self.sandbox_failed: SandboxError | None = None
        self._link = link
        self._reaper = reaper
        self._places = places
        self._confinement = confinement
        self._cleaning = cleaning
        self._quota = quota
        self._transcript = Transcript(self._send)
        self._keeping = Keeping(claim, link.call, places, confinement, self._note)
        keeping = self._keeping
        self._patience = Patience(self._impatient)
        self._channel = Channel(claim.attempt_id, link.call, keeping.file, self._patience.begin, keeping.checkpoint)
        self._server = Server(self._channel)
        self._loading: asyncio.Task[None] | None = None
        self._network = confined.Network(self._server)
        self._adapter: Adapter = adapters()[claim.adapter]
        self._child: Child | None = None
        self._reason: Reason | None = None
        self._why = "the runner was stopped"
        self._late: tuple[Late | Literal["failed"], str] | None = None
        self._reports = Reports(claim.attempt_id, link.call)

    @property
    def progress_at(self) -> datetime | None:
        """When it last showed output."""
        return self._transcript.progress_at

    @property
    def _lost(self) -> bool:
        return self._reason == "lost"

    def stop(self, reason: Reason, why: str | None = None) -> None:
        """End the work, at once where the attempt is lost, politely otherwise.

        wait: its agent waits for something; handoff: another is to go on; both leave an agent that was told so the time
        to end its turn. release and shutdown: the task is given back, saying `why`.
        """
        if reason in ("wait", "handoff") and self._patience.lasts:
            return
        if self._reason != "lost":
            self._reason = reason
            self._why = why or self._why
        if self._child is not None:
            if reason == "lost":
                self._child.kill()
            else:
                self._child.stop()

    def mail(self) -> None:
        """Something came for its agent: it goes along with the next answer of the channel."""
        self._channel.mail = True

    async def run(self) -> None:
        """Run to the end and report it. Raises nothing that the runner would have to handle."""
        claim = self.claim
        events.started(claim)
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
            events.lost(claim)
        finally:
            sending.cancel()
            reporting.cancel()
            await asyncio.gather(sending, reporting, return_exceptions=True)

    async def _work(self) -> Ending:
        claim = self.claim
        if self._reason is not None:
            return Ending("cancelled")
        try:
            async with (
                self._places.rooms(claim, self._given(), lasting=self._adapter.structured) as rooms,
                self._keeping.rooms(rooms) as rooms,
            ):
                return await self._kept(rooms, await self._run(rooms))
        except CannotRun as error:
            return await self._cannot_run(str(error))
        except SandboxError as error:
            self.sandbox_failed = error
            return Ending("network", error=str(error))
        except OSError as error:
            return Ending("failed", error=f"The command could not be started: {error.strerror or error}.")

    async def _kept(self, rooms: Rooms, ending: Ending) -> Ending:
        """The ending, once all that is to be kept is, and is proved where it has to be."""
        claim, keeping = self.claim, self._keeping
        if self._lost:
            return ending
        commit = await keeping.deliver(ending.outcome)
        if ending.outcome == "completed" and claim.verify is not None and self._reason is None:
            ending = await self._prove(rooms, ending, commit)
        if self._lost:
            return ending
        await keeping.collect()
        await self._note_network()
        if self._adapter.structured and ending.outcome != "completed":
            await keeping.unfinished(ending)
        if ending.outcome == "completed":
            await keeping.push()
        if ending.outcome == "handed_off":
            await asyncio.to_thread(self._places.keep_files, claim, rooms)
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
        claim, confinement = self.claim, self._confinement
        jailed = confinement.level == "strict"
        async with contextlib.AsyncExitStack() as serving:
            if jailed:
                channel = Address(confined.CHANNEL, self._server.token)
            else:
                channel = await serving.enter_async_context(on_loopback(self._server))
            await asyncio.to_thread(confined.install_client, rooms, confinement.account)
            if self._adapter.structured:
                self._loading = asyncio.create_task(self._server.prepare())  # while the tool starts
            run = Run(claim, rooms.workspace, rooms.tool, os.environ, confined.GATEWAY if jailed else None, channel)
            return await self._run_tool(run, rooms)

    async def _run_tool(self, run: Run, rooms: Rooms) -> Ending:
        claim, adapter, confinement = self.claim, self._adapter, self._confinement
        jailed = confinement.level == "strict"
        launch = await asyncio.to_thread(adapter.prepare, run)
        reading = adapter.read(run)
        try:
            async with confined.started(
                claim, launch, rooms, confinement, self._reaper, self._network, run.channel
            ) as self._child:
                log.debug("task %s: attempt %s is process %s", claim.task_id, claim.number, self._child.pid)
                if self._reason is not None:
                    self._child.stop()
                ended = await self._attend(self._child, run, launch, reading)
        finally:
            self._child = None  # its number may soon be another's
            self._patience.end()
            if adapter.structured:
                if not jailed:
                    await asyncio.to_thread(end_strays, str(claim.attempt_id))
                await asyncio.to_thread(adapter.settle, run)
        return self._ending(ended, reading)

    async def _attend(self, child: Child, run: Run, launch: Launch, reading: Reading) -> Exit:
        """Listen to the child until it ends, and stop it where it takes too long."""
        claim, adapter = self.claim, self._adapter
        hearing = Hearing(reading, self.seen, self.give_up) if adapter.structured else None
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
        filling = asyncio.create_task(over_quota(self._keeping.folders(run.home), self._quota))
        try:
            while not running.done():
                # The wall clock may end within the next look.
                left = watch.started + claim.timeout.total_seconds() - time.monotonic()
                await asyncio.wait({running}, timeout=LOOK if self._late else max(0.01, min(LOOK, left)))
                if not running.done() and self._late is None and (late := watch.verdict(time.monotonic())):
                    self._late = late
                    child.stop()
                if not running.done() and self._late is None and filling.done():
                    self._late = ("failed", filling.result())
                    child.stop()
                for refusal in self._network.refusals():
                    await self._note(refusal)
                if time.monotonic() - settled > SETTLE:
                    settled = time.monotonic()
                    await asyncio.to_thread(adapter.settle, run)
            ended = await running
        finally:
            running.cancel()
            filling.cancel()
            await asyncio.gather(running, filling, return_exceptions=True)
        if hearing is not None:
            await hearing.end()
        return ended

    def _ending(self, ended: Exit, reading: Reading) -> Ending:
        """Who ended it decides first: the exit of a child that we stopped tells nothing."""
        if self._reason is not None:
            ending = Ending(AFTER.get(self._reason, "cancelled"), exit_code=ended.code)
        elif self._late is not None:
            outcome, sentence = self._late
            ending = Ending(outcome, error=sentence, exit_code=ended.code, evidence=ended.stderr[-2000:])
        else:
            ending = reading.ending(ended)
            if self._patience.asked is not None and ending.outcome not in OF_THE_PROVIDER:
                # It ended its turn, as it was told.
                usage, session = ending.usage, ending.session_id
                ending = Ending(AFTER[self._patience.asked], exit_code=ended.code, usage=usage, session_id=session)
        return replace(
            ending, usage=ending.usage or self._reports.usage, session_id=ending.session_id or self._reports.session
        )

    async def _prove(self, rooms: Rooms, ending: Ending, commit: str | None) -> Ending:
        """Run the command that proves the work; what it says decides."""
        claim = self.claim
        network = confined.Network()

        @contextlib.asynccontextmanager
        async def start(allowed: Claim, launch: Launch) -> AsyncGenerator[Child]:
            async with confined.started(allowed, launch, rooms, self._confinement, self._reaper, network) as child:
                self._child = child
                try:
                    yield child
                finally:
                    self._child = None

        proof = await verify(claim, start, sink=self._transcript.add, jailed=self._confinement.level == "strict")
        if self._reason is not None:
            outcome = AFTER.get(self._reason, "cancelled")
            return Ending(outcome, usage=ending.usage, session_id=ending.session_id)
        await self._link.call(
            agent_verbs.report_verification,
            claim.attempt_id,
            proof.passed,
            proof.exit_code,
            proof.output_tail,
            proof.duration,
            commit,
        )
        if self._keeping.work is not None:
            await self._keeping.work.disregard()
        return ending if proof.passed else proof.failure(ending)

    async def _note(self, text: str, data: dict[str, Any] | None = None) -> None:
        await self._transcript.say("note", text, data)

    def _impatient(self, kind: Pause) -> None:
        if self._reason is None:
            self.stop(kind)

    async def _note_network(self) -> None:
        """What the child did in the network."""
        for refusal in self._network.refusals():
            await self._note(refusal)
        if (summary := self._network.summary()) is not None:
            await self._note(*summary)

    async def _report(self, ending: Ending) -> None:
        claim = self.claim
        if self._reason == "lost":
            events.lost(claim)
            return
        if self._reason in ("shutdown", "release"):
            status = await self._link.call(verbs.release_task, claim.attempt_id, self._why)
        elif self.sandbox_failed is not None:
            # Not the task's trouble, nor its provider's.
            status = await self._link.call(verbs.release_task, claim.attempt_id, str(self.sandbox_failed), RETRY)
        else:
            status = await self._link.call(verbs.complete_task, claim.attempt_id, ending)
        events.ended(claim, ending, status)
        if self._adapter.structured and status in ("completed", "cancelled"):
            await self._cleaning.ended(claim.task_id)

    async def _report_on(self) -> None:
        try:
            await self._reports.run()
        except psycopg.Error as error:
            if verbs.is_lost(error):
                self.stop("lost")
            else:  # its work goes on; the ending brings the numbers once more
                events.refused(self.claim, error)

    async def _send(self, lines: list[Event]) -> None:
        try:
            await self._link.call(verbs.append_transcript, self.claim.attempt_id, lines)
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
