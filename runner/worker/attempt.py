"""One attempt: from the claim to the report."""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncGenerator
from datetime import datetime
from pathlib import Path
from typing import Literal

import psycopg

from .. import verbs
from ..adapters import ADAPTERS, CannotRun
from ..verbs import Claim, Ending, Event
from .link import Link
from .process import Child, Reaper, spawn
from .transcript import Transcript

log = logging.getLogger("taskyard.runner")

Reason = Literal["lost", "cancel", "shutdown"]


class Attempt:
    """Runs one claim. stop() may be called at any time; run() reports, unless the attempt was lost."""

    def __init__(self, claim: Claim, link: Link, reaper: Reaper) -> None:
        self.claim = claim
        self._link = link
        self._reaper = reaper
        self._child: Child | None = None
        self._reason: Reason | None = None
        self._transcript = Transcript(self._send)

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
        log.info("task %s: attempt %s starts (%s)", claim.task_id, claim.number, claim.agent)
        sending = asyncio.create_task(self._transcript.run())
        try:
            try:
                ending = await self._work()
            finally:
                self._transcript.close()
            if self._reason != "lost":
                await sending
            await self._report(ending)
        except psycopg.Error as error:
            if not verbs.is_lost(error):
                raise
            log.warning("task %s: attempt %s is lost; its work was stopped", claim.task_id, claim.number)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _work(self) -> Ending:
        claim = self.claim
        adapter = ADAPTERS[claim.adapter]
        if self._reason is not None:
            return Ending("cancelled")
        try:
            async with _directory(claim) as directory:
                launch = adapter.prepare(claim, directory)
                env = {"TASKYARD_TASK": str(claim.task_id), "TASKYARD_ATTEMPT": str(claim.number)}
                self._child = await spawn(launch, directory, env, self._reaper)
                if self._reason is not None:
                    self._child.stop()
                late = False
                running = asyncio.create_task(self._child.run(launch.stdin, self._transcript.add))
                try:
                    done, _ = await asyncio.wait({running}, timeout=claim.timeout.total_seconds())
                    if not done:
                        late = True
                        self._child.stop()
                    ended = await running
                finally:
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
        except CannotRun as error:
            return Ending("permission_denied", error=str(error))
        except OSError as error:
            return Ending("failed", error=f"The command could not be started: {error.strerror or error}.")
        if self._reason is not None:
            return Ending("cancelled", exit_code=ended.code)
        if late:
            return Ending(
                "timed_out",
                error=f"Stopped after {claim.timeout}.",
                exit_code=ended.code,
                evidence=ended.stderr[-2000:],
            )
        return adapter.conclude(claim, ended)

    async def _report(self, ending: Ending) -> None:
        claim = self.claim
        if self._reason == "lost":
            log.warning("task %s: attempt %s is lost; its work was stopped", claim.task_id, claim.number)
            return
        if self._reason == "shutdown":
            status = await self._link.call(verbs.release_task, claim.attempt_id, "the runner was stopped")
        else:
            status = await self._link.call(verbs.complete_task, claim.attempt_id, ending)
        log.info("task %s: attempt %s %s, the task is %s", claim.task_id, claim.number, ending.outcome, status)

    async def _send(self, events: list[Event]) -> None:
        try:
            await self._link.call(verbs.append_transcript, self.claim.attempt_id, events)
        except psycopg.Error as error:
            if verbs.is_lost(error):
                self.stop("lost")
            raise


@contextlib.asynccontextmanager
async def _directory(claim: Claim) -> AsyncGenerator[Path]:
    """The task's workspace, or a scratch directory that goes when the attempt ends."""
    if claim.workspace is not None:
        given = Path(claim.workspace).expanduser()
        if not given.is_absolute() or not given.is_dir():
            raise CannotRun(f"This host has no directory {claim.workspace}.")
        yield given
        return
    with tempfile.TemporaryDirectory(prefix=f"taskyard-{claim.task_id}-", ignore_cleanup_errors=True) as scratch:
        yield Path(scratch)
