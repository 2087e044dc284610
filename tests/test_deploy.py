"""The files of deploy/: what they call exists, with the options that they give it, and their queries work."""

import configparser
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import Yard, value
from .words import understood
from .yardwork import claim, insert, register

FOLDER = Path(__file__).parent.parent / "deploy"
UNITS = sorted((FOLDER / "systemd").iterdir())
MANIFESTS = [*sorted((FOLDER / "kubernetes").iterdir()), FOLDER / "container" / "compose.yaml"]
KNOWN = {"TASKYARD_DSN", "TASKYARD_LOG_FORMAT", "ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY"}


def unit(path: Path) -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read_string(path.read_text())
    return found


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_call_what_there_is(path: Path) -> None:
    told = unit(path)
    for section in told.sections():
        for name, given in told[section].items():
            if name in ("ExecStart", "ExecStop") and "taskyard" in given:
                program, *words = shlex.split(given.replace("%h", "/home/x"))
                assert program == "/home/x/.local/bin/taskyard"
                understood(words)
            if name == "After":
                for other in re.findall(r"taskyard-\w+\.service", given):
                    assert (FOLDER / "systemd" / other).exists()
    assert "Install" in told or path.name == "taskyard-backup.service"


def containers(given: Any) -> Iterator[dict[str, Any]]:
    """Every container of a manifest, and every service of a compose file, as {args, env}."""
    if isinstance(given, dict):
        if "image" in given:
            yield given
        for part in given.values():  # pyright: ignore[reportUnknownVariableType]
            yield from containers(part)
    elif isinstance(given, list):
        for part in given:  # pyright: ignore[reportUnknownVariableType]
            yield from containers(part)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_containers_call_what_there_is(path: Path) -> None:
    found = [one for document in yaml.safe_load_all(path.read_text()) for one in containers(document)]
    ours = [one for one in found if one["image"].startswith("taskyard")]
    assert ours or path.name == "database.yaml"
    for one in ours:
        understood([str(word) for word in one.get("args") or one["command"]])
        env: Any = one.get("env") or ()
        named: set[str] = set(one.get("environment") or {}) | {entry["name"] for entry in env}
        assert named <= KNOWN


def test_the_scaler_counts_what_waits_and_runs(yard18: Yard) -> None:
    (scaled,) = [
        document
        for document in yaml.safe_load_all((FOLDER / "kubernetes" / "runners.yaml").read_text())
        if document["kind"] == "ScaledObject"
    ]
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    viewer, db = yard18.connect("viewer"), yard18.connect()
    assert value(viewer, query) == 0
    for _ in range(3):
        insert(db, "x", agent="shell")
    claim(db, register(db))
    assert value(viewer, query) == 3


def test_the_image_has_what_the_runner_needs() -> None:
    text = (FOLDER / "container" / "Dockerfile").read_text()
    assert re.search(r"^USER yard$", text, re.MULTILINE), "as root the sandbox has more to do"
    assert "bubblewrap" in text and "git" in text
