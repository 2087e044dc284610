"""Tasks that work in a git repository: where they start, what they leave, and what stays as it was."""

import asyncio
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from taskyard.runner.adapters import CannotRun
from taskyard.runner.workspaces import Commit

from .jails import RUNNERS
from .repositories import Ground, Left, a_ground

WORK = "echo done > done.txt"


@pytest.fixture(params=RUNNERS)
def ground(request: pytest.FixtureRequest) -> Generator[Ground]:
    with a_ground(request.param) as made:
        yield made


@pytest.fixture
def plain() -> Generator[Ground]:
    """For what does not depend on who the runner is."""
    with a_ground(RUNNERS[0]) as made:
        yield made


def test_work_is_a_branch_and_nothing_else_of_the_repository_changes(ground: Ground) -> None:
    ground.write(ground.repository / "read.me", "changed and not committed\n")
    before = ground.of_the_user()
    left = ground.attempt(WORK)
    assert (left.branch, left.note, left.committed) == ("taskyard/3-1", None, True)
    assert ground.of_the_user() == before
    assert ground.git("show", "taskyard/3-1:done.txt") == "done"
    assert ground.git("show", "taskyard/3-1:read.me") == "one"
    assert ground.git("log", "-1", "--format=%H %an <%ae> %s", "taskyard/3-1") == (
        f"{left.commit} Taskyard <taskyard@localhost> The work."
    )
    ground.git("fsck", "--strict")


def test_proofs_tell_what_was_done(plain: Ground) -> None:
    proofs = plain.attempt(WORK + "; git add .; git commit --quiet -m 'of the agent'; echo two > read.me").proofs
    assert list(proofs) == ["git/changes.diff", "git/diffstat.txt", "git/commits.txt"]
    assert b"+done\n" in proofs["git/changes.diff"] and b"-one\n+two\n" in proofs["git/changes.diff"]
    assert b"2 files changed" in proofs["git/diffstat.txt"]
    assert b"of the agent" in proofs["git/commits.txt"] and b"The work." in proofs["git/commits.txt"]
    assert b"    one\n" not in proofs["git/commits.txt"]


@pytest.mark.slow
def test_a_proof_is_cut_at_what_the_database_takes(plain: Ground) -> None:
    assert len(plain.attempt("seq 2000000 > many.txt").proofs["git/changes.diff"]) == 4 << 20


def test_where_nothing_was_done_there_is_no_branch(plain: Ground) -> None:
    left = plain.attempt("true")
    assert (left.branch, left.commit, left.note, left.proofs) == (None, None, None, {})
    assert plain.git("branch", "--list", "taskyard/*") == ""


def test_a_task_starts_from_what_its_base_is_at_that_moment(plain: Ground) -> None:
    origin = plain.host.folder / "origin"
    plain.git("clone", "--quiet", str(plain.repository), str(origin))
    plain.write(origin / "read.me", "of the origin\n")
    plain.git("commit", "--quiet", "-am", "theirs", cwd=origin)
    plain.git("remote", "add", "origin", str(origin))
    plain.git("fetch", "--quiet", "origin")
    plain.git("tag", "-a", "-m", "tag", "v1")
    plain.git("switch", "--quiet", "-c", "topic")
    plain.write(plain.repository / "read.me", "two\n")
    plain.git("commit", "--quiet", "-am", "two")
    first, second = plain.git("rev-parse", "main"), plain.git("rev-parse", "topic")
    bases = {None: "two", "main": "one", "v1": "one", "topic": "two", first: "one", second[:10]: "two"}
    for number, (base, content) in enumerate({**bases, "origin/main": "of the origin"}.items(), start=1):
        assert plain.attempt("cat read.me", task=number, base=base).said == f"{content}\n", base


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"base": "nowhere"}, "has no branch, tag or commit nowhere"),
        ({"base": "origin/main"}, "has no branch, tag or commit origin/main"),
        ({"push_to": "nowhere"}, "has no remote nowhere"),
        ({"repository": "/no/such/place"}, "has no directory /no/such/place"),
        ({"repository": "/usr"}, "/usr is not a git repository"),
        ({"permissions": ["write"]}, "may not read"),
    ],
)
def test_what_the_author_can_mend_is_said_in_a_sentence(plain: Ground, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CannotRun, match=sentence):
        plain.attempt(WORK, **changes)


def test_a_branch_named_taskyard_leaves_no_room_for_ours(plain: Ground) -> None:
    for pack in (False, True):
        plain.git("branch", "--force", "taskyard")
        if pack:
            plain.git("pack-refs", "--all")
        with pytest.raises(CannotRun, match="a branch named taskyard"):
            plain.attempt(WORK)


def test_an_empty_repository_gets_its_first_commit(ground: Ground) -> None:
    ground.git("init", "--quiet", "--initial-branch=main", str(ground.host.folder / "empty"))
    empty = ground.host.folder / "empty"
    left = ground.attempt("true", repository=str(empty))
    assert (left.branch, left.note) == (None, None)
    left = ground.attempt(WORK, number=2, repository=str(empty))
    assert (left.branch, left.note) == ("taskyard/3-2", None)
    assert ground.git("log", "--format=%s", "taskyard/3-2", cwd=empty) == "The work."
    assert b"+done" in left.proofs["git/changes.diff"]
    assert ground.git("status", "--porcelain", "--branch", cwd=empty) == "## No commits yet on main"


def test_the_next_attempt_goes_on_in_the_same_clone(ground: Ground) -> None:
    """The one before died: what it had was not committed, and its locks are still there."""

    async def dies() -> Path:
        async with ground.working() as (work, path):
            await ground.agent(work, path, "echo kept > kept.txt; touch .git/index.lock .git/refs/heads/x.lock")
            return path

    path = ground.do(dies)
    ground.git("switch", "--quiet", "--create", "elsewhere")
    left = ground.attempt("cat kept.txt; " + WORK, number=2)
    assert (left.path, left.said, left.branch, left.note) == (path, "kept\n", "taskyard/3-2", None)
    subjects = ground.git("log", "--format=%s", "taskyard/3-2").splitlines()
    assert subjects == ["The work.", "Task 3, attempt 1: what was left", "one"]
    assert not list(path.rglob("*.lock"))


def test_an_index_that_a_crash_left_unreadable_is_made_anew(plain: Ground) -> None:
    path = plain.attempt("true").path
    (path / ".git/index").write_bytes(b"DIRC")
    left = plain.attempt(WORK, number=2)
    assert (left.branch, left.note) == ("taskyard/3-2", None)
    assert plain.git("diff", "--name-only", "main", "taskyard/3-2") == "done.txt"


def test_a_task_that_was_handed_over_goes_on_with_the_clone_of_the_first(ground: Ground) -> None:
    first = ground.attempt("echo kept > kept.txt")
    second = ground.attempt("cat kept.txt; " + WORK, task=8, files_of=3)
    third = ground.attempt("cat kept.txt done.txt", task=9, files_of=3)
    assert (second.path, second.said, second.branch) == (first.path, "kept\n", "taskyard/8-1")
    assert (third.path, third.said, third.branch) == (first.path, "kept\ndone\n", "taskyard/9-1")
    assert ground.git("rev-list", "--count", "main..taskyard/8-1") == "2"


def test_another_host_goes_on_with_the_branch_where_the_repository_has_it(plain: Ground) -> None:
    plain.attempt(WORK)
    plain.git("commit", "--quiet", "--allow-empty", "-m", "meanwhile")
    elsewhere = Ground(plain.host)
    plain.root.rename(plain.host.folder / "other-host")
    plain.root.mkdir()
    left = elsewhere.attempt("cat done.txt; echo more > more.txt", number=2, before="taskyard/3-1")
    assert (left.said, left.branch) == ("done\n", "taskyard/3-2")
    assert b"+done" in left.proofs["git/changes.diff"] and b"+more" in left.proofs["git/changes.diff"]
    fresh = elsewhere.attempt("ls", task=4, before="taskyard/4-1")
    assert fresh.said == "read.me\n"


def test_a_gc_of_the_users_takes_nothing_away_from_a_clone(ground: Ground) -> None:
    ground.write(ground.host.folder / "loose", "dangling\n")
    blob = ground.git("hash-object", "-w", str(ground.host.folder / "loose"))

    async def whole() -> tuple[str, str | None]:
        async with ground.working() as (work, path):
            # An object that is there already, and held by nothing: git must not rely on it.
            await ground.agent(work, path, "echo dangling > dangling.txt; git add .; git commit --quiet -m dangling")
            ground.git("checkout", "--quiet", "--orphan", "new")
            ground.git("commit", "--quiet", "-m", "all new", "--allow-empty")
            ground.git("branch", "-D", "main")
            ground.git("reflog", "expire", "--expire=now", "--all")
            ground.git("gc", "--quiet", "--prune=now")
            said = await ground.agent(
                work, path, "git fsck --full --strict --no-dangling 2>&1; git log --format=%s; cat read.me"
            )
            await work.commit("The work.", end=True)
            return said, (await work.deliver()).branch

    said, branch = ground.do(whole)
    assert said.split("\n") == ["dangling", "one", "one", ""]
    assert branch == "taskyard/3-1"
    assert ground.git("rev-parse", "taskyard/3-1:dangling.txt") == blob
    ground.git("fsck", "--full")


@pytest.mark.slow
def test_work_that_meets_a_lock_is_kept_and_delivered_later(plain: Ground) -> None:
    lock = plain.repository / ".git/refs/heads/taskyard/3-1.lock"

    async def meets() -> Left:
        async with plain.working() as (work, path):
            await plain.agent(work, path, WORK)
            plain.write(lock, "")
            await work.commit("The work.", end=True)
            delivered = await work.deliver()
            return Left(path, "", True, delivered.branch, delivered.commit, delivered.note, {}, None)

    left = plain.do(meets)
    assert left.branch is None and left.note is not None
    assert "is not in" in left.note and "brought there later" in left.note and "3-1.lock" in left.note
    plain.clean(over=(3,))
    assert lock.exists(), "the locks in the user's repository are the user's"
    assert left.path.exists()
    lock.unlink()
    plain.clean()
    assert plain.git("show", "taskyard/3-1:done.txt") == "done"


def test_a_lock_of_an_instant_is_waited_for(plain: Ground) -> None:
    lock = plain.repository / ".git/refs/heads/taskyard/3-1.lock"

    async def meets() -> str | None:
        async with plain.working() as (work, path):
            await plain.agent(work, path, WORK)
            await work.commit("The work.", end=True)
            plain.write(lock, "")
            delivering = asyncio.create_task(work.deliver())
            # The first try is over when a second jail for it is up; whichever it is, the lock goes during the tries.
            await asyncio.sleep(1)
            lock.unlink()
            return (await delivering).branch

    assert plain.do(meets) == "taskyard/3-1"


def test_branches_of_others_are_left_alone(plain: Ground) -> None:
    plain.git("branch", "taskyard/3-1")
    assert plain.attempt(WORK).branch == "taskyard/3-1.2", "another yard has such a task too"
    main = plain.git("rev-parse", "main")

    async def changed() -> tuple[str | None, str | None]:
        async with plain.working(number=2) as (work, path):
            await plain.agent(work, path, "echo more > more.txt")
            plain.git("branch", "taskyard/3-2", "main")
            await work.commit("The work.", end=True)
            delivered = await work.deliver()
            return delivered.branch, delivered.note

    branch, note = plain.do(changed)
    assert branch == "taskyard/3-2.2"
    assert note is not None and "changed by somebody else" in note
    assert plain.git("rev-parse", "taskyard/3-1", "taskyard/3-2").split() == [main, main]


def test_checkpoints_are_commits_but_never_in_the_middle_of_a_merge(ground: Ground) -> None:
    merge = (
        "git switch --quiet -c side; echo a > read.me; git commit --quiet -am side; git switch --quiet taskyard/3-1;"
        " echo b > read.me; git commit --quiet -am ours; git merge --quiet side"
    )

    async def whole() -> list[object]:
        async with ground.working() as (work, path):
            seen: list[object] = [await work.commit("nothing")]
            await ground.agent(work, path, WORK)
            seen += [await work.commit("first"), await work.commit("nothing new")]
            said = await ground.agent(work, path, merge)
            seen += ["CONFLICT" in said, await work.commit("during a merge")]
            await ground.agent(work, path, "echo c > read.me; git commit --quiet -am merged; touch .git/index.lock")
            seen += [await work.commit("locked")]
            delivered = await work.deliver()
            return [*seen, delivered.branch, delivered.note]

    nothing, first, again, conflict, during, locked, branch, note = ground.do(whole)
    assert isinstance(first, Commit) and first.files == 1
    assert (nothing, again, conflict, during, locked, branch, note) == (
        None,
        None,
        True,
        None,
        None,
        "taskyard/3-1",
        None,
    )
    assert ground.git("log", "--format=%s", "--first-parent", "taskyard/3-1").split("\n") == [
        "merged",
        "ours",
        "first",
        "one",
    ]


@pytest.mark.slow
def test_a_merge_or_rebase_that_was_cut_off_loses_nothing(plain: Ground) -> None:
    start = (
        "git switch --quiet -c side; echo a > read.me; git commit --quiet -am side; git switch --quiet -;"
        " echo b > read.me; git commit --quiet -am ours; echo second > second.txt; git add .; git commit --quiet -m second;"
    )
    merged = plain.attempt(start + "git merge side")
    assert plain.git("log", "--merges", "--format=%s", "taskyard/3-1") == "The work."
    assert merged.note is None
    rebased = plain.attempt(start + "git rebase side", task=4)
    assert rebased.note is not None and "refs/taskyard/4/also/1/" in rebased.note
    kept = plain.git("for-each-ref", "--format=%(objectname)", "refs/taskyard/4/also").split()
    assert any("second.txt" in plain.git("ls-tree", "--name-only", commit) for commit in kept)
    assert plain.attempt(WORK, task=4, number=2).note is None


def test_further_branches_and_stashes_of_an_agent_are_kept_too(plain: Ground) -> None:
    left = plain.attempt(
        "git switch --quiet -c other; echo x > x; git add .; git commit --quiet -m other; git switch --quiet -;"
        " echo stashed > read.me; git stash --quiet; git switch --quiet --detach; " + WORK
    )
    assert left.branch == "taskyard/3-1" and plain.git("show", "taskyard/3-1:done.txt") == "done"
    assert plain.git("show", "refs/taskyard/3/also/1/heads/other:x") == "x"
    assert plain.git("show", "refs/taskyard/3/also/1/stash:read.me") == "stashed"


def test_a_branch_that_was_deleted_after_its_delivery_does_not_come_back(plain: Ground) -> None:
    plain.attempt(WORK)
    plain.git("branch", "-D", "taskyard/3-1")
    plain.clean()
    plain.clean(over=(3,))
    assert plain.git("branch", "--list", "taskyard/*") == ""


def test_a_work_tree_of_the_users_starts_from_its_own_head(plain: Ground) -> None:
    tree = plain.host.folder / "tree"
    plain.git("worktree", "add", "--quiet", "-b", "topic", str(tree))
    plain.write(tree / "read.me", "topic\n")
    plain.git("commit", "--quiet", "-am", "topic", cwd=tree)
    assert plain.attempt("cat read.me; " + WORK, repository=str(tree)).said == "topic\n"
    assert plain.git("show", "taskyard/3-1:done.txt") == "done"


@pytest.mark.slow
def test_bare_and_shallow_repositories_and_those_of_sha256_serve_as_well(plain: Ground) -> None:
    plain.git("commit", "--quiet", "--allow-empty", "-m", "two")
    bare, shallow, other = (plain.host.folder / name for name in ("bare.git", "shallow", "sha256"))
    plain.git("clone", "--quiet", "--bare", str(plain.repository), str(bare))
    plain.git("clone", "--quiet", "--depth=1", f"file://{plain.repository}", str(shallow))
    plain.git("init", "--quiet", "--object-format=sha256", str(other))
    plain.git("commit", "--quiet", "--allow-empty", "-m", "two", cwd=other)
    for number, place in enumerate((bare, shallow, other), start=1):
        left = plain.attempt("git log --format=%s; " + WORK, task=number, repository=str(place))
        assert left.note is None and left.said.startswith("two\n"), place
        assert plain.git("show", f"taskyard/{number}-1:done.txt", cwd=place) == "done"


def test_a_scope_that_may_not_write_leaves_no_branch(plain: Ground) -> None:
    left = plain.attempt("cat read.me", permissions=["read", "execute"])
    assert (left.said, left.branch, left.note) == ("one\n", None, None)


def test_without_a_jail_it_is_the_same_work() -> None:
    with a_ground("ordinary", "none") as ground:
        before = ground.of_the_user()
        left = ground.attempt(WORK)
        assert (left.branch, left.note) == ("taskyard/3-1", None)
        assert ground.of_the_user() == before
        assert ground.git("show", "taskyard/3-1:done.txt") == "done"


def test_after_success_the_branch_is_pushed(ground: Ground) -> None:
    bare = ground.host.folder / "remote.git"
    ground.git("clone", "--quiet", "--bare", str(ground.repository), str(bare))
    ground.git("remote", "add", "upstream", str(bare))
    left = ground.attempt(WORK, push_to="upstream")
    assert left.push is None
    assert ground.git("rev-parse", "taskyard/3-1", cwd=bare) == left.commit
    ground.write(bare / "hooks/pre-receive", "#!/bin/sh\necho 'not on a Friday' >&2\nexit 1\n", 0o755)
    left = ground.attempt(WORK, task=4, push_to="upstream")
    assert left.branch == "taskyard/4-1", "it is in the repository all the same"
    assert left.push is not None
    assert "not pushed to upstream" in left.push and "hook declined" in left.push and "not on a Friday" in left.push


def at_once(ground: Ground, tasks: int) -> None:
    """Eight at a time, while the user works in the repository too."""
    before = ground.of_the_user()["refs"]

    async def all_of_them() -> list[tuple[str | None, str | None]]:
        slots = asyncio.Semaphore(8)

        async def one(task: int) -> tuple[str | None, str | None]:
            async with slots, ground.working(task) as (work, path):
                await ground.agent(work, path, f"echo {task} > own.txt; echo {task} >> read.me")
                await work.commit(f"Task {task}", end=True)
                if task % 5 == 0:
                    await asyncio.to_thread(ground.git, "pack-refs", "--all")
                delivered = await work.deliver()
                return delivered.branch, delivered.note

        return await asyncio.gather(*(one(task) for task in range(1, tasks + 1)))

    assert ground.do(all_of_them) == [(f"taskyard/{task}-1", None) for task in range(1, tasks + 1)]
    for task in range(1, tasks + 1):
        assert ground.git("show", f"taskyard/{task}-1:own.txt") == str(task)
    assert ground.of_the_user()["refs"] == before
    ground.git("fsck", "--strict")


@pytest.mark.slow
def test_eight_tasks_work_in_one_repository_at_once(ground: Ground) -> None:
    at_once(ground, 8)


@pytest.mark.slow
def test_fifty_tasks_work_in_one_repository(plain: Ground) -> None:
    at_once(plain, 50)
