"""What is kept on a host for tasks, and that it goes only when nothing is lost by it."""

import asyncio
import logging
import os
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from taskyard.runner.sandbox.levels import Confinement
from taskyard.runner.sandbox.removal import remove_tree
from taskyard.runner.worker.places import Places
from taskyard.runner.workspaces import Cleaning, over_quota, used
from taskyard.runner.workspaces.cleaning import KEPT

from .hostile import deep
from .jails import RUNNERS
from .recorded import a_claim
from .repositories import Ground, a_ground

WORK = "echo done > done.txt"
LATER = KEPT.total_seconds() + 60


@pytest.fixture(params=RUNNERS)
def ground(request: pytest.FixtureRequest) -> Generator[Ground]:
    with a_ground(request.param) as made:
        yield made


@pytest.fixture
def plain() -> Generator[Ground]:
    with a_ground(RUNNERS[0]) as made:
        yield made


def grow_old(places: Places, task: int, seconds: float = LATER) -> None:
    then = time.time() - seconds
    os.utime(places.folder_of(task), (then, then))


def test_a_clone_goes_two_weeks_after_the_tasks_end_with_what_was_held_for_it(ground: Ground) -> None:
    left = ground.attempt(WORK)
    assert ground.git("for-each-ref", "refs/taskyard") != ""
    ground.clean(over=(3,))
    assert left.path.exists(), "not yet"
    grow_old(ground.places(), 3)
    ground.clean(over=())
    assert left.path.exists(), "its task is not over"
    ground.git("pack-refs", "--all")
    before = ground.of_the_user()
    ground.clean(over=(3,))
    assert not left.path.exists() and ground.places().tasks() == []
    assert ground.git("for-each-ref", "--format=%(refname)", "refs/taskyard") == ""
    assert ground.git("show", "taskyard/3-1:done.txt") == "done"
    assert ground.of_the_user() == before


def test_what_was_not_committed_is_committed_and_delivered_first(ground: Ground) -> None:
    async def dies() -> Path:
        async with ground.working() as (work, path):
            await ground.agent(work, path, WORK)
            return path

    path = ground.do(dies)
    grow_old(ground.places(), 3)
    ground.clean(over=(3,))
    assert not path.exists()
    assert ground.git("show", "taskyard/3-1:done.txt") == "done"
    assert ground.git("log", "-1", "--format=%s", "taskyard/3-1") == "Task 3, attempt 1: what was left"


def test_what_was_changed_in_a_clone_after_its_delivery_is_not_lost(plain: Ground) -> None:
    left = plain.attempt(WORK)
    plain.write(left.path / "by-hand.txt", "later\n")
    grow_old(plain.places(), 3)
    plain.clean(over=(3,))
    assert not left.path.exists()
    assert plain.git("show", "taskyard/3-1:by-hand.txt") == "later"


def test_work_that_cannot_be_delivered_stays_and_is_told_of_once(
    plain: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    left = plain.attempt(WORK)
    plain.write(left.path / "more.txt", "more\n")
    plain.repository.rename(plain.host.folder / "away")
    grow_old(plain.places(), 3)

    async def twice() -> None:
        cleaning = Cleaning(plain.places(), plain.confinement())
        for _ in range(2):
            await cleaning.clean((3,), ())

    with caplog.at_level(logging.WARNING, "taskyard.runner"):
        plain.do(twice)
    assert (left.path / "more.txt").exists()
    told = [record.message for record in caplog.records]
    assert len(told) == 1 and "task 3: its work stays in" in told[0] and "has no directory" in told[0]
    (plain.host.folder / "away").rename(plain.repository)
    plain.clean(over=(3,))
    assert not left.path.exists() and plain.git("show", "taskyard/3-1:more.txt") == "more"


def test_a_repository_within_the_clone_keeps_it(plain: Ground) -> None:
    inner = "git init --quiet inner; git -C inner commit --quiet --allow-empty -m inner; "
    left = plain.attempt(inner + WORK)
    assert left.branch == "taskyard/3-1"
    assert left.note is not None and "inner is a repository of its own" in left.note
    grow_old(plain.places(), 3)
    plain.clean(over=(3,))
    assert (left.path / "inner/.git").exists()


def test_what_a_verification_left_is_no_work(plain: Ground) -> None:
    async def whole() -> Path:
        async with plain.working() as (work, path):
            await plain.agent(work, path, WORK)
            await work.commit("The work.", end=True)
            await plain.agent(work, path, "echo built > build.out")
            await work.disregard()
            await work.deliver()
            return path

    path = plain.do(whole)
    grow_old(plain.places(), 3)
    plain.clean(over=(3,))
    assert not path.exists()
    assert plain.git("ls-tree", "--name-only", "taskyard/3-1").split() == ["done.txt", "read.me"]
    assert plain.git("log", "-1", "--format=%s", "taskyard/3-1") == "The work."


def test_a_clone_in_use_is_left_alone_whichever_runner_uses_it(plain: Ground) -> None:
    async def whole() -> list[str]:
        async with plain.working() as (work, path):
            await plain.agent(work, path, WORK + "; touch .git/index.lock")
            grow_old(plain.places(), 3)
            other = Cleaning(plain.places(), plain.confinement())
            await other.clean((3,), ())
            await other.clean((), ())
            assert (path / ".git/index.lock").exists()
            return (await plain.agent(work, path, "git log --format=%s")).split("\n")

    assert plain.do(whole) == ["one", ""]


def test_files_stay_as_long_as_a_task_that_goes_on_with_them(tmp_path: Path) -> None:
    places = Places("db", 5432, "yard", tmp_path)
    cleaning = Cleaning(places, Confinement("none"))

    async def attempt(task: int, files_of: int | None, lasting: bool) -> Path:
        claim = a_claim(task_id=task, files_of=files_of)
        async with places.rooms(claim, None, lasting=lasting) as rooms:
            (rooms.workspace / str(task)).touch()
            return rooms.workspace

    async def whole() -> None:
        first = await attempt(5, None, True)
        assert await attempt(7, 5, True) == first
        assert await attempt(9, 5, False) == first
        assert sorted(entry.name for entry in first.iterdir()) == ["5", "7", "9"]
        assert places.tasks() == [5, 7, 9] and places.going_on() == {7: 5, 9: 5}
        for task in (5, 7, 9):
            grow_old(places, task)
        await cleaning.clean((5,), ())
        assert first.exists() and places.tasks() == [5, 7, 9]
        await cleaning.clean((5, 7, 9), (9,))
        assert places.tasks() == [5, 9], "at work"
        await cleaning.clean((5, 9), ())
        assert places.tasks() == []

    asyncio.run(whole())


def test_files_of_an_attempt_that_hands_over_are_kept(tmp_path: Path) -> None:
    places = Places("db", 5432, "yard", tmp_path)

    async def whole() -> None:
        claim = a_claim(task_id=5)
        async with places.rooms(claim, None, lasting=False) as rooms:
            (rooms.workspace / "work").touch()
            places.keep_files(claim, rooms)
        async with places.rooms(a_claim(task_id=7, files_of=5), None, lasting=False) as rooms:
            assert [entry.name for entry in rooms.workspace.iterdir()] == ["work"]

    asyncio.run(whole())


def test_a_task_that_ended_well_without_a_clone_needs_nothing(plain: Ground) -> None:
    plain.attempt(WORK)

    async def whole() -> list[int]:
        async with plain.places().rooms(a_claim(task_id=5), None, lasting=True):
            pass
        cleaning = Cleaning(plain.places(), plain.confinement())
        for task in (3, 5):
            await cleaning.ended(task)
        return plain.places().tasks()

    assert plain.do(whole) == [3]


def test_used_counts_what_is_on_the_disk_and_follows_nothing(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    (outside / "large").write_bytes(b"x" * (8 << 20))
    (folder / "sub").mkdir(parents=True)
    empty = used(folder)
    (folder / "link").symlink_to(outside)
    (folder / "sub" / "file").write_bytes(b"x" * (1 << 20))
    os.link(folder / "sub" / "file", folder / "again")
    os.mkfifo(folder / "pipe")
    with open(folder / "sparse", "wb") as sparse:
        sparse.truncate(1 << 40)
    assert 1 << 20 <= used(folder) - empty <= (1 << 20) + (64 << 10)
    assert used(tmp_path / "absent") == 0 == used(folder / "link")


def test_used_goes_as_deep_as_a_tree_does(tmp_path: Path) -> None:
    deep(tmp_path, 5000, 0o755)
    try:
        assert used(tmp_path) >= 5000 * 512
    finally:
        assert remove_tree(tmp_path / "d")  # too deep for pytest


def test_a_task_that_takes_too_much_of_the_disk_is_told(tmp_path: Path) -> None:
    async def whole() -> str:
        watching = asyncio.create_task(over_quota([tmp_path, tmp_path / "absent"], 1 << 20, every=0.01))
        await asyncio.sleep(0.05)
        assert not watching.done()
        (tmp_path / "large").write_bytes(b"x" * (2 << 20))
        return await asyncio.wait_for(watching, 10)

    assert asyncio.run(whole()) == "Its files took 2.0 MiB of this host's disk; 1.0 MiB are allowed."
