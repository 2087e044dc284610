"""The runner's loops: claim while there is room, one heartbeat for all leases, a tick where it is our turn."""

import asyncio
import logging
import os
import random
import signal
import socket
from dataclasses import dataclass, field, replace
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import psycopg

from .. import verbs
from ..errors import from_database
from ..postgres import Cluster
from ..sandbox.levels import Confinement, Level, close_own_memory, examine
from ..verbs import Directive
from ..workspaces.cleaning import KEPT, Cleaning
from ..workspaces.quota import DEFAULT
from .attempt import Attempt
from .link import Link
from .offers import AGAIN, LOADED, Offers
from .places import Places
from .process import Reaper

log = logging.getLogger("taskyard.runner")

POLL = 15.0  # seconds, jittered by half; a notification may always be missed
# A task that was inserted before this runner slept, and committed after it had looked, notifies nobody: look again
# after this, and then at pauses that double up to POLL; so a task waits about as long as its transaction was open.
SECOND_LOOK = 1.0
POLL_POOLER = 2.0
HEARTBEAT = 5.0
TICK = 1.0
CLEAN_UP = 3600.0  # seconds between two looks for folders of tasks that are over
TRY_SANDBOX = 30.0  # seconds between two tries to set up a sandbox that failed


@dataclass(kw_only=True)
class Options:
    """How to run.

    `pooler`: the DSN leads through a transaction pooler, so no LISTEN, no session lock, no prepared statements. `keep`:
    how long files stay after a task's end. `quota`: bytes of the disk that one task may fill.
    """

    dsn: str
    name: str
    host: str = field(default_factory=socket.gethostname)
    slots: int = 2
    labels: list[str] = field(default_factory=list[str])
    lease: timedelta = timedelta(seconds=60)
    pooler: bool = False
    sandbox: Level = "strict"
    cluster: Cluster | None = None
    keep: timedelta = KEPT
    quota: int = DEFAULT


def run(options: Options) -> int:
    """Run in the foreground until told to stop; returns the exit code.

    The first SIGTERM or SIGINT lets running attempts end and claims nothing more; the second stops them and gives their
    tasks back. Raises TaskyardError where the database refuses this runner.
    """
    close_own_memory()
    return asyncio.run(_Runner(options).run())


class _Unregistered(Exception):
    """The database gave this runner up; it has to begin anew."""


class _Runner:
    def __init__(self, options: Options) -> None:
        self._options = options
        self._link = Link(options.dsn, options.pooler, options.cluster, self._notified)
        self._attempts: dict[int, Attempt] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._beat_now = asyncio.Event()
        self._our_tick = asyncio.Event()
        self._in_trouble = asyncio.Event()
        self._draining = False
        self._stopped = asyncio.Event()
        self._reaper = Reaper()
        self._offers = Offers()
        self._places: Places | None = None
        self._cleaning: Cleaning | None = None
        self._confinement = Confinement(options.sandbox)
        self._id = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        try:
            while not self._stopped.is_set():
                await self._register()
                try:
                    await self._serve()
                except* _Unregistered:
                    log.warning("the database gave this runner up; its work is stopped, registering again")
                    await self._stop_all("lost")
                except* psycopg.Error as refused:
                    raise from_database(_first(refused)) from refused
            if self._id:
                await self._link.call(verbs.retire_runner, self._id)
            return 0
        finally:
            await self._stop_all("shutdown")
            await self._link.close()
            self._reaper.close()

    def _signalled(self) -> None:
        if not self._draining:
            self._draining = True
            if self._attempts:
                log.info(
                    "finishing %s running; once more to stop them and give their tasks back",
                    len(self._attempts),
                )
        else:
            for attempt in list(self._attempts.values()):
                attempt.stop("shutdown")
        self._wake.set()

    async def _register(self) -> None:
        options = self._options
        offered, self._confinement = await asyncio.gather(
            self._offers.first(await self._link.call(verbs.known_providers)),
            asyncio.to_thread(examine, options.sandbox, os.environ),
        )
        self._places = Places(*self._link.where, account=self._confinement.account)
        self._cleaning = Cleaning(self._places, self._confinement, options.keep)
        try:
            self._id = await self._link.call(
                verbs.register_runner,
                options.name,
                options.slots,
                options.labels,
                offered,
                version("taskyard"),
                options.lease,
                options.host,
                self._confinement.told(),
            )
        except psycopg.Error as error:
            raise from_database(error) from error
        log.info(
            "runner %s is up: %s slots, labels %s, sandbox %s",
            options.name,
            options.slots,
            ", ".join(options.labels) or "none",
            options.sandbox,
        )
        if self._confinement.trouble is not None:
            log.error("the sandbox cannot be set up, so nothing is claimed: %s", self._confinement.trouble)
        elif options.sandbox == "none":
            log.warning("NO SANDBOX: whatever an agent does, it does as the user of this runner")

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            helpers = [
                group.create_task(helper())
                for helper in (self._beat, self._tick, self._offer, self._look, self._clean_up, self._mend)
            ]
            if not self._options.pooler:
                helpers.append(group.create_task(self._link.hear(self._id)))
            await group.create_task(self._claim())
            self._stopped.set()
            for helper in helpers:
                helper.cancel()

    async def _claim(self) -> None:
        """Claim while there is room, until draining is done."""
        poll = POLL_POOLER if self._options.pooler else POLL
        wait = poll
        while not (self._draining and not self._attempts):
            self._wake.clear()
            room = 0 if self._draining else self._options.slots - len(self._attempts)
            if room == 0:
                await self._link.sleep_end()
                await self._wake.wait()
                continue
            claims = await self._ours(verbs.claim_task, room)
            for claim in claims:
                assert self._places is not None and self._cleaning is not None
                attempt = Attempt(
                    claim,
                    self._link,
                    self._reaper,
                    self._places,
                    self._confinement,
                    self._cleaning,
                    self._options.quota,
                )
                self._attempts[claim.attempt_id] = attempt
                task = asyncio.create_task(self._run(attempt))
                self._work.add(task)
                task.add_done_callback(self._work.discard)
            if len(claims) == room:
                continue
            if await self._link.sleep_begin():
                wait = SECOND_LOOK
                continue  # from now on we are notified; look once more for what came before that
            try:
                async with asyncio.timeout(wait * random.uniform(0.5, 1.5)):
                    await self._wake.wait()
            except TimeoutError:
                wait = min(2 * wait, poll)

    async def _run(self, attempt: Attempt) -> None:
        try:
            await attempt.run()
        except Exception:
            log.exception(
                "task %s: attempt %s ended in an error of the runner",
                attempt.claim.task_id,
                attempt.claim.number,
            )
        finally:
            self._attempts.pop(attempt.claim.attempt_id, None)
            if attempt.sandbox_failed is not None and self._confinement.trouble is None:
                self._confinement = replace(self._confinement, trouble=str(attempt.sandbox_failed))
                self._in_trouble.set()
            self._wake.set()

    async def _beat(self) -> None:
        """Renew all leases at once, and do what comes back."""
        pause = min(HEARTBEAT, self._options.lease.total_seconds() / 4)
        while True:
            self._beat_now.clear()
            attempts = list(self._attempts)
            progress = [self._attempts[a].progress_at for a in attempts]
            directives: list[Directive] = await self._ours(verbs.heartbeat, attempts, progress)
            our_tick = False
            for directive in directives:
                our_tick |= directive.directive == "tick"
                attempt = self._attempts.get(directive.attempt_id or 0)
                if attempt is not None and directive.directive == "message":
                    attempt.mail()
                elif attempt is not None and directive.directive in ("lost", "cancel", "wait", "handoff", "release"):
                    attempt.stop(directive.directive, directive.detail)
            if our_tick:
                self._our_tick.set()
            else:
                self._our_tick.clear()
            try:
                async with asyncio.timeout(pause * random.uniform(0.9, 1.1)):
                    await self._beat_now.wait()
            except TimeoutError:
                pass

    async def _tick(self) -> None:
        while True:
            await self._our_tick.wait()
            if await self._link.call(verbs.tick, self._id):
                self._wake.set()  # a session is not notified of sleepers when it is the only one
            await asyncio.sleep(TICK)

    async def _offer(self) -> None:
        """Offer what took longer than the start, and then what changes: a tool installed, a login made."""
        news = await self._offers.rest()
        while True:
            await self._tell(news)
            await asyncio.sleep(AGAIN * random.uniform(0.9, 1.1))
            news = await self._offers.changed(await self._link.call(verbs.known_providers))

    async def _look(self) -> None:
        """Which local models are in memory."""
        while True:
            await asyncio.sleep(LOADED * random.uniform(0.9, 1.1))
            await self._tell(await self._offers.loaded())

    async def _tell(self, news: list[dict[str, Any]]) -> None:
        for offer in news:
            if offer["state"] != "ready" and offer["provider"] != "command":
                log.debug("provider %s: %s (%s)", offer["provider"], offer["state"], offer["detail"])
        if news:
            await self._ours(verbs.offer_providers, news)
            self._wake.set()

    async def _clean_up(self) -> None:
        """Remove what is kept on this host for tasks that are over."""
        assert self._places is not None and self._cleaning is not None
        while True:
            kept = await asyncio.to_thread(self._places.tasks)
            running = {attempt.claim.task_id for attempt in self._attempts.values()}
            if kept:
                await self._cleaning.clean(await self._link.call(verbs.tasks_over, kept), running)
            await asyncio.sleep(CLEAN_UP)

    async def _mend(self) -> None:
        """Where the sandbox cannot be set up, claim nothing and try again now and then: somebody may have mended it."""
        if self._confinement.trouble is not None:
            self._in_trouble.set()
        while True:
            await self._in_trouble.wait()
            self._in_trouble.clear()
            await self._ours(verbs.report_sandbox, self._confinement.trouble)
            while self._confinement.trouble is not None:
                await asyncio.sleep(TRY_SANDBOX)
                self._confinement = await asyncio.to_thread(examine, self._options.sandbox, os.environ)
            assert self._places is not None
            self._places.account = self._confinement.account
            self._cleaning = Cleaning(self._places, self._confinement, self._options.keep)
            await self._ours(verbs.report_sandbox, None)
            log.info("the sandbox can be set up now")
            self._wake.set()

    async def _ours(self, verb: Any, *args: Any) -> Any:
        """Call a verb that takes our id. Raises _Unregistered where the database does not know us any more."""
        try:
            return await self._link.call(verb, self._id, *args)
        except psycopg.Error as error:
            if verbs.is_unregistered(error):
                raise _Unregistered from error
            raise

    async def _stop_all(self, reason: Any) -> None:
        for attempt in list(self._attempts.values()):
            attempt.stop(reason)
        if self._work:
            await asyncio.wait(self._work, timeout=30)
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    def _notified(self, channel: str) -> None:
        if channel == "task_ready":
            self._wake.set()
        else:
            self._beat_now.set()


def _first(group: BaseExceptionGroup[psycopg.Error]) -> psycopg.Error:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
