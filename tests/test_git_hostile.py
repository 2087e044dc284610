"""Repositories and clones that hostile code prepared: git runs here, but nothing that they name does, nor gets out."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from taskyard.runner.adapters import CannotRun
from taskyard.runner.sandbox.levels import Level
from taskyard.runner.workspaces.push import reason

from .jails import AS_ROOT, RUNNERS, Runner
from .repositories import Ground, Left, a_ground, left

WORK = "echo done > done.txt"


@pytest.fixture(params=RUNNERS)
def ground(request: pytest.FixtureRequest) -> Generator[Ground]:
    with a_ground(request.param) as made:
        yield made


@pytest.fixture
def plain() -> Generator[Ground]:
    with a_ground(RUNNERS[0]) as made:
        yield made


def trap(ground: Ground) -> tuple[Path, Path]:
    """A program that tells that it ran, wherever it can: beside itself, in a repository, in its home, in /tmp."""
    program, traces = ground.host.folder / "program", ground.host.folder / "traces"
    traces.mkdir()
    traces.chmod(0o777)
    git_dir = ground.repository / ".git"
    places = (f"{traces}/ran", f"{git_dir}/ran", f"{git_dir}/objects/ran", f"{git_dir}/refs/taskyard/ran", "./ran")
    lines = "\n".join(f"touch {place} 2>/dev/null" for place in places)
    ground.write(program, f"#!/bin/sh\n{lines}\ncat\n", 0o755)
    return program, traces / "ran"


def poison(ground: Ground, git_dir: Path, program: Path) -> None:
    """All that makes git run a program."""
    options = {
        "core.fsmonitor": str(program),
        "core.sshCommand": str(program),
        "core.editor": str(program),
        "core.pager": str(program),
        "core.alternateRefsCommand": str(program),
        "core.hooksPath": f"{git_dir}/hooks",
        "credential.helper": f"!{program}",
        "diff.external": str(program),
        "diff.trap.textconv": str(program),
        "diff.trap.command": str(program),
        "filter.trap.clean": str(program),
        "filter.trap.smudge": str(program),
        "filter.trap.process": str(program),
        "filter.trap.required": "true",
        "uploadpack.packObjectsHook": str(program),
        "gpg.program": str(program),
        "commit.gpgSign": "true",
        "include.path": f"{git_dir}/more",
        "submodule.sub.url": f"ext::{program}",
        "submodule.sub.update": f"!{program}",
        "gc.auto": "1",
    }
    text = "".join(f'[{section(name)}]\n\t{name.rpartition(".")[2]} = "{value}"\n' for name, value in options.items())
    config = git_dir / "config"
    ground.write(config, config.read_text() + text)
    ground.write(git_dir / "more", f'[alias]\n\tstatus = "!{program}"\n')
    ground.write(git_dir / "info/attributes", "* filter=trap diff=trap\n")
    for hook in (
        "pre-commit",
        "post-commit",
        "post-checkout",
        "reference-transaction",
        "post-index-change",
        "pre-push",
    ):
        ground.write(git_dir / "hooks" / hook, program.read_text(), 0o755)


def section(name: str) -> str:
    first, *middle, _ = name.split(".")
    return f'{first} "{".".join(middle)}"' if middle else first


def attributes(ground: Ground) -> None:
    ground.write(ground.repository / ".gitattributes", "* filter=trap diff=trap\n")
    ground.write(ground.repository / ".gitmodules", '[submodule "sub"]\n\tpath = sub\n\turl = ../sub\n')
    ground.git("add", ".")
    ground.git("commit", "--quiet", "-m", "attributes")


def traces(ground: Ground) -> list[str]:
    return [str(path.relative_to(ground.host.folder)) for path in ground.host.folder.rglob("ran")]


@pytest.mark.parametrize(("runner", "level"), [*((runner, "strict") for runner in RUNNERS), ("ordinary", "none")])
def test_a_poisoned_repository_of_the_users_runs_nothing(runner: Runner, level: Level) -> None:
    with a_ground(runner, level) as ground:
        program, ran = trap(ground)
        attributes(ground)
        poison(ground, ground.repository / ".git", program)
        left = ground.attempt(WORK)
        assert (left.branch, left.note) == ("taskyard/3-1", None)
        assert left.commit is not None
        assert b"+done" in left.proofs["git/changes.diff"]
        again = ground.attempt("echo two > two.txt", number=2)
        assert again.branch == "taskyard/3-2"
        ground.clean(over=(3,))
        assert traces(ground) == []
        ground.git("status", fails=True)
        assert ran.exists(), "it is no trap at all, so nothing is proved"


def test_an_agent_cannot_poison_its_clone(ground: Ground) -> None:
    program, _ = trap(ground)
    script = f"""
        git config core.fsmonitor {program} && echo configured
        echo x > .git/hooks/pre-commit && echo hooked
        mv .git/config .git/c && echo moved
        mv .git .tig && echo moved all
        rm -rf .git/hooks && echo removed
        ls .git/config .git/hooks > /dev/null && echo there
    """
    left = ground.attempt(script + WORK)
    assert [line for line in left.said.splitlines() if ":" not in line] == ["there"]
    assert (left.branch, left.note) == ("taskyard/3-1", None)
    assert traces(ground) == []


POISONS = {
    "another repository's configuration": "git init --quiet .evil; cp {config} .evil/.git/config; echo ../.evil/.git > .git/commondir",
    "a configuration per work tree": "cp {config} .git/config.worktree",
    "attributes of its own": "mkdir -p .git/info; echo '* filter=trap diff=trap' > .git/info/attributes",
    "objects of others": "echo /etc > .git/objects/info/alternates",
    "a link for the alternates": "rm -f .git/objects/info/alternates; ln -s /etc/passwd .git/objects/info/alternates",
    "a pipe for the alternates": "rm -f .git/objects/info/alternates; mkfifo .git/objects/info/alternates",
    "a folder for the alternates": "rm -f .git/objects/info/alternates; mkdir -p .git/objects/info/alternates/x",
    "configuration in its home": "cp {config} ~/.gitconfig",
    "locks": "touch .git/index.lock .git/HEAD.lock .git/packed-refs.lock .git/refs/heads/taskyard/3-1.lock",
    "grafts and replacements": "git replace -f HEAD $(git commit-tree HEAD^{{tree}} -m evil); git rev-parse HEAD > .git/info/grafts",
}


@pytest.mark.parametrize("what", POISONS)
def test_what_an_agent_puts_into_its_clone_is_not_obeyed(plain: Ground, what: str) -> None:
    program, _ = trap(plain)
    config = plain.host.folder / "space" / "config"
    poisoned = plain.host.folder / "poisoned"
    plain.git("init", "--quiet", str(poisoned))
    poison(plain, poisoned / ".git", program)
    plain.write(config, (poisoned / ".git/config").read_text())
    script = f"cat > /tmp/config <<'EOF'\n{config.read_text()}\nEOF\n" + POISONS[what].format(config="/tmp/config")
    left = plain.attempt(f"echo '* filter=trap diff=trap' > .gitattributes; {script}; {WORK}")
    assert left.branch == "taskyard/3-1", left
    assert left.note is None or "does not have a commit" in left.note
    assert plain.git("show", "--no-ext-diff", "--no-textconv", "taskyard/3-1:done.txt") == "done"
    assert traces(plain) == []


def test_without_a_jail_the_configuration_of_a_clone_is_replaced() -> None:
    with a_ground("ordinary", "none") as ground:
        program, ran = trap(ground)
        poisoned = ground.host.folder / "poisoned"
        ground.git("init", "--quiet", str(poisoned))
        poison(ground, poisoned / ".git", program)
        cases = (
            f"cp {poisoned}/.git/config .git/config; cp {poisoned}/.git/hooks/* .git/hooks/",
            f"rm .git/config; ln -s {poisoned}/.git/config .git/config",
            f"echo {poisoned}/.git > .git/commondir",
        )
        before = (poisoned / ".git/config").read_text()
        for task, case in enumerate(cases, start=1):
            left = ground.attempt(f"echo '* filter=trap diff=trap' > .gitattributes; {case}; {WORK}", task=task)
            assert left.branch == f"taskyard/{task}-1", left
            assert not ran.exists(), case
        assert (poisoned / ".git/config").read_text() == before


def test_a_clone_that_an_agent_destroyed_is_kept_and_told_of(plain: Ground) -> None:
    for task, script in enumerate(("rm -rf .git/refs .git/HEAD", "echo junk > .git/HEAD; " + WORK), start=1):
        left = plain.attempt(script, task=task)
        assert left.branch is None and left.note is not None
        assert str(left.path) in left.note and left.path.exists()
        plain.clean(over=(task,))
        assert left.path.exists()


def test_objects_that_are_not_sound_do_not_get_into_the_repository(ground: Ground) -> None:
    script = """
        tree=$(printf '100644 blob %s\\t.GIT\\n' $(git hash-object -w read.me) | git mktree)
        git update-ref HEAD $(git commit-tree $tree -p HEAD -m evil)
    """
    before = ground.of_the_user()

    async def whole() -> Left:
        async with ground.working() as (work, path):
            said = await ground.agent(work, path, script)
            return await left(work, path, said)

    done = ground.do(whole)
    assert done.branch is None and done.note is not None and "hasDotgit" in done.note, done
    assert ground.of_the_user() == before
    assert ground.git("branch", "--list", "taskyard/*") == ""


def test_a_pointer_to_the_repository_of_somebody_else_is_not_followed(plain: Ground) -> None:
    fake, linked = plain.host.folder / "fake", plain.host.folder / "linked"
    plain.write(fake / ".git", f"gitdir: {plain.repository}/.git\n")
    with pytest.raises(CannotRun, match="part of another repository"):
        plain.attempt(WORK, repository=str(fake))
    tree = plain.host.folder / "tree"
    plain.git("worktree", "add", "--quiet", str(tree))
    plain.write(fake / ".git", f"gitdir: {plain.repository}/.git/worktrees/tree\n")
    with pytest.raises(CannotRun, match="does not know it"):
        plain.attempt(WORK, repository=str(fake))
    linked.symlink_to(plain.repository)
    with pytest.raises(CannotRun, match="a link is in the way"):
        plain.attempt(WORK, repository=str(linked))
    inner = plain.host.folder / "inner"
    inner.mkdir()
    (inner / ".git").symlink_to(plain.repository / ".git")
    with pytest.raises(CannotRun, match="is a link"):
        plain.attempt(WORK, repository=str(inner))
    plain.write(plain.repository / ".git/commondir", "/elsewhere\n")
    with pytest.raises(CannotRun, match="commondir leads to another repository"):
        plain.attempt(WORK)


def test_objects_that_the_scope_does_not_have_are_not_borrowed(plain: Ground) -> None:
    shared = plain.host.folder / "shared"
    plain.git("clone", "--quiet", "--shared", str(plain.repository), str(shared))
    with pytest.raises(CannotRun, match=r"borrows objects from .*/app/\.git/objects"):
        plain.attempt(WORK, repository=str(shared), allowed_paths=[str(shared)])
    left = plain.attempt("cat read.me; " + WORK, repository=str(shared), allowed_paths=[str(plain.host.folder)])
    assert (left.said, left.branch) == ("one\n", "taskyard/3-1")


def test_the_agent_sees_objects_and_nothing_else_of_the_repository(plain: Ground) -> None:
    git_dir = plain.repository / ".git"
    said = plain.attempt(f"ls {plain.repository} {git_dir}; touch {git_dir}/objects/x || echo not written").said
    assert "objects" in said and "not written" in said
    assert "config" not in said and "read.me" not in said


def test_where_the_scope_has_the_repository_its_git_is_read_only(plain: Ground) -> None:
    git_dir = plain.repository / ".git"

    async def tries() -> str:
        async with plain.working(allowed_paths=[str(plain.host.folder)]) as (work, path):
            assert {str(mount.source): mount.writable for mount in work.mounts}[str(git_dir)] is False
            return await plain.agent(work, path, f"cat {git_dir}/HEAD; echo x >> {git_dir}/config || echo not written")

    said = plain.do(tries)
    assert "ref: refs/heads/main" in said and "not written" in said


def test_a_push_obeys_nothing_of_the_repository_but_the_address(ground: Ground) -> None:
    program, ran = trap(ground)
    for task, url in enumerate((f"ext::{program}", "--upload-pack=x", "nonsense", f"ssh://127.0.0.1:1/{program}"), 1):
        ground.git("remote", "add", f"r{task}", "placeholder")
        ground.git("config", f"remote.r{task}.url", url)
    poison(ground, ground.repository / ".git", program)
    notes = [ground.attempt(WORK, task=task, push_to=f"r{task}").push for task in (1, 2, 3, 4)]
    assert all(note is not None and "was not pushed" in note for note in notes), notes
    assert all("none that Taskyard pushes to" in str(note) for note in notes[:3])
    assert not ran.exists() and traces(ground) == []


def test_hooks_of_a_remote_on_this_host_run_in_a_jail(ground: Ground) -> None:
    program, ran = trap(ground)
    bare = ground.host.folder / "remote.git"
    ground.git("clone", "--quiet", "--bare", str(ground.repository), str(bare))
    ground.git("remote", "add", "here", str(bare))
    ground.write(bare / "hooks/post-receive", f"#!/bin/sh\n. {program}\ntouch {ran} {bare}/hooked\n", 0o755)
    ground.write(bare / "hooks/update", f"#!/bin/sh\ntouch {ran} {bare}/updated\nexit 0\n", 0o755)
    left = ground.attempt(WORK, push_to="here")
    assert left.push is None
    assert (bare / "updated").exists(), "the hook did not run, so nothing is proved"
    assert not ran.exists()


@pytest.mark.skipif(not AS_ROOT, reason="only root has an account for agents")
def test_as_root_a_repository_that_agents_may_not_use_is_refused_with_the_remedy(plain: Ground) -> None:
    for path in (plain.repository / ".git", plain.repository / ".git/refs/heads", plain.repository / ".git/objects"):
        owner = path.stat()
        os.chown(path, 0, 0)
        with pytest.raises(CannotRun, match="chown -R taskyard-agent"):
            plain.attempt(WORK)
        os.chown(path, owner.st_uid, owner.st_gid)
    assert plain.attempt(WORK).branch == "taskyard/3-1"


def test_a_refusal_shows_no_password() -> None:
    said = "fatal: unable to access 'https://me:secret@example.com/x.git/': Could not resolve host"
    assert reason(said) == "fatal: unable to access 'https://example.com/x.git/': Could not resolve host"
    refused = (
        "remote: no\nTo https://example.com\n ! [remote rejected] abc -> taskyard/3-1 (hook declined)\nerror: failed"
    )
    assert reason(refused) == "hook declined (no)"
