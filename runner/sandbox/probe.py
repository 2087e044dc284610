"""Whether this host can confine a child: a real jail with a program in it that tries to get out.

Looking for bwrap would not tell: a kernel switch, a security module or a container can each take from it what it needs.
"""

import asyncio
import contextlib
import json
import shutil
import socket
import tempfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..postgres.account import Account
from . import beneath
from .diagnosis import facts, impossible
from .errors import SandboxError
from .host import bwrap_version, find_bwrap, find_python
from .policy import Mount, Policy
from .run import run

__all__ = ["Usable", "find_bwrap", "judge", "probe"]

OUTPUT = 64 * 1024
TIMEOUT = 30.0  # seconds; it takes a tenth of one

# Runs inside, by the shim's Python; prints what it finds as JSON.
SELF_TEST = r"""
import ctypes, json, os, socket, sys
marker, port, space = sys.argv[1], int(sys.argv[2]), sys.argv[3]
libc = ctypes.CDLL(None, use_errno=True)

def attempt(action):
    try:
        action()
    except OSError as failed:
        return failed.errno
    return 0

def call(done):
    return 0 if done == 0 else ctypes.get_errno()

def write(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))

status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "marker": os.path.lexists(marker),
    "loopback": attempt(lambda: socket.create_connection(("127.0.0.1", port), 2)),
    "interfaces": sorted(line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line),
    "status": {name: status[name].strip() for name in ("NoNewPrivs", "Seccomp", "CapEff", "CapBnd")},
    "unshare": call(libc.unshare(0x10000000)),
    "mount": call(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)),
    "root": [attempt(lambda: write(path)) for path in ("/x", "/usr/x", "/etc/x", "/dev/x")],
    "workspace": attempt(lambda: write(space + "/written")),
    "processes": sum(name.isdecimal() for name in os.listdir("/proc")),
}))
"""


@dataclass(frozen=True, slots=True)
class Usable:
    """A sandbox that holds here: the bwrap it is made with, and its version."""

    bwrap: str
    version: str


def probe(account: Account) -> Usable:
    """Try the sandbox out, for a child that runs as `account`. Takes 0.2 s; not from within a running event loop.

    Raises SandboxError, with cause and cure, where it cannot be set up or does not hold.
    """
    known = impossible(facts())
    if known:
        raise SandboxError(*known)
    bwrap = find_bwrap(account)
    with _outside(account) as (folder, port):
        marker = folder / "marker"
        policy = Policy(folder / "space", folder / "home", (Mount(folder / "space", writable=True),))
        command = [str(find_python().executable), "-I", "-S", "-c", SELF_TEST, str(marker), str(port)]
        try:
            done = asyncio.run(
                run(policy, [*command, str(policy.workspace)], {}, account, timeout=TIMEOUT, output_limit=OUTPUT)
            )
        except TimeoutError:
            raise SandboxError("The sandbox's self-test did not end.", "The machine may be overloaded.") from None
        except (beneath.Refused, ValueError) as refused:
            raise SandboxError(f"The sandbox's self-test has no folder to run in: {refused}", "Set TMPDIR.") from None
        if done.code != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise SandboxError(f"The sandbox's self-test failed: {' '.join(said) or f'exit status {done.code}'}")
        leaks = judge(json.loads(done.stdout))
        written = policy.workspace / "written"
        if written.exists() and written.stat().st_uid != account.uid:
            leaks.append(f"what it writes belongs to the user {written.stat().st_uid}")
    if leaks:
        raise SandboxError(
            f"The sandbox does not hold: {'; '.join(leaks)}.", "Please report this, with your kernel's version."
        )
    return Usable(bwrap, bwrap_version(bwrap))


def judge(found: Mapping[str, Any]) -> list[str]:
    """What the self-test should not have been able to do or see; empty where the sandbox holds."""
    status: Mapping[str, str] = found["status"]
    tests = {
        "it sees files that nobody granted": found["marker"],
        "it reaches servers of this host": found["loopback"] == 0,
        "it has network interfaces": found["interfaces"] != ["lo"],
        "it can gain privileges": status["NoNewPrivs"] != "1",
        "its system calls are not filtered": status["Seccomp"] != "2",
        "it has capabilities": int(status["CapEff"], 16) != 0 or int(status["CapBnd"], 16) != 0,
        "it can make user namespaces": found["unshare"] == 0,
        "it can mount": found["mount"] == 0,
        "it can write to the system's folders": 0 in found["root"],
        "it cannot write to its workspace": found["workspace"] != 0,
        "it sees processes of this host": found["processes"] > 3,
    }
    return [leak for leak, leaks in tests.items() if leaks]


@contextlib.contextmanager
def _outside(account: Account) -> Generator[tuple[Path, int], None, None]:
    """A folder with a marker that the account could read, and a port on which somebody listens."""
    folder = Path(tempfile.mkdtemp(prefix="taskyard-probe-")).resolve()
    try:
        folder.chmod(0o755)
        (folder / "marker").touch(mode=0o644)
        for name in ("space", "home"):
            (folder / name).mkdir()
            account.own(folder / name, 0o700)
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield folder, server.getsockname()[1]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
