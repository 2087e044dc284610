"""What hostile code tries: runs inside of a jail, and outside of it as the control.

    python attacker.py WORLD NUMBER...

WORLD is a JSON file that arena.py writes: where everything is that must not be reached, which makes it easy. Prints
{number: {attempt: answer}} as the last line. An answer is `done`, `nothing` where what was got holds no secret, or the
name of the error. Standard library alone, any Python since 3.9.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable

import calls
import reaching
from trying import Answers, Wanted, World, opens, reads, tried, writes


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
    folder: str = os.environ.get("TASKYARD_ARTIFACTS") or world["space"]
    secret = world["outside"] + "/home/.ssh/id_rsa"
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


def case_26(world: World) -> Answers:
    """A daemon that forks away from its parents once a millisecond; ends when a file `stop` is there, or after two minutes."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    beats, stop, end = world["space"] + "/beats", world["space"] + "/stop", time.monotonic() + 120
    if os.fork():
        while not os.path.exists(beats):
            time.sleep(0.001)
        print("beating", flush=True)
        while not os.path.exists(stop) and time.monotonic() < end:
            time.sleep(0.05)
        return {}
    os.closerange(0, 3)
    while not os.path.exists(stop) and time.monotonic() < end:
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
    int(name[5:]): found
    for module in (globals(), vars(reaching), vars(calls))
    for name, found in list(module.items())
    if name.startswith("case_")
}


def main() -> None:
    with open(sys.argv[1]) as file:
        world: World = json.load(file)
    Wanted.secret = world["secret"].encode()
    print("\n" + json.dumps({number: CASES[int(number)](world) for number in sys.argv[2:]}))


if __name__ == "__main__":
    main()
