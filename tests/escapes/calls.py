"""The attacker's system calls that Python has no functions for; numbers are those of asm/unistd_64.h and asm-generic/unistd.h.

Each raises OSError. Standard library alone, any Python since 3.9.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import pty
import shutil
import struct
import subprocess
from collections.abc import Callable
from typing import Any

X86 = platform.machine() == "x86_64"
LIBC = ctypes.CDLL(None, use_errno=True)

NUMBERS = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "unshare": (272, 97),
    "mount": (165, 40),
    "pivot_root": (155, 41),
    "setns": (308, 268),
    "chroot": (161, 51),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "pidfd_getfd": (438, 438),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "renameat2": (316, 276),
    "execveat": (322, 281),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
}
CLONE_NEWNS, CLONE_NEWUSER, SIGCHLD = 0x00020000, 0x10000000, 17
AT_FDCWD, AT_EMPTY_PATH, RENAME_EXCHANGE = -100, 0x1000, 2
MS_BIND, MS_REMOUNT, MS_REC, MS_PRIVATE = 0x1000, 0x20, 0x4000, 0x40000
PTRACE_SEIZE, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION = 0x4206, 0, -3
UFFD_USER_MODE_ONLY, PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY = 1, 1, 9
TIOCSTI, TIOCSCTTY = 0x5412, 0x540E


def call(name: str, *arguments: Any) -> int:
    """Integers and buffers as they are; others are ctypes' own."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = LIBC.syscall(ctypes.c_long(NUMBERS[name][0 if X86 else 1]), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def in_child(action: Callable[[], object]) -> str:
    """`done` where it returned, or became a program that ended with 0; else the name of its error."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except OSError as failed:
            code = failed.errno or 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "done" if code == 0 else errno.errorcode.get(code, str(code))


def replace(source: str, target: str) -> None:
    with open(source, "w") as file:
        file.write("written by the attacker")
    os.replace(source, target)


def exchange(first: str, second: str) -> None:
    call("renameat2", AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE)


def execveat(program: str) -> None:
    argv = (ctypes.c_char_p * 2)(b"true", None)
    environment = (ctypes.c_char_p * 1)()
    call("execveat", os.open(program, os.O_PATH), b"", argv, environment, AT_EMPTY_PATH)


def execute_in_memory(program: str) -> None:
    descriptor = os.memfd_create("program")
    with open(program, "rb") as file:
        os.write(descriptor, file.read())
    os.execve(descriptor, ["true"], {})


def seize(pid: int) -> None:
    call("ptrace", PTRACE_SEIZE, pid, 0, 0)


def read_memory(pid: int, address: int) -> bytes:
    buffer = ctypes.create_string_buffer(4096)
    ours = struct.pack("QQ", ctypes.addressof(buffer), 256)
    theirs = struct.pack("QQ", address, 256)
    call("process_vm_readv", pid, ours, 1, theirs, 1, 0)
    return buffer.raw


def steal(pid: int, descriptor: int) -> bytes:
    """What another process's descriptor reads; where that process cannot be named, at least the call is tried."""
    try:
        holder = os.pidfd_open(pid)
    except OSError:
        holder = os.pidfd_open(os.getpid())
    stolen = call("pidfd_getfd", holder, descriptor, 0)
    return os.pread(stolen, 4096, 0)


def shared_memory(key: int) -> bytes:
    identity = LIBC.shmget(key, 0, 0)
    if identity < 0:
        raise OSError(ctypes.get_errno(), "")
    LIBC.shmat.restype = ctypes.c_void_p
    address = LIBC.shmat(identity, None, 0)
    return ctypes.string_at(address, 256)


def open_queue(name: str) -> None:
    library = LIBC if hasattr(LIBC, "mq_open") else ctypes.CDLL("librt.so.1", use_errno=True)
    if library.mq_open(name.encode(), os.O_RDONLY) < 0:
        raise OSError(ctypes.get_errno(), "")


def _as_root_of_its_own() -> None:
    """Where that is allowed, a namespace in which mounting is allowed too."""
    try:
        call("unshare", CLONE_NEWUSER | CLONE_NEWNS)
        call("mount", b"none", b"/", 0, MS_REC | MS_PRIVATE, 0)
    except OSError:
        pass


def _mount() -> None:
    _as_root_of_its_own()
    call("mount", b"none", b"/tmp", b"tmpfs", 0, 0)


def _remount() -> None:
    _as_root_of_its_own()
    call("mount", b"/tmp", b"/tmp", 0, MS_BIND, 0)
    call("mount", b"none", b"/tmp", 0, MS_REMOUNT | MS_BIND, 0)


def _pivot() -> None:
    _as_root_of_its_own()
    os.chdir("/tmp")
    try:
        call("mount", b"none", b"/tmp", b"tmpfs", 0, 0)
        os.chdir("/tmp")
    except OSError:
        pass
    call("pivot_root", b".", b".")


def _cloned(number: str, *arguments: Any) -> None:
    if call(number, *arguments) == 0:
        os._exit(0)
    os.wait()


def _chroot() -> None:
    _as_root_of_its_own()
    call("chroot", b"/tmp")


def _setns() -> None:
    _as_root_of_its_own()
    call("setns", os.open("/proc/self/ns/mnt", os.O_RDONLY), 0)


def _open_tree() -> None:
    _as_root_of_its_own()
    call("open_tree", AT_FDCWD, b"/tmp", 1)


def _fsopen() -> None:
    _as_root_of_its_own()
    call("fsopen", b"tmpfs", 0)


def _nested() -> str:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "ENOENT"
    argv = [bwrap, "--unshare-user", "--ro-bind", "/", "/", "true"]
    done = subprocess.run(argv, capture_output=True, timeout=20)
    return "done" if done.returncode == 0 else "refused"


def case_31(_: dict[str, Any]) -> dict[str, str]:
    arguments = struct.pack("11Q", CLONE_NEWUSER, 0, 0, 0, SIGCHLD, 0, 0, 0, 0, 0, 0)
    return {
        "unshare": in_child(lambda: call("unshare", CLONE_NEWUSER)),
        "clone": in_child(lambda: _cloned("clone", CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0)),
        "clone3": in_child(lambda: _cloned("clone3", arguments, len(arguments))),
        "mount": in_child(_mount),
        "remount": in_child(_remount),
        "open_tree": in_child(_open_tree),
        "fsopen": in_child(_fsopen),
        "pivot_root": in_child(_pivot),
        "chroot": in_child(_chroot),
        "setns": in_child(_setns),
        "nested bwrap": _nested(),
    }


def _push_into_terminal() -> None:
    """TIOCSTI puts a character into the input of the terminal that one is started from."""
    master, slave = pty.openpty()
    os.setsid()
    fcntl.ioctl(slave, TIOCSCTTY, 0)
    fcntl.ioctl(slave, TIOCSTI, b"x")
    os.close(master)


def _perf() -> None:
    attributes = bytearray(128)
    struct.pack_into("IIQ", attributes, 0, PERF_TYPE_SOFTWARE, 128, PERF_COUNT_SW_DUMMY)
    call("perf_event_open", bytes(attributes), 0, -1, -1, 0)


def _handle() -> tuple[bytes, bytes]:
    handle, mount = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136), ctypes.create_string_buffer(4)
    call("name_to_handle_at", AT_FDCWD, b"/usr", handle, mount, 0)
    return handle.raw, mount.raw


def _open_by_handle() -> None:
    try:
        handle, _ = _handle()
    except OSError:
        handle = struct.pack("Ii", 8, 1) + bytes(8)
    call("open_by_handle_at", os.open("/usr", os.O_RDONLY), handle, os.O_RDONLY)


def case_32(_: dict[str, Any]) -> dict[str, str]:
    ring = ctypes.create_string_buffer(120)
    program = struct.pack("IIII", 1, 4, 4, 1) + bytes(112)  # BPF_MAP_CREATE of a hash map
    return {
        "keyctl": in_child(lambda: call("keyctl", KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION, 1, 0, 0)),
        "add_key": in_child(lambda: call("add_key", b"user", b"taskyard", b"x", 1, -2)),
        "bpf": in_child(lambda: call("bpf", 0, program, len(program))),
        "io_uring_setup": in_child(lambda: call("io_uring_setup", 1, ring)),
        "userfaultfd": in_child(lambda: call("userfaultfd", UFFD_USER_MODE_ONLY)),
        "perf_event_open": in_child(_perf),
        "name_to_handle_at": in_child(_handle),
        "open_by_handle_at": in_child(_open_by_handle),
        "TIOCSTI": in_child(_push_into_terminal),
    }
