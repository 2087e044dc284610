"""The embedded PostgreSQL server: start it, stop it, ask about it, and connect to it.

This module does not own what is in the database; it hands out a running server with an empty database.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psycopg

from .account import Account, account_of, run, server_account
from .binaries import Binaries, find_binaries, find_psql, reachable_by
from .creation import create_cluster, remove_half_made
from .errors import PostgresError
from .files import locked, read_file
from .lan import HBA_FILE, access_rules, addresses_for, checked_range, own_addresses, with_rules, write_rules
from .passfile import ADMIN, DATABASE, ROLE, libpq_url, read_passwords, write_passwords
from .places import Address, choose_port, default_home, port_is_free, prepare_home, socket_folder
from .postmaster import START_LOG, clear_remains, find_postmaster, last_log, log_tail
from .settings import SETTINGS_FILE, settings_text, write_settings
from .tls import ensure_certificate, has_tls

WAIT = 60.0


@dataclass(frozen=True)
class Status:
    """What is known: `pid` is None unless it runs; port, socket_dir and version are None before first use.

    `version` is that of the programs last started, like "18.6"; `log` is the file written to last. `lan` is the range
    of addresses whose hosts may connect, or empty, `addresses` are ours in it, `tls` whether they connect encrypted.
    """

    running: bool
    pid: int | None
    port: int | None
    socket_dir: Path | None
    data_dir: Path
    version: str | None
    log: Path
    lan: str
    addresses: list[str]
    tls: bool


def _silent(_: str) -> None:
    pass


class Cluster:
    """A PostgreSQL server with a folder of its own, listening on this machine only, or to one range of addresses.

    `home` is the folder, default_home() if None. `progress` gets a few words at the start of every step that
    may take longer than a second.
    """

    def __init__(self, home: Path | None = None, progress: Callable[[str], None] = _silent) -> None:
        self.home = (home or default_home()).expanduser().resolve()
        self.progress = progress
        self.data = self.home / "data"
        self._log = self.home / "log"
        self._passfile = self.home / "secrets" / "pgpass"
        self._kept = self.home / "server.json"

    def start(self, lan: str | None = None) -> bool:
        """See to it that the server runs and accepts connections; the first time, create the cluster.

        `lan` is a range of addresses, like "192.168.1.0/24", whose hosts may connect too, "off" for none; None leaves
        that as it was. Where it changes anything, a server that runs is started anew.
        The server goes on when this process ends. Any number of processes may call this at once.
        Returns whether it started the server; False if it ran already.
        Raises PostgresError.
        """
        with self._explained():
            account = server_account()
            prepare_home(self.home, account)
            with locked(self.home / "lock"):
                self._check_data_folder(account)
                found = find_postmaster(self.data)
                if found is not None and lan is None:
                    if Address.load(self._kept) is None:
                        version = read_file(self.data / "PG_VERSION").strip()
                        Address(found.port, found.socket_dir, version).save(self._kept)
                    self._await_connections()
                    return False
                binaries = reachable_by(account, find_binaries(), self.home, self.progress)
                self._check_version(binaries)
                kept = Address.load(self._kept)
                wanted = (kept.lan if kept else "") if lan is None else checked_range(lan)
                if lan is not None and wanted:
                    addresses_for(wanted)
                if found is not None:
                    if kept is not None and self._agrees(replace(kept, lan=wanted), binaries, account):
                        self._await_connections()
                        return False
                    self.progress("starting the server anew, since who may reach it changes")
                    self._stop(binaries, account, "fast")
                self._launch(binaries, account, wanted)
                self._await_connections()
                return True

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> bool:
        """Stop the server, in one of pg_ctl's modes, and wait until it has ended.

        Returns whether it was running. Raises PostgresError, also if it has not ended after a minute.
        """
        with self._explained():
            if not self.data.exists():
                return False
            with locked(self.home / "lock"):
                if find_postmaster(self.data) is None:
                    return False
                self.progress("stopping the server")
                owner = self.data.stat()
                account = account_of(owner.st_uid, owner.st_gid)
                self._stop(reachable_by(account, find_binaries(), self.home, self.progress), account, mode)
                return True

    def status(self) -> Status:
        """Whether the server runs, and where. Raises PostgresError if that is not for us to see."""
        with self._explained():
            found = find_postmaster(self.data)
            kept = Address.load(self._kept)
            return Status(
                running=found is not None,
                pid=found.pid if found else None,
                port=(found and found.port) or (kept.port if kept else None),
                socket_dir=kept.socket_dir if kept else None,
                data_dir=self.data,
                version=kept.version if kept else None,
                log=last_log(self._log),
                lan=kept.lan if kept else "",
                addresses=own_addresses(kept.lan) if kept and kept.lan else [],
                tls=kept.tls if kept else False,
            )

    def url(self, database: str = DATABASE, admin: bool = False) -> str:
        """A URL for psql, psycopg and everything else built on libpq; it names the file with the password.

        It is for the role `taskyard`, or with `admin` for the superuser `postgres`.
        Raises PostgresError if the cluster has never been started.
        """
        with self._explained():
            address = Address.load(self._kept)
        if address is None:
            raise PostgresError(f"There is no database cluster in {self.home} yet.", "Start the server first.")
        return libpq_url(address, self._passfile, ADMIN if admin else ROLE, database)

    def psql_command(self, args: Sequence[str] = (), database: str = DATABASE, admin: bool = False) -> list[str]:
        """The argv of a psql connected to the cluster, with `args` appended, for the caller to exec.

        Raises PostgresError if there is no psql, or the cluster has never been started.
        """
        return [find_psql(), f"--dbname={self.url(database, admin)}", *args]

    def _launch(self, binaries: Binaries, account: Account, lan: str) -> None:
        deadline = time.monotonic() + WAIT
        warned = False
        remove_half_made(self.home)
        while True:
            kept = Address.load(self._kept)
            socket_dir = socket_folder(self.home, account)
            others = own_addresses(lan) if lan else []
            address = Address(choose_port(kept, others), socket_dir, binaries.version, lan)
            if not self.data.exists():
                create_cluster(self.home, binaries, account, address, self.progress)
                self.progress("starting the server")
            clear_remains(self.data, socket_dir, *([kept.socket_dir] if kept else []))
            if lan:
                address = replace(address, tls=has_tls(binaries, self.data, account))
            self._use(address, account)
            said = self._pg_ctl_start(binaries, account)
            found = find_postmaster(self.data)
            # With one address taken by somebody else PostgreSQL starts on the others: that is not enough.
            if found is not None and found.listens == "127.0.0.1":
                return
            if found is not None:
                self._stop(binaries, account, "fast")
            in_use = "shared memory block" in said
            if time.monotonic() > deadline or not (in_use or found or not port_is_free(address.port, others)):
                raise self._failure("The server did not start")
            if in_use and not warned:
                self.progress("waiting for the remaining processes of the killed server to end")
                warned = True
            time.sleep(0.2)

    def _use(self, address: Address, account: Account) -> None:
        """Make the server's configuration, the password file and server.json agree on the address."""
        if address.tls:
            ensure_certificate(self.data, account)
        write_settings(self.data, self._settings(address, account), account)
        write_rules(self.data, access_rules(address.lan, address.tls), account)
        write_passwords(self._passfile, self._passwords(), address)
        address.save(self._kept)

    def _settings(self, address: Address, account: Account) -> str:
        others = own_addresses(address.lan) if address.lan else []
        return settings_text(address, others, self._log, ordinary_user=not account.switch)

    def _agrees(self, address: Address, binaries: Binaries, account: Account) -> bool:
        """Whether the server's configuration already says this."""
        address = replace(address, tls=bool(address.lan) and has_tls(binaries, self.data, account))
        hba = read_file(self.data / HBA_FILE)
        return self._settings(address, account) == read_file(self.data / SETTINGS_FILE) and hba == with_rules(
            hba, access_rules(address.lan, address.tls)
        )

    def _pg_ctl_start(self, binaries: Binaries, account: Account) -> str:
        """Start the server, in a session of its own, and return what it wrote before its log was open."""
        log = self._log / START_LOG
        log.unlink(missing_ok=True)
        options = ["-D", str(self.data), "-l", str(log), "-w", "-t", f"{WAIT:.0f}", "-s"]
        run([binaries.program("pg_ctl"), "start", *options], account, timeout=WAIT + 30)
        return log_tail(log)

    def _stop(self, binaries: Binaries, account: Account, mode: str) -> None:
        options = ["-D", str(self.data), "-m", mode, "-w", "-t", f"{WAIT:.0f}", "-s"]
        done = run([binaries.program("pg_ctl"), "stop", *options], account, timeout=WAIT + 30)
        if done.returncode != 0 and find_postmaster(self.data) is not None:
            raise self._failure(f"The server did not stop within {WAIT:.0f} seconds")

    def _await_connections(self) -> None:
        deadline = time.monotonic() + WAIT
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if "authentication failed" in str(error):
                    raise PostgresError(
                        f"The server refuses the password in {self._passfile}.",
                        "Restore that file from a backup, or set the role's password to the one in it.",
                    ) from error
                if time.monotonic() > deadline or find_postmaster(self.data) is None:
                    raise self._failure("The server does not accept connections") from error
                time.sleep(0.1)

    def _check_data_folder(self, account: Account) -> None:
        if not self.data.exists() or not any(self.data.iterdir()):
            return
        if not (self.data / "PG_VERSION").exists():
            raise PostgresError(
                f"The folder {self.data} holds something else than a database cluster.",
                "Move it away, or set TASKYARD_HOME to another folder.",
            )
        owner = self.data.stat().st_uid
        if owner != account.uid:
            raise PostgresError(
                f"The database cluster in {self.data} belongs to the account '{account_of(owner, 0).name}', "
                f"but the server would run as '{account.name}'.",
                "Run taskyard as the user that created it, or set TASKYARD_HOME to another folder.",
            )

    def _check_version(self, binaries: Binaries) -> None:
        if not (self.data / "PG_VERSION").exists():
            return
        made_by = read_file(self.data / "PG_VERSION").strip()
        if made_by != str(binaries.major):
            raise PostgresError(
                f"The database cluster in {self.data} was made by PostgreSQL {made_by}, "
                f"but the programs in {binaries.folder} are PostgreSQL {binaries.version}.",
                f"Set TASKYARD_PG_BIN to the bin folder of a PostgreSQL {made_by}, or move the data: "
                f"dump it with pg_dumpall, set TASKYARD_HOME to a new folder, start, and load it there.",
            )

    def _passwords(self) -> dict[str, str]:
        found = read_passwords(self._passfile) if self._passfile.exists() else {}
        if not {ADMIN, ROLE} <= found.keys():
            raise PostgresError(
                f"The passwords of the database cluster are missing from {self._passfile}.",
                f"Restore that file from a backup, or, to begin anew without the data, remove {self.data}.",
            )
        return found

    def _failure(self, message: str) -> PostgresError:
        log = last_log(self._log)
        return PostgresError(f"{message}. The last lines of its log:\n{log_tail(log)}", f"The log is in {log}")

    @contextmanager
    def _explained(self) -> Generator[None, None, None]:
        try:
            yield
        except PermissionError as error:
            raise PostgresError(
                f"There is no access to {error.filename}, which the server in {self.home} needs.",
                "Run taskyard as the user that created it, or set TASKYARD_HOME to a folder of your own.",
            ) from error
        except OSError as error:
            raise PostgresError(f"The server in {self.home} cannot be used: {error}", "Cure that first.") from error
