"""The proof of done: the task's own command, run where the agent worked, after it has ended."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import timedelta

from ..adapters import Launch
from ..verbs import Claim, Ending
from .process import Child
from .strays import end_strays

LONGEST = timedelta(minutes=30)
TAIL = 20_000  # bytes of output that are kept (see report_verification())
# Both streams in the order in which they were written, whatever the command is.
WRAPPED = 'exec sh -c "$1" 2>&1'

# Starts a child for the claim: confined.started(), with rooms, confinement and servers of the attempt.
Start = Callable[[Claim, Launch], AbstractAsyncContextManager[Child]]
Sink = Callable[[str, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Verified:
    """What the command said. `exit_code` is None where it was stopped; `output_tail` are the last 20,000 bytes."""

    command: str
    passed: bool
    exit_code: int | None
    output_tail: str
    duration: timedelta

    def failure(self, ending: Ending) -> Ending:
        """How the attempt ends whose agent said that it was done."""
        code = "was stopped" if self.exit_code is None else f"ended with {self.exit_code}"
        return Ending(
            "verify_failed",
            error=f"The work was not proved: {self.command[:200]!r} {code}.",
            exit_code=self.exit_code,
            evidence=self.output_tail[-2000:],
            usage=ending.usage,
            session_id=ending.session_id,
        )


async def verify(
    claim: Claim, start: Start, *, longest: timedelta = LONGEST, sink: Sink | None = None, jailed: bool = True
) -> Verified:
    """Run claim.verify by `sh -c`, with what the claim may see and reach, and with leave to start programs.

    It gets claim.timeout, at most `longest`; all that it started is gone afterwards. `sink` is told its output as it
    comes, as ("output", text). Where the attempt is stopped meanwhile (Child.stop()), it has not passed. Raises what
    `start` raises.
    """
    assert claim.verify is not None
    allowed = replace(claim, permissions=sorted({*claim.permissions, "execute"}))
    launch = Launch(["sh", "-c", WRAPPED, "sh", claim.verify], b"")
    limit = min(claim.timeout, longest)
    tail = _Tail(sink)
    began = time.monotonic()
    stopped = False
    try:
        async with start(allowed, launch) as child:
            running = asyncio.create_task(child.run(launch.stdin, tail.add))
            try:
                done, _ = await asyncio.wait({running}, timeout=limit.total_seconds())
                if not done:
                    stopped = True
                    child.stop()
                ended = await running
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
    finally:
        if not jailed:
            await asyncio.to_thread(end_strays, str(claim.attempt_id))
    duration = timedelta(seconds=time.monotonic() - began)
    if stopped:
        tail.kept += f"\nStopped after {limit.total_seconds():.0f} seconds.".encode()
    code = None if stopped or ended.code < 0 else ended.code
    return Verified(claim.verify, code == 0, code, tail.text(), duration)


class _Tail:
    """The last bytes of the output."""

    def __init__(self, sink: Sink | None) -> None:
        self.kept = bytearray()
        self._sink = sink

    async def add(self, kind: str, text: str) -> None:
        self.kept += text.encode()
        if len(self.kept) > 2 * TAIL:
            del self.kept[:-TAIL]
        if self._sink is not None:
            await self._sink("output", text)

    def text(self) -> str:
        # A character that the cut goes through is left out.
        return bytes(self.kept[-TAIL:]).decode(errors="ignore")
