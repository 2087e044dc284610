"""Copies of a login that jails share: both sides stay the same, and nothing hostile gets back to the user's own file."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from taskyard.runner.sandbox.logins import LIMIT, LoginFile, share

FILE = LoginFile("auth.json", fixed=(("tokens", "account"),))
OTHER = LoginFile("accounts.json", returns=False)


class Host:
    """A user with a login, and a runner's folder."""

    def __init__(self, folder: Path) -> None:
        self.source, self.home = folder / "user", folder / "yard"
        self.source.mkdir()
        self.own = self.source / FILE.name
        self.write(self.own, "first")
        self.stage = self.share()
        self.copy = self.stage / FILE.name

    def share(self, *files: LoginFile) -> Path:
        return share(self.source, files or (FILE,), self.home)

    @staticmethod
    def write(path: Path, token: str, age: float = 0, **more: Any) -> None:
        """As a tool would, `age` seconds ago."""
        path.write_text(json.dumps({"tokens": {"account": "me", "token": token}, **more}))
        path.chmod(0o600)
        then = path.stat().st_mtime - age
        os.utime(path, (then, then))

    @staticmethod
    def token(path: Path) -> str:
        return json.loads(path.read_text())["tokens"]["token"]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_the_copies_are_for_their_user_alone_and_the_state_is_not_among_them(host: Host) -> None:
    assert host.stage.parent == host.home / "logins" and len(host.stage.name) == 8
    assert (mode(host.stage.parent), mode(host.stage), mode(host.copy)) == (0o700, 0o700, 0o600)
    assert [path.name for path in host.stage.iterdir()] == ["auth.json"]
    assert host.copy.read_text() == host.own.read_text()
    assert "first" not in host.stage.with_suffix(".json").read_text()


def test_logins_of_different_places_have_different_copies(host: Host, tmp_path: Path) -> None:
    (tmp_path / "another").mkdir()
    assert share(tmp_path / "another", (FILE,), host.home) != host.stage
    assert share(host.source, (OTHER,), host.home) != host.stage


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_copies_belong_to_the_agents_account(host: Host) -> None:
    host.write(host.own, "second")
    share(host.source, (FILE,), host.home, (12345, 12346))
    for path in (host.stage, host.copy):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)
    host.write(host.copy, "third")
    os.chown(host.own, 23456, 23457)
    share(host.source, (FILE,), host.home, (12345, 12346))
    assert host.token(host.own) == "third"
    assert (host.own.stat().st_uid, host.own.stat().st_gid, mode(host.own)) == (23456, 23457, 0o600)
    assert host.stage.parent.stat().st_uid == host.stage.with_suffix(".json").stat().st_uid == 0


def test_a_token_that_the_user_refreshed_reaches_the_agents(host: Host) -> None:
    host.write(host.own, "second")
    host.share()
    assert host.token(host.copy) == "second"


@pytest.mark.parametrize("age", [0, 3600])
def test_a_token_that_an_agent_refreshed_reaches_the_user(host: Host, age: float) -> None:
    host.write(host.copy, "second", age)
    host.share()
    assert host.token(host.own) == "second" and mode(host.own) == 0o600
    host.write(host.own, "third", 3600)
    host.share()
    assert host.token(host.copy) == "third"


# In seconds; the last one claims to be of the future, which counts as now.
@pytest.mark.parametrize(("own", "copy", "stays"), [(10, 20, "own"), (20, 10, "copy"), (-60, -3600, "own")])
def test_where_both_were_changed_the_newer_one_stays(host: Host, own: float, copy: float, stays: str) -> None:
    host.write(host.own, "own", own)
    host.write(host.copy, "copy", copy)
    host.share()
    assert host.token(host.own) == host.token(host.copy) == stays


def refused(host: Host, content: bytes) -> None:
    """The copy holds this for a while, and the user's file stays as it is; then the copy is put back."""
    host.copy.unlink(missing_ok=True)
    host.copy.write_bytes(content)
    before = host.own.read_bytes()
    host.share()
    assert host.own.read_bytes() == before
    host.share()
    assert host.own.read_bytes() == host.copy.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b"[]",
        b'"text"',
        b"[" * 60_000,
        b"{}",
        b'{"tokens": {"account": "me", "token": "x"}, "apiKeyHelper": "rm -r /"}',
        b'{"tokens": {"account": "somebody else", "token": "x"}}',
        b'{"tokens": "me"}',
        b'{"tokens": {"account": "me", "token": "' + b"x" * LIMIT + b'"}}',
    ],
)
def test_what_is_no_such_login_never_reaches_the_user(host: Host, content: bytes) -> None:
    refused(host, content)


def test_a_copy_in_the_middle_of_being_written_is_left_alone(host: Host) -> None:
    host.copy.write_text('{"tokens": {"acc')
    host.share()
    assert host.copy.read_text() == '{"tokens": {"acc'
    host.write(host.copy, "second")
    host.share()
    assert host.token(host.own) == "second"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "hard link"])
def test_what_is_no_file_is_neither_read_nor_followed(host: Host, tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    host.write(victim, "stolen")
    host.copy.unlink()
    match kind:
        case "link":
            host.copy.symlink_to(victim)
        case "pipe":
            os.mkfifo(host.copy)
        case "folder":
            (host.copy / "within").mkdir(parents=True)
        case _:
            os.link(victim, host.copy)
    host.share()
    assert host.token(host.own) == host.token(host.copy) == "first" and host.token(victim) == "stolen"
    assert stat.S_ISREG(host.copy.lstat().st_mode)


def test_a_file_that_is_not_for_agents_to_change_goes_one_way(host: Host) -> None:
    own = host.source / OTHER.name
    own.write_text('{"active": "me"}')
    host.share(FILE, OTHER)
    copy = host.stage / OTHER.name
    copy.write_text('{"active": "you"}')
    host.share(FILE, OTHER)
    host.share(FILE, OTHER)
    assert own.read_text() == copy.read_text() == '{"active": "me"}'


def test_who_logs_out_is_logged_out_everywhere(host: Host) -> None:
    host.own.unlink()
    host.share()
    assert not host.copy.exists() and not host.own.exists()
    host.write(host.own, "again", 3600)
    host.share()
    assert host.token(host.copy) == "again"


def test_a_copy_that_was_removed_comes_back(host: Host) -> None:
    host.copy.unlink()
    host.share()
    assert host.token(host.copy) == "first"


def test_a_link_to_the_users_file_stays_a_link(host: Host, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere.json"
    host.own.rename(real)
    host.own.symlink_to(real)
    host.write(host.copy, "second")
    host.share()
    assert host.own.is_symlink() and host.token(real) == "second"
    assert [path.name for path in host.source.iterdir()] == ["auth.json"]


@pytest.mark.parametrize("content", ["", "[]", '{"auth.json": 1}', '{"auth.json": {}}'])
def test_a_damaged_state_is_as_good_as_none(host: Host, content: str) -> None:
    host.stage.with_suffix(".json").write_text(content)
    host.write(host.copy, "second")
    host.write(host.own, "older", 60)
    host.share()
    assert host.token(host.own) == host.token(host.copy) == "second"


def test_a_login_too_large_to_be_one_is_not_shared(host: Host) -> None:
    host.own.write_bytes(b"x" * (LIMIT + 1))
    with pytest.raises(OSError, match=f"more than {LIMIT} bytes"):
        host.share()
