"""A jail around one child: opens what it may see, builds the command to spawn, and meets it when it is inside.

    with Jail(policy, argv, env, account) as jail:
        process = await asyncio.create_subprocess_exec(
            *jail.argv, env=jail.env, cwd="/", pass_fds=jail.pass_fds, start_new_session=True
        )
        entered = await jail.entered()

As root the command first brings what only root can reach into reach (stage.py), and becomes the account by itself.
Spawn from the main thread (asyncio does): the kernel kills a jail when the thread ends that spawned it. The spawned
process is bwrap; killing it kills everything inside. What the program is told reaches it through a file of its own, so
bwrap starts with an empty environment: the child can read that of its process 1, and LD_PRELOAD would work outside.
"""

import array
import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from ..postgres.account import Account
from . import beneath, gate, seccomp
from .diagnosis import diagnose, facts
from .errors import SandboxError
from .host import find_bwrap, find_python, system_layout
from .policy import (
    HOME,
    Bind,
    Contents,
    Mount,
    Policy,
    account_files,
    argv,
    environment,
    layout,
    options,
    source_of,
)

GO = b"\x01"
CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid, as seen from here
SEE_BWRAP = "What bwrap printed on its standard error says why."


@dataclass(slots=True)
class Entered:
    """A program in its jail.

    `pid` is its number on the host, valid until it has ended; `listeners` are the policy's, by port, not blocking:
    accept() on them takes connections from inside, until the Jail is left.
    """

    pid: int
    listeners: dict[int, socket.socket]
    _program: int
    _first: int = field(repr=False)

    def signal(self, number: int) -> None:
        """Send a signal to the program, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._program, number)

    async def end(self) -> None:
        """Kill all that is left in the jail, and return when it is gone: from then on nothing changes its folders."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._first, signal.SIGKILL)
        # The kernel lets process 1 of a namespace end after all others.
        if not select.select([self._first], [], [], 0)[0]:
            loop, gone = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(self._first, gone.set)
            try:
                await gone.wait()
            finally:
                loop.remove_reader(self._first)


class Jail:
    """One child's jail; the spawned command is good for one start.

    `argv`, `env` and `pass_fds` are for spawning, as whoever we are: as root the command itself becomes `account`.
    Raises on entering: ValueError for a policy that cannot be, beneath.Refused for a path that cannot be opened without
    following a link, SandboxError for a host that cannot confine.
    """

    argv: list[str]
    env: dict[str, str]
    pass_fds: tuple[int, ...]

    def __init__(self, policy: Policy, program: Sequence[str], env: Mapping[str, str], account: Account) -> None:
        self.account = account
        self.env = {}
        self._policy = policy
        self._program = list(program)
        self._environment = environment(env)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Jail":
        if self.account.uid == 0 or (os.geteuid() == 0 and not self.account.switch):
            raise SandboxError(
                "A child is never confined as root: root gets around some of it.",
                "Run taskyard as an ordinary user, or let it make its account for agents.",
            )
        with contextlib.ExitStack() as opened:
            self._set_up(opened)
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def _set_up(self, opened: contextlib.ExitStack) -> None:
        self._bwrap, python, machine = find_bwrap(self.account), find_python(), seccomp.machine()
        mounts = layout(self._policy, os.path.lexists, () if python.prefix is None else (Mount(python.prefix),))
        _make_places(mounts, self.account)
        binds: list[Bind] = []
        for mount in mounts:
            descriptor = beneath.open_path(mount.source)
            opened.callback(os.close, descriptor)
            binds.append(Bind(descriptor, mount.place, mount.writable))

        def file(content: str | bytes) -> int:
            descriptor = os.memfd_create("taskyard")
            opened.callback(os.close, descriptor)
            with open(descriptor, "wb", closefd=False) as whole:
                whole.write(content if isinstance(content, bytes) else content.encode(errors="surrogateescape"))
            os.lseek(descriptor, 0, os.SEEK_SET)
            return descriptor

        passwd, group, hosts = account_files(self.account.uid, self.account.gid)
        contents = Contents(file(passwd), file(group), file(hosts), file(_shim()), file(seccomp.program(machine)))
        said = options(self._policy, binds, contents, system_layout())
        arguments = file("".join(f"{word}\0" for word in said))
        config = file(json.dumps(self._config(binds, machine)))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        opened.callback(ours.close)
        opened.callback(theirs.close)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._ours, self._theirs = ours, theirs
        self.argv = argv(self._bwrap, arguments, python, theirs.fileno(), config)
        if self.account.switch:
            staged = ",".join(str(bind.descriptor) for bind in binds)
            script = Path(__file__).with_name("stage.py")
            own = [sys.executable, "-I", "-S", str(script), str(self.account.uid), str(self.account.gid), staged]
            self.argv = [*own, *self.argv]
        kept = (contents.passwd, contents.group, contents.hosts, contents.shim, contents.filter)
        self.pass_fds = (*(bind.descriptor for bind in binds), *kept, arguments, config, theirs.fileno())

    def _config(self, binds: Sequence[Bind], machine: seccomp.Machine) -> dict[str, Any]:
        """What the shim reads."""
        stats = [(bind, os.fstat(bind.descriptor)) for bind in binds]
        asked = {"program": seccomp.gate(machine).hex(), "number": machine.seccomp}
        return {
            "mounts": [[str(bind.place), stat.st_dev, stat.st_ino, bind.writable] for bind, stat in stats],
            "listeners": self._policy.listeners,
            "limits": self._policy.limits.by_name(),
            "gate": None if self._policy.execute else asked,
            "argv": self._program,
            "env": self._environment,
        }

    async def entered(self, timeout: float = 10.0) -> Entered:
        """Meet the shim in the spawned command, and let it become the program.

        `timeout` is in seconds. Raises SandboxError if the jail did not come up: then the program never started.
        """
        self._theirs.close()  # from here on its end is only in the jail, and the end of the jail is seen
        try:
            async with asyncio.timeout(timeout):
                with contextlib.ExitStack() as asked:
                    pid, descriptors = await self._meet()
                    if not self._policy.execute:
                        asked.callback(os.close, descriptors[-1])
                    listeners = _listeners(self._policy.listeners, descriptors, self._open)
                    entered = Entered(pid, listeners, self._watch(pid), self._watch(_parent(pid)))
                    self._ours.send(GO)
                    if not self._policy.execute:
                        await gate.admit_once(descriptors[-1])
        except TimeoutError:
            raise SandboxError(f"The sandbox did not come up within {timeout:.0f} seconds.", SEE_BWRAP) from None
        except OSError as failed:
            raise SandboxError(f"The sandbox did not come up: {failed.strerror or failed}.", SEE_BWRAP) from failed
        return entered

    def explained(self, failed: SandboxError, stderr: str) -> SandboxError:
        """The failure of entered(), with what the spawned command printed on its standard error taken into account."""
        if failed.cure != SEE_BWRAP or not stderr.strip():
            return failed
        return SandboxError(*diagnose(stderr, facts(self._bwrap)))

    async def _meet(self) -> tuple[int, list[int]]:
        """The shim's pid, and the descriptors it sent."""
        loop, said = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._ours, said.set)
        try:
            await said.wait()
        finally:
            loop.remove_reader(self._ours)
        room = socket.CMSG_SPACE(4 * (len(self._policy.listeners) + 1)) + socket.CMSG_SPACE(CREDENTIALS.size)
        message, extras, _, _ = self._ours.recvmsg(4096, room)
        pid, descriptors = 0, array.array("i")
        for level, kind, data in extras:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data)
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                pid = CREDENTIALS.unpack(data)[0]
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if not message:
            raise SandboxError("bwrap could not set up the sandbox.", SEE_BWRAP)
        error = json.loads(message).get("error")
        wanted = len(self._policy.listeners) + (not self._policy.execute)
        if error is None and (len(descriptors) != wanted or pid <= 0):
            error = "its first message was incomplete"
        if error is not None:
            for descriptor in descriptors:
                os.close(descriptor)
            raise SandboxError(f"The sandbox could not be finished: {error}.")
        return pid, list(descriptors)

    def _watch(self, pid: int) -> int:
        descriptor = os.pidfd_open(pid)
        self._open.callback(os.close, descriptor)
        return descriptor


def _make_places(mounts: Sequence[Mount], account: Account) -> None:
    """Make folders to mount on where one mount is within another that does not have it already.

    bwrap would make them too, through any link that an agent left there. Raises ValueError where that is not home.
    """
    placed = {mount.place: mount for mount in mounts}
    for mount in mounts:
        outer = {place: other for place, other in placed.items() if place != mount.place}
        if not any(parent in outer for parent in mount.place.parents):
            continue
        expected = source_of(mount.place, outer)
        if expected == mount.source or os.path.lexists(expected):
            continue
        if not mount.place.is_relative_to(HOME) or not mount.source.is_dir():
            raise ValueError(f"There is no {expected} that {mount.source} could be mounted on.")
        owner = (account.uid, account.gid) if account.switch else None
        beneath.make_directory(placed[HOME].source, str(mount.place.relative_to(HOME)), owner)


def _listeners(
    ports: Sequence[int], descriptors: Sequence[int], opened: contextlib.ExitStack
) -> dict[int, socket.socket]:
    listeners = {port: socket.socket(fileno=fd) for port, fd in zip(ports, descriptors, strict=False)}
    for listener in listeners.values():
        listener.setblocking(False)
        opened.callback(listener.close)
    return listeners


def _parent(pid: int) -> int:
    """The process that is number 1 in the jail: bwrap's, which started the shim."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, number = line.partition(":")
        if name == "PPid":
            return int(number)
    raise ProcessLookupError(f"/proc/{pid}/status names no parent")


@cache
def _shim() -> bytes:
    return Path(__file__).with_name("shim.py").read_bytes()
