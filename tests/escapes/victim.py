"""What must not be reached: a process of the attacker's own user, with a secret in everything that it has.

    python victim.py FOLDER PASSWORD      with the secret in SECRETDB, its working directory being FOLDER

Prints one line of JSON that says where to find it, and serves until its standard input ends. Each listener says the
secret to whoever connects. Standard library alone, any Python since 3.9.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import sys
import threading
from typing import Any

IPPROTO_MPTCP = 262  # linux/in.h
IPC_CREAT, IPC_RMID = 0o1000, 0
PR_SET_PTRACER, ANYONE = 0x59616D61, -1  # linux/prctl.h: the Yama module would keep our own user out
BROKER = 3130
SECRET = os.environ["SECRETDB"].encode()
LIBC = ctypes.CDLL(None, use_errno=True)


def serve(listener: socket.socket) -> None:
    """Say the secret to everybody."""

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, contextlib.suppress(OSError):
                    client.sendall(SECRET)
                    client.settimeout(2)
                    client.recv(65536)

    listener.listen(16)
    threading.Thread(target=accept, daemon=True).start()


def answer(listener: socket.socket) -> None:
    def receive() -> None:
        while True:
            _, sender = listener.recvfrom(1024)
            listener.sendto(SECRET, sender)

    threading.Thread(target=receive, daemon=True).start()


def tcp(address: str, port: int = 0, family: int = socket.AF_INET, protocol: int = 0) -> int | None:
    """The port that is listened on; None where this host has no such socket."""
    try:
        listener = socket.socket(family, socket.SOCK_STREAM, protocol)
        listener.bind((address, port))
    except OSError:
        return None
    serve(listener)
    return listener.getsockname()[1]


def udp() -> int:
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", 0))
    answer(listener)
    return listener.getsockname()[1]


def unix(name: str) -> str:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    serve(listener)
    return name


def card() -> str | None:
    """The address of this host's network card; nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("198.51.100.1", 9))
        return probe.getsockname()[0]
    return None


def shared_memory(key: int) -> int:
    identity = LIBC.shmget(key, 4096, IPC_CREAT | 0o600)
    LIBC.shmat.restype = ctypes.c_void_p
    ctypes.memmove(LIBC.shmat(identity, None, 0), SECRET, len(SECRET))
    return identity


def queue_library() -> Any:
    return LIBC if hasattr(LIBC, "mq_open") else ctypes.CDLL("librt.so.1", use_errno=True)


def main() -> None:
    folder = sys.argv[1]
    LIBC.prctl(PR_SET_PTRACER, ctypes.c_long(ANYONE), 0, 0, 0)
    buffer = ctypes.create_string_buffer(SECRET)
    name, key = f"ty-victim-{os.getpid()}", 0x54590000 + os.getpid() % 0xFFFF
    segment = shared_memory(key)
    queue = queue_library()
    queue.mq_open(f"/{name}".encode(), os.O_CREAT | os.O_RDWR, 0o600, None)
    with open(f"/dev/shm/{name}", "wb") as file:
        file.write(SECRET)
    opened = os.open(f"{folder}/home/.ssh/id_rsa", os.O_RDONLY)
    nic = card()
    try:
        told = {
            "pid": os.getpid(),
            "address": ctypes.addressof(buffer),
            "descriptor": opened,
            "tcp": tcp("127.0.0.1"),
            "tcp2": tcp("127.0.0.2"),
            "tcp6": tcp("::1", family=socket.AF_INET6),
            "mptcp": tcp("127.0.0.1", protocol=IPPROTO_MPTCP),
            "udp": udp(),
            "nic": nic,
            "tcp_nic": tcp(nic) if nic else None,
            "broker": tcp("127.0.0.1", BROKER),
            "abstract": unix(f"\0{name}")[1:],
            "sockets": [unix(f"{folder}/{socket}") for socket in ("docker.sock", ".s.PGSQL.5432", "agent.sock")],
            "shm": name,
            "key": key,
            "queue": f"/{name}",
        }
        print(json.dumps(told), flush=True)
        sys.stdin.read()
    finally:
        LIBC.shmctl(segment, IPC_RMID, None)
        queue.mq_unlink(f"/{name}".encode())
        os.unlink(f"/dev/shm/{name}")


if __name__ == "__main__":
    main()
