"""The commands of the README and of docs/: all are understood, and each runs, here or in the test that is named."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from taskyard.runner.cli import main

from .command_line import NOWHERE
from .conftest import Yard
from .test_import_sqlite import make
from .test_pages import ROOT, busy
from .words import understood

__all__ = ["busy"]

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
# These need more than a yard: who runs them, as they stand in the pages.
ELSEWHERE = {
    "up": "test_two_hosts.py",
    "runner": "test_runner.py",
    "invite": "test_two_hosts.py",
    "join": "test_two_hosts.py",
    "leave": "test_two_hosts.py",
    "db": "test_backup.py",
    "tui": "test_tui_web.py",
    "notify": "test_pushes.py",
    "install": "test_two_hosts.py",
    "metrics": "test_metrics.py",
}


def commands(page: Path) -> list[str]:
    """What a page tells to type that begins with taskyard."""
    text = page.read_text()
    blocks = [
        body for language, body in re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.S | re.M) if language in ("", "sh")
    ]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`((?:\.venv/bin/)?taskyard [^`]*)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M))
    found = (re.match(r"^\s*(?:[A-Z_]+=\S+ )?(?:\.venv/bin/)?(taskyard .*)$", line) for line in [*lines, *inline])
    return list(dict.fromkeys(" ".join(match[1].split()) for match in found if match))


ALL = [(page.stem, command) for page in PAGES for command in commands(page)]


def words(command: str) -> list[str]:
    """The words after `taskyard`, with something in the place of what the reader fills in."""
    filled = {
        "NAME": "laptop",
        "LEVEL": "strict",
        "...": "192.168.1.0/24",
        "RANGE": "192.168.1.0/24",
        "FILE": "orchestra.db",
    }
    split = shlex.split(command, comments=True)[1:]
    return ["orchestra.db" if word.endswith(".dump") else filled.get(word, word) for word in split]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader stands, with the file that docs/import.md speaks of."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "orchestra.db", {"title": "x", "prompt": "one"})
    return tmp_path


def test_there_are_commands() -> None:
    assert len(ALL) > 25 and {"README", "hosts", "import", "operations"} <= {page for page, _ in ALL}


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page}: {command}"[:60] for page, command in ALL])
def test_a_command_of_a_page_is_understood_and_is_run_somewhere(page: str, command: str) -> None:
    given = words(command)
    if "--help" in given:
        return
    understood(given)
    name = next(word for word in given if not word.startswith("-") and "://" not in word and "/" not in word)
    if name in ELSEWHERE:
        text = (ROOT / "tests" / ELSEWHERE[name]).read_text()
        assert re.search(rf"\"{name}\"|fleet\.start|Notifier", text), (page, name)


def test_those_that_need_nothing_but_a_yard_run_as_they_stand(busy: Yard, home: Path) -> None:
    busy.connect().execute("insert into scopes (name, parent) values ('home', 'default'), ('imported', 'default')")
    mine = [command for _, command in ALL if words(command)[0] not in (*ELSEWHERE, "--help", "--dsn")]
    assert {words(command)[0] for command in mine} >= {
        "list",
        "logs",
        "doctor",
        "say",
        "schedule",
        "schedules",
        "import-sqlite",
        "phone-role",
    }
    environment = {**NOWHERE, "TASKYARD_DSN": busy.superuser_dsn, "TASKYARD_HOME": str(home)}
    for command in dict.fromkeys(mine):
        given = words(command)
        if given == ["phone-role"] or given == ["schedule"]:
            continue  # a name in a sentence
        if given[0] == "phone-role":
            given[1] = f"phone_{busy.name}"
        done = CliRunner().invoke(main, given, env=environment)
        # The doctor finds no runner; in the yard of another page the phone is there already.
        assert done.exit_code == 0 or (given[0] == "doctor" and done.exit_code == 1) or "already" in done.output, (
            command,
            done.output,
        )
    busy.connect(superuser=True).execute(f"drop owned by phone_{busy.name}; drop role phone_{busy.name}".encode())


def test_every_target_of_make_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        named = set(re.findall(r"`make ([a-z-]+)`", text)) | set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
        assert named <= targets, (page.name, named - targets)
