"""A primary and a standby that replicates it synchronously, both real servers of the version that the tests run."""

import contextlib
import socket
import subprocess
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from taskyard.runner.postgres import Cluster, find_binaries
from taskyard.runner.postgres.account import run, server_account
from taskyard.runner.postgres.files import write_file
from taskyard.runner.postgres.passfile import ADMIN, ROLE, read_passwords
from taskyard.runner.postgres.postmaster import find_postmaster

from .fleet import until


@dataclass
class Pair:
    """Two servers, and one connection string for both."""

    primary: Cluster
    standby: Path
    port: int
    dsn: str

    def kill_primary(self) -> None:
        """As a power failure would: the whole server, at once."""
        found = find_postmaster(self.primary.data)
        assert found is not None
        subprocess.run(["pkill", "-KILL", "-P", str(found.pid)], check=False)
        subprocess.run(["kill", "-KILL", str(found.pid)], check=False)

    def promote(self) -> None:
        self._ctl("promote", "-w", "-t", "60")

    def start_standby(self) -> None:
        self._ctl("start", "-w", "-t", "60", "-l", str(self.standby.parent / "standby.log"))

    def stop_standby(self) -> None:
        with contextlib.suppress(AssertionError):
            self._ctl("stop", "-m", "immediate")

    def _ctl(self, *words: str) -> None:
        done = run([find_binaries().program("pg_ctl"), "-D", str(self.standby), *words], server_account(), timeout=90)
        assert done.returncode == 0, done.stdout + done.stderr

    def admin(self) -> str:
        """The superuser's connection string, for whichever of the two takes writes."""
        password = read_passwords(self.primary.home / "secrets" / "pgpass")[ADMIN]
        return make_conninfo(self.dsn, user=ADMIN, password=password)


@contextlib.contextmanager
def replicated(home: Path, standby: Path) -> Generator[Pair]:
    """Start both. `home` is the primary's, `standby` a folder that the server's account may enter."""
    account = server_account()
    cluster = Cluster(home)
    cluster.start()
    try:
        hba = cluster.data / "pg_hba.conf"
        write_file(hba, hba.read_text() + "host replication all 127.0.0.1/32 scram-sha-256\n", account)
        password = read_passwords(home / "secrets" / "pgpass")
        with psycopg.connect(cluster.url("postgres", admin=True), autocommit=True) as admin:
            admin.execute("select pg_reload_conf()")
        port = int(str(conninfo_to_dict(cluster.url())["port"]))
        with socket.create_server(("127.0.0.1", 0)) as found:
            second = found.getsockname()[1]
        account.own(standby, 0o700)
        data = standby / "data"
        source = make_conninfo(
            "", host="127.0.0.1", port=port, user=ADMIN, password=password[ADMIN], application_name="standby"
        )
        done = run(
            [
                find_binaries().program("pg_basebackup"),
                "-d",
                source,
                "-D",
                str(data),
                "-R",
                "-X",
                "stream",
                "-c",
                "fast",
            ],
            account,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        auto = data / "postgresql.auto.conf"
        own = f"port = {second}\nunix_socket_directories = ''\nlogging_collector = off\n"
        write_file(auto, auto.read_text() + own, account)
        dsn = make_conninfo(
            "",
            host="127.0.0.1,127.0.0.1",
            port=f"{port},{second}",
            user=ROLE,
            password=password[ROLE],
            dbname="taskyard",
        )
        pair = Pair(cluster, data, second, dsn)
        pair.start_standby()
        try:
            with psycopg.connect(cluster.url("postgres", admin=True), autocommit=True) as admin:
                admin.execute("alter system set synchronous_standby_names = 'standby'")
                admin.execute("select pg_reload_conf()")
                query = "select count(*) from pg_stat_replication where sync_state = 'sync'"
                until(lambda: (admin.execute(query).fetchone() or [0])[0], 30)
            yield pair
        finally:
            pair.stop_standby()
    finally:
        cluster.stop("immediate")
