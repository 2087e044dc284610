"""What the attacker tries with other processes, sockets and shared memory: cases 13 to 19, 24, 25, 35.

Standard library alone, any Python since 3.9.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct

import calls
from trying import Answers, World, holds, opens, reads, tried

MSG_FASTOPEN, IPPROTO_MPTCP = 0x20000000, 262  # linux/socket.h, linux/in.h
AF_ALG, AF_PACKET, AF_VSOCK = 38, 17, 40
TIMEOUT = 2.0


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


def made(family: int, kind: int) -> None:
    socket.socket(family, kind).close()


def case_19(_: World) -> Answers:
    families = {
        "AF_VSOCK": (AF_VSOCK, socket.SOCK_STREAM),
        "AF_PACKET": (AF_PACKET, socket.SOCK_RAW),
        "AF_ALG": (AF_ALG, socket.SOCK_SEQPACKET),
    }
    return {name: tried(made, *family) for name, family in families.items()}


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
