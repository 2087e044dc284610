"""Two hosts on one machine: network namespaces, and a wire between them that can be slow, lose packets, or be cut.

The wire is a process of ours that carries frames from one veth to the other: unlike tc's netem it needs nothing of the
kernel but AF_PACKET. Frames come with the header of virtio (PACKET_VNET_HDR), so that the kernels at both ends agree on
checksums and segments that neither has worked out yet. Numbers are from linux/if_packet.h.
"""

import contextlib
import itertools
import json
import os
import queue
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .fleet import TASKYARD

SOL_PACKET, PACKET_VNET_HDR, PACKET_OUTGOING, ETH_P_ALL = 263, 15, 4, 3
LONGEST_FRAME = 70_000
RANGE = "10.77.0.0/24"
_numbers = itertools.count()


def possible() -> bool:
    """Whether this machine lets us make namespaces, and look at what goes between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"ty{os.getpid()}try"
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)).close()
        ip("netns", "add", name)
        ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Host:
    """A namespace with one address, and a folder of its own for all that Taskyard keeps there."""

    name: str
    address: str
    home: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    def _environment(self) -> dict[str, str]:
        hidden = ("TASKYARD_DSN", "PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE", "PGPORT", "PGUSER")
        kept = {name: told for name, told in os.environ.items() if name not in hidden}
        return {**kept, "TASKYARD_HOME": str(self.home), "COLUMNS": "80"}

    def run(self, *words: str, check: bool = True) -> str:
        """Run `taskyard` with these words on this host; returns all it printed."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, TASKYARD, *words],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 or not check, done.stdout
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))

    def listening(self) -> set[str]:
        """Addresses with ports on which somebody listens there."""
        told = subprocess.run(["ip", "netns", "exec", self.name, "ss", "-Hltn"], capture_output=True, text=True)
        return {line.split()[3] for line in told.stdout.splitlines()}

    def start(self, log: Path, *words: str) -> subprocess.Popen[bytes]:
        """Start `taskyard` with these words on this host; it is ended after the test."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, TASKYARD, *words],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.running.append(process)
        return process

    def end(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.terminate()
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(2)
                process.kill()
                process.wait()


class Wire:
    """What connects the two. `delay` in seconds each way, `loss` a probability, `cut` the senders that nobody hears."""

    def __init__(self, ends: tuple[str, str]) -> None:
        self.delay = 0.0
        self.loss = 0.0
        self.cut: set[int] = set()
        self.carried = [0, 0]
        self._dice = random.Random(7)
        self._closed = False
        self._sockets = [self._open(end) for end in ends]
        self._threads: list[threading.Thread] = []
        for sender in (0, 1):
            way: queue.Queue[tuple[float, bytes]] = queue.Queue()
            self._threads += [
                threading.Thread(target=self._take, args=(sender, way), daemon=True),
                threading.Thread(target=self._give, args=(1 - sender, way), daemon=True),
            ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _open(end: str) -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        opened.bind((end, 0))
        opened.settimeout(0.2)
        return opened

    def _take(self, sender: int, way: "queue.Queue[tuple[float, bytes]]") -> None:
        while not self._closed:
            try:
                frame, source = self._sockets[sender].recvfrom(LONGEST_FRAME)
            except (TimeoutError, OSError):
                continue
            if source[2] == PACKET_OUTGOING or sender in self.cut or self._dice.random() < self.loss:
                continue
            way.put((time.monotonic() + self.delay, frame))

    def _give(self, receiver: int, way: "queue.Queue[tuple[float, bytes]]") -> None:
        while not self._closed:
            with contextlib.suppress(queue.Empty, OSError):
                due, frame = way.get(timeout=0.2)
                time.sleep(max(due - time.monotonic(), 0))
                self._sockets[receiver].send(frame)
                self.carried[receiver] += 1

    def close(self) -> None:
        self._closed = True
        for thread in self._threads:
            thread.join()
        for opened in self._sockets:
            opened.close()


@contextlib.contextmanager
def two_hosts(folder: Path) -> Generator[tuple[Host, Host, Wire]]:
    """Two hosts, 10.77.0.1 and 10.77.0.2, and the wire between them. Needs root."""
    # Names of interfaces are short, tests run beside each other, and what was deleted is there for a moment yet.
    mark = f"{os.getpid() % 100_000:x}{next(_numbers) % 36:x}"
    hosts: list[Host] = []
    try:
        for number in (1, 2):
            home = folder / f"host{number}"
            home.mkdir(mode=0o755)
            host = Host(f"ty{mark}n{number}", f"10.77.0.{number}", home)
            ip("netns", "add", host.name)
            hosts.append(host)
            ip("link", "add", f"ty{mark}w{number}", "type", "veth", "peer", "name", "eth0", "netns", host.name)
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                ip("-n", host.name, "link", "set", interface, "up")
            ip("link", "set", f"ty{mark}w{number}", "up")
        wire = Wire((f"ty{mark}w1", f"ty{mark}w2"))
        try:
            yield hosts[0], hosts[1], wire
        finally:
            for host in hosts:
                host.end()
            wire.close()
    finally:
        for host in hosts:
            ip("netns", "del", host.name)
