"""Which operating-system account runs the server's processes, and running programs as it.

PostgreSQL refuses to run as root, so root gets a system account of its own for it. This module never
changes the permissions of any existing folder.
"""

import os
import pwd
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .errors import PostgresError

ACCOUNT_NAME = "taskyard"
PASSED_ON = ("PATH", "TZ", "TMPDIR", "LD_LIBRARY_PATH")


class NoAccount(Exception):
    """A system account is missing; the message says why it could not be made, where that is known."""


@dataclass(frozen=True)
class Account:
    """An operating-system account; `switch` is true if our own process has to change to it."""

    name: str
    uid: int
    gid: int
    switch: bool

    def own(self, path: Path, mode: int) -> None:
        """Give `path` (a folder or file we made, never a symbolic link) to the account, with `mode`."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if self.switch:
                os.fchown(descriptor, self.uid, self.gid)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)

    def can_enter(self, folder: Path) -> bool:
        """Whether the account can reach the folder and what is in it."""
        return run(["test", "-x", str(folder)], self, timeout=10).returncode == 0


def server_account() -> Account:
    """The account the server runs as: our own, or as root the system account `taskyard`, made if missing.

    Raises PostgresError if the account cannot be made.
    """
    if os.geteuid() != 0:
        return account_of(os.geteuid(), os.getegid())
    try:
        return system_account(ACCOUNT_NAME)
    except NoAccount as missing:
        raise PostgresError(
            f"PostgreSQL does not run as root, and there is no account '{ACCOUNT_NAME}' for it. {missing}".strip(),
            f"Make one (useradd --system {ACCOUNT_NAME}), or run taskyard as an ordinary user.",
        ) from missing


def system_account(name: str) -> Account:
    """As root: the system account of this name, made if missing.

    Raises NoAccount if it cannot be made, or is root itself.
    """
    found = _lookup(name)
    if found is None:
        _make_system_account(name)
        found = _lookup(name)
    if found is None or found.pw_uid == 0:
        raise NoAccount
    return Account(found.pw_name, found.pw_uid, found.pw_gid, switch=True)


def account_of(uid: int, gid: int) -> Account:
    """The account with these ids, also if it has no name."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return Account(name, uid, gid, switch=os.geteuid() == 0 and uid != 0)


def run(
    argv: list[str], account: Account | None = None, *, timeout: float, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as `account` if given, in a session of its own with a minimal environment.

    The environment is a short list because the caller's may hold keys that are no business of the server,
    and PG* variables that would lead its programs astray. `timeout` is in seconds; after it the program and
    its children are killed.

    Raises OSError if the program cannot be started, PostgresError if it does not end in time.
    """
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {"LC_ALL": "C"}
    switch = account is not None and account.switch
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd="/",
        env=environment,
        start_new_session=True,
        umask=0o077 if account else -1,
        user=account.uid if account and switch else None,
        group=account.gid if account and switch else None,
        extra_groups=[] if switch else None,
    )
    try:
        output, errors = process.communicate(stdin, timeout=timeout)
    except BaseException as stopped:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(stopped, subprocess.TimeoutExpired):
            raise PostgresError(
                f"{Path(argv[0]).name} did not end within {timeout:.0f} seconds.",
                "The machine may be overloaded or its disk very slow: try again.",
            ) from stopped
        raise
    return subprocess.CompletedProcess(argv, process.returncode, output, errors)


def _lookup(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _make_system_account(name: str) -> None:
    program = shutil.which("useradd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if program is None:
        return
    shells = ("/usr/sbin/nologin", "/sbin/nologin", "/bin/false")
    shell = next((shell for shell in shells if os.path.exists(shell)), "/bin/false")
    options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", shell]
    done = run([program, *options, name], timeout=60)
    # Somebody else may have made it in the meantime; only its absence counts.
    if done.returncode != 0 and _lookup(name) is None:
        raise NoAccount(done.stderr.strip())
