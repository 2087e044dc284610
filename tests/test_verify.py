"""The proof of done: the task's command, run where the agent worked."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Generator
from datetime import timedelta
from typing import Any

import pytest

from taskyard.runner.adapters import Launch
from taskyard.runner.sandbox.host import find_python
from taskyard.runner.verbs import Claim
from taskyard.runner.worker import confined
from taskyard.runner.worker.places import Rooms
from taskyard.runner.worker.process import Child, Reaper
from taskyard.runner.worker.verify import Verified, verify

from .fleet import at_work, until
from .jails import RUNNERS
from .recorded import a_claim
from .repositories import Ground, a_ground


@pytest.fixture(params=[*((runner, "strict") for runner in RUNNERS), ("ordinary", "none")], ids=str)
def ground(request: pytest.FixtureRequest) -> Generator[Ground]:
    with a_ground(*request.param) as made:
        yield made


@pytest.fixture
def plain() -> Generator[Ground]:
    with a_ground(RUNNERS[0]) as made:
        yield made


def verified(ground: Ground, command: str, **options: Any) -> Verified:
    """Run it in the folders of an attempt of the task, in which `file` is."""
    names = {"longest", "stop_after", "sink"}
    given = {name: options.pop(name) for name in names & options.keys()}
    stop_after: float | None = given.pop("stop_after", None)
    claim = a_claim(**{"verify": command, "provider": "claude", **options})

    async def whole() -> Verified:
        with pytest.MonkeyPatch.context() as patch:
            # The one of these tests may be out of an ordinary user's reach.
            patch.setattr(sys, "executable", str(find_python().executable))
            reaper = Reaper()
        try:
            async with ground.places().rooms(claim, None, lasting=True) as rooms:
                (rooms.workspace / "file").write_text("content")
                (rooms.workspace / "file").chmod(0o644)
                start = starting(ground, rooms, reaper, stop_after)
                return await verify(claim, start, jailed=ground.level == "strict", **given)
        finally:
            reaper.close()

    return ground.do(whole)


def starting(ground: Ground, rooms: Rooms, reaper: Reaper, stop_after: float | None) -> Any:
    @contextlib.asynccontextmanager
    async def start(claim: Claim, launch: Launch) -> AsyncGenerator[Child]:
        network = confined.Network()
        async with confined.started(claim, launch, rooms, ground.confinement(), reaper, network) as child:
            if stop_after is not None:
                asyncio.get_running_loop().call_later(stop_after, child.stop)
            yield child

    return start


def test_a_command_that_succeeds_is_a_proof(ground: Ground) -> None:
    done = verified(ground, "test -f file && echo good && echo bad >&2 && echo better")
    assert (done.passed, done.exit_code, done.output_tail) == (True, 0, "good\nbad\nbetter\n")
    assert timedelta(0) < done.duration < timedelta(seconds=30)
    assert done.command.startswith("test -f file")


def test_one_that_fails_is_none_and_its_exit_code_is_told(ground: Ground) -> None:
    done = verified(ground, "cat file; exit 3")
    assert (done.passed, done.exit_code, done.output_tail) == (False, 3, "content")
    assert verified(ground, "no-such-command").exit_code == 127
    assert verified(ground, "if").passed is False


def test_only_the_last_20000_bytes_are_kept(ground: Ground) -> None:
    done = verified(ground, "seq 100000; printf 'é%.0s' $(seq 15000)")
    assert len(done.output_tail.encode()) == 20_000
    assert done.output_tail == "é" * 10_000
    assert verified(ground, "seq 100000").output_tail.endswith("\n99999\n100000\n")


def test_it_may_start_programs_where_the_agent_may_not(plain: Ground) -> None:
    assert verified(plain, "sh -c 'ls; true'", permissions=["read", "write"]).output_tail == "file\n"


def test_what_the_scope_does_not_have_is_not_there(plain: Ground) -> None:
    secret = plain.host.folder / "secret"
    done = verified(plain, f"cat {secret} || ls /sys/class/net; cat /proc/net/dev | grep -c :")
    assert "No such file" in done.output_tail and done.output_tail.endswith("\n1\n")


def test_it_is_stopped_when_its_time_is_over_with_all_that_it_started(ground: Ground) -> None:
    command = "echo begun; setsid sleep 86391 & sleep 86392"
    done = verified(ground, command, longest=timedelta(seconds=1))
    assert (done.passed, done.exit_code) == (False, None)
    assert done.output_tail == "begun\n\nStopped after 1 seconds."
    until(lambda: not at_work("sleep", "86391") and not at_work("sleep", "86392"))
    assert not verified(ground, command, timeout=timedelta(seconds=1)).passed


def test_what_it_left_running_ends_with_it(ground: Ground) -> None:
    assert verified(ground, "setsid sleep 86393 > /dev/null 2>&1 & true").passed
    until(lambda: not at_work("sleep", "86393"))


def test_an_attempt_that_is_stopped_meanwhile_has_not_passed(ground: Ground) -> None:
    done = verified(ground, "sleep 86394; true", stop_after=1)
    assert not done.passed
    assert done.duration < timedelta(seconds=60)


def test_its_output_is_told_as_it_comes(plain: Ground) -> None:
    heard: list[tuple[str, str]] = []

    async def hear(kind: str, text: str) -> None:
        heard.append((kind, text))

    verified(plain, "echo said; echo more >&2", sink=hear)
    assert "".join(text for _, text in heard) == "said\nmore\n"
    assert {kind for kind, _ in heard} == {"output"}
