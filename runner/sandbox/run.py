"""Helper commands in a jail, such as git on a workspace whose configuration an agent may have written."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..postgres.account import Account
from .errors import SandboxError
from .jail import Jail
from .policy import Policy

CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended: its exit status (128 and the signal's number where one ended it) and what it printed.

    `cut` tells that there was more output than is kept of each stream.
    """

    code: int
    stdout: bytes
    stderr: bytes
    cut: bool


async def run(
    policy: Policy,
    argv: Sequence[str],
    env: Mapping[str, str],
    account: Account,
    *,
    stdin: bytes = b"",
    timeout: float,
    output_limit: int,
) -> Done:
    """Run a command in a jail to its end; all that it started is gone afterwards, whatever happens.

    `timeout` is in seconds; `output_limit` in bytes, the first of each stream: the rest is read and dropped.
    Raises TimeoutError, SandboxError if it could not be confined (then it never ran), and what Jail raises.
    """
    with Jail(policy, argv, env, account) as jail:
        process = await asyncio.create_subprocess_exec(
            *jail.argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
            env=jail.env,
            pass_fds=jail.pass_fds,
            start_new_session=True,
        )
        assert process.stdin and process.stdout and process.stderr
        streams = [
            asyncio.create_task(_first(process.stdout, output_limit)),
            asyncio.create_task(_first(process.stderr, output_limit)),
        ]
        feeding = asyncio.create_task(_feed(process.stdin, stdin))
        entered = None
        try:
            async with asyncio.timeout(timeout):
                try:
                    entered = await jail.entered()
                except SandboxError as failed:
                    _kill(process)
                    _, (said, _) = await asyncio.gather(*streams)
                    raise jail.explained(failed, said.decode(errors="replace")) from failed
                (out, out_cut), (err, err_cut) = await asyncio.gather(*streams)
                return Done(await process.wait(), out, err, out_cut or err_cut)
        finally:
            _kill(process)
            for task in (feeding, *streams):
                task.cancel()
            await asyncio.gather(feeding, *streams, return_exceptions=True)
            await process.wait()
            if entered is not None:
                await entered.end()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _first(stream: asyncio.StreamReader, limit: int) -> tuple[bytes, bool]:
    """The first so many bytes, and whether there were more."""
    kept, cut = bytearray(), False
    while chunk := await stream.read(CHUNK):
        room = limit - len(kept)
        kept += chunk[:room]
        cut = cut or len(chunk) > room
    return bytes(kept), cut


async def _feed(pipe: asyncio.StreamWriter, content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        pipe.write(content)
        await pipe.drain()
        pipe.close()
        await pipe.wait_closed()
