"""What the figures were measured on."""

import os
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil
import psycopg

from .server import Server

SETTINGS = ("fsync", "synchronous_commit", "full_page_writes", "wal_sync_method", "wal_compression", "shared_buffers")


@dataclass(frozen=True)
class Machine:
    """The machine and the server, one fact per line; `load` is the load average before the first measure."""

    facts: dict[str, str]
    load: float

    def markdown(self, minutes: float) -> str:
        facts = {**self.facts, "took": f"{minutes:.0f} minutes; load average before it began: {self.load:.2f}"}
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def describe(server: Server) -> Machine:
    """Look at this machine and the server on it."""
    with psycopg.connect(server.cluster.url("postgres", admin=True), autocommit=True) as connection:
        rows = connection.execute(
            "select name, current_setting(name) from pg_settings where name = any(%s)",
            (["server_version", *SETTINGS],),
        )
        settings: dict[str, str] = dict(rows)
    logical = psutil.cpu_count() or 0
    home = server.cluster.home
    return Machine(
        {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "taskyard": version("taskyard"),
            "CPU": f"{_cpu_model()}, {logical} logical cores ({psutil.cpu_count(logical=False) or logical} physical)",
            "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
            "system": f"{platform.system()} {platform.release()}",
            "PostgreSQL": f"{settings.pop('server_version')}, pgbench with prepared statements over a Unix socket",
            "settings": ", ".join(f"{name} = {settings[name]}" for name in SETTINGS if name in settings),
            "disk": f"{_file_system(home)}; write of 8 kB and fsync: {_fsync_ms(home):.2f} ms",
        },
        os.getloadavg()[0],
    )


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _file_system(folder: Path) -> str:
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown file system"


def _fsync_ms(folder: Path) -> float:
    """The median time of what every commit waits for."""
    path = folder / "fsync-probe"
    taken: list[float] = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, bytes(8192 * 100))
        os.fsync(descriptor)
        for number in range(100):
            begun = time.perf_counter()
            os.pwrite(descriptor, bytes([number]) * 8192, 8192 * number)
            os.fsync(descriptor)
            taken.append(time.perf_counter() - begun)
    finally:
        os.close(descriptor)
        path.unlink()
    return median(taken) * 1000
