"""One attempt's work in a git repository, from the clone that it gets to the branch that it leaves.

    work = GitWork(claim, places, confinement)
    workspace = await work.prepare(before)          # raises CannotRun for what the task's author can mend
    ... the agent works there; await work.commit("…") at its checkpoints ...
    await work.commit("…", end=True)                # nothing of the attempt is at work any more
    await work.disregard()                          # after a verification: what it left is no work
    delivered = await work.deliver()
    why_not = await work.push()                     # after success
    work.close()                                    # whatever happened: from here on the clone is anybody's

What cannot be brought into the repository now stays in the clone; Cleaning tries again, and so does the next attempt.
"""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..adapters import CannotRun
from ..sandbox import beneath
from ..sandbox.errors import SandboxError
from ..sandbox.levels import Confinement
from ..sandbox.policy import Mount
from ..sandbox.removal import remove_tree
from ..verbs import Claim
from ..worker.places import Places
from .clone import CLONE, PROTECTED, Clone, Exported, Record, held, load
from .git import Git, GitError
from .push import push
from .repository import Repository, check_account, locate

log = logging.getLogger("taskyard.runner")

# What a call of git can end in that is neither a fault of ours nor of the task's author.
Trouble = (GitError, SandboxError, CannotRun, beneath.Refused, OSError, TimeoutError, ValueError)
PATIENCE = 30.0  # seconds
KINDS = {"changes.diff": "diff", "diffstat.txt": "log", "commits.txt": "commit"}


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit of what an attempt left uncommitted: its whole id, and how many files differ in it."""

    id: str
    files: int


@dataclass(frozen=True, slots=True)
class Proof:
    """An artifact: kind is diff, log or commit; the content is at most 4 MiB, cut there."""

    path: str
    kind: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Delivered:
    """Where the work is. `branch` and `commit` are None where there is none, or it is not in the repository yet.

    `note` says what went other than expected, in sentences for the task's author. `safe`: all that was committed is in
    the repository.
    """

    branch: str | None = None
    commit: str | None = None
    proofs: list[Proof] = field(default_factory=list[Proof])
    note: str | None = None
    safe: bool = True


class GitWork:
    """The work of one claim in claim.repository. The clone is kept for later attempts, see Cleaning."""

    def __init__(self, claim: Claim, places: Places, confinement: Confinement) -> None:
        assert claim.repository is not None
        self._claim = claim
        self._git = Git(confinement)
        self._folder = places.lasting(claim)
        self._holder = claim.files_of or claim.task_id
        self._clone: Clone | None = None
        self._url: str | None = None
        self._writes = "write" in claim.permissions
        self._trouble: str | None = None
        self._held = contextlib.ExitStack()

    @property
    def branch(self) -> str:
        """The attempt's branch, after prepare()."""
        return self._prepared.record.branch

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """What the agent's jail needs besides the clone: the repository's objects.

        Where a path of the scope has the repository too, its .git is read-only in there.
        """
        repository = self._prepared.repository
        allowed = [Path(path) for path in self._claim.allowed_paths or ()]
        if any(repository.common.is_relative_to(path) for path in allowed):
            return (Mount(repository.common), *self._prepared.mounts())
        return self._prepared.mounts()

    @property
    def protected(self) -> tuple[str, ...]:
        """Names below the clone that the agent cannot change."""
        return PROTECTED

    @property
    def _prepared(self) -> Clone:
        assert self._clone is not None, "prepare() was not called"
        return self._clone

    async def prepare(self, before: str | None = None) -> Path:
        """The clone, with a branch of this attempt's checked out; it goes on where the attempt before ended.

        `before` is the branch that was reported last for this task, or for the one that handed over: it is gone on with
        where the repository has it and no clone is here. Raises CannotRun, SandboxError, OSError.
        """
        claim = self._claim
        assert claim.repository is not None
        if "read" not in claim.permissions:
            raise CannotRun(f"Scope {claim.scope} may not read, and the task names a repository.")
        try:
            repository = await asyncio.to_thread(
                locate, claim.repository, claim.allowed_paths, alternates=self._git.jailed
            )
            account = self._git.confinement.account
            if account is not None and account.switch:
                check_account(repository, account)
            await self._take()
            return await self._prepare(repository, before)
        except (ValueError, beneath.Refused) as refused:
            raise CannotRun(f"The sandbox cannot show what the task needs: {refused}") from refused
        except TimeoutError as late:
            raise CannotRun(f"git took too long with the repository {claim.repository}.") from late
        except GitError as error:
            raise CannotRun(f"git cannot prepare a clone of {claim.repository}: {error.said}") from error

    def close(self) -> None:
        """The clone may be used by others from here on."""
        self._held.close()

    async def _take(self) -> None:
        """Wait for an attempt that was lost and is ending, or for a clean-up."""
        deadline = time.monotonic() + PATIENCE
        while not self._held.enter_context(held(self._folder)):
            self._held.close()
            if time.monotonic() > deadline:
                raise CannotRun(f"Something else is still at work in {self._folder / CLONE}.")
            await asyncio.sleep(0.2)

    async def _prepare(self, repository: Repository, before: str | None) -> Path:
        claim = self._claim
        name = f"taskyard/{claim.task_id}-{claim.number}"
        record = load(self._folder)
        if record is not None and record.repository != str(repository.path):
            await self._put_aside(record)
            record = None
        seen = await repository.look(
            self._git,
            base=claim.base if record is None else record.held,
            before=before if record is None else None,
            remote=claim.push_to,
            hold=self._holder,
            name=name,
        )
        self._url = seen.url
        branch = _free(name, seen.taken)
        if record is None:
            record = Record(
                self._holder,
                str(repository.path),
                seen.format,
                seen.start,
                seen.base,
                claim.task_id,
                claim.number,
                branch,
            )
            self._clone = await Clone.make(self._folder, record, repository, self._git)
        else:
            self._clone = Clone(self._folder, record, repository, self._git)
            await self._clone.commit(f"Task {record.task}, attempt {record.number}: what was left", end=True)
            await self._clone.begin(claim.task_id, claim.number, branch)
        return self._clone.path

    async def _put_aside(self, record: Record) -> None:
        """The task's repository is another one now. Raises CannotRun where the work in the old one is not safe yet."""
        left = await settle(self._folder, self._git.confinement)
        if left is not None:
            raise CannotRun(f"What was done in {record.repository} is not there yet, but in {self._folder}: {left}")
        await release(self._folder, self._git.confinement)
        await asyncio.to_thread(remove_tree, self._folder / CLONE)

    async def commit(self, message: str, *, end: bool = False) -> Commit | None:
        """Commit what the agent has not, as Taskyard; None where there is nothing, or it cannot be done.

        Without `end` the agent may be at work: then a merge or rebase that is under way is left alone.
        """
        if not self._writes:
            return None
        try:
            look = await self._prepared.commit(message, end=end)
        except Trouble as error:
            if end:
                self._trouble = f"What was not committed stays so, in {self._prepared.path}: {_gist(error)}."
            return None
        if look is None or look.head is None:
            return None
        if end and look.left_out is not None:
            self._trouble = f"Not all was committed, the rest is in {self._prepared.path}: {look.left_out}."
        return Commit(look.head, look.files) if look.files else None

    async def disregard(self) -> None:
        """What differs from the last commit now is no work: a verification left it."""
        try:
            await self._prepared.note_tree()
        except Trouble as error:
            log.debug("task %s: %s", self._claim.task_id, _gist(error))

    async def deliver(self) -> Delivered:
        """Bring the commits into the user's repository, as the branch. Where that fails, `note` says so."""
        if not self._writes:
            return Delivered()
        delivered = await deliver(self._prepared, self._git)
        self._prepared.record.settled = self._trouble is None and delivered.safe
        self._prepared.save()
        notes = [note for note in (self._trouble, delivered.note) if note is not None]
        return replace(delivered, note=" ".join(notes) or None)

    async def push(self) -> str | None:
        """Push the delivered branch to claim.push_to; returns why it could not be, in a sentence."""
        clone, remote = self._prepared, self._claim.push_to
        commit = clone.record.delivered.get(f"refs/heads/{clone.record.branch}")
        if remote is None or self._url is None or commit is None:
            return None
        try:
            why = await push(clone.repository, self._url, clone.record.branch, commit, self._git)
        except Trouble as error:
            why = _gist(error)
        return None if why is None else f"The branch {clone.record.branch} was not pushed to {remote}: {why}"


async def deliver(clone: Clone, git: Git) -> Delivered:
    """Bring what a clone has into the repository; never raises what another try may mend."""
    record = clone.record
    try:
        async with git.home() as home:
            exported = await clone.export(home)
            if exported is None:
                return Delivered()
            return await _received(clone, exported, git)
    except Trouble as error:
        return Delivered(
            note=f"The work is not in {record.repository} yet, but kept in {clone.path}"
            f" and brought there later: {_gist(error)}.",
            safe=False,
        )


async def settle(folder: Path, confinement: Confinement) -> str | None:
    """Commit and deliver what a clone, at which nobody works any more, has left; returns what is not safe, as a clause.

    Without a clone there is nothing to do.
    """
    record = load(folder)
    if record is None:
        return None
    git = Git(confinement)
    try:
        # What belongs to the task was checked when it was claimed.
        repository = await asyncio.to_thread(locate, record.repository, None, alternates=False)
        clone = Clone(folder, record, repository, git)
        look = await clone.commit(f"Task {record.task}, attempt {record.number}: what was left", end=True)
        if look is not None and look.head is not None:
            delivered = await deliver(clone, git)
            if not delivered.safe:
                return delivered.note
        left = None if look is None else look.left_out
        clone.record.settled = left is None
        clone.save()
        return left
    except Trouble as error:
        return _gist(error)


async def release(folder: Path, confinement: Confinement) -> None:
    """The clone in a folder is no longer needed: let its repository go of what it held for it."""
    record = load(folder)
    if record is None:
        return
    try:
        repository = await asyncio.to_thread(locate, record.repository, None, alternates=False)
        await repository.release(Git(confinement), record.holder)
    except Trouble as error:
        log.warning("refs/taskyard/%s/base stays in %s: %s", record.holder, record.repository, _gist(error))


async def _received(clone: Clone, exported: Exported, git: Git) -> Delivered:
    record, notes = clone.record, list[str]()
    ref, zeros = f"refs/heads/{record.branch}", "0" * len(exported.head)
    proofs = [Proof(f"git/{name}", KINDS[name], content) for name, content in exported.proofs.items() if content]
    ours = record.delivered.get(ref)
    # What was delivered is the user's: merged and deleted, maybe, and then not to be there again.
    current = None if ours == exported.head else await clone.repository.current(git, ref)
    if current is not None and current not in (ours, exported.head):
        seen = await clone.repository.look(
            git, base=record.held, before=None, remote=None, hold=record.holder, name=record.branch
        )
        renamed = _free(record.branch, seen.taken)
        notes.append(f"The branch {record.branch} was changed by somebody else, so the work is {renamed}.")
        ref, current = f"refs/heads/{renamed}", None
        await clone.begin(record.task, record.number, renamed)
    refs = {extra: (found, "") for extra, found in exported.extras.items()}
    worked = exported.head != record.base
    if worked and exported.head not in (ours, current):
        refs[ref] = (exported.head, current or zeros)
    if refs:
        await clone.repository.receive(git, exported.pack, refs)
        if worked:
            refs[ref] = (exported.head, "")
    record.delivered |= {name: new for name, (new, _) in refs.items()}
    clone.save()
    if exported.extras:
        names = ", ".join(sorted(exported.extras)[:5])
        notes.append(f"Further branches, tags or stashes of the agent are kept as {names}.")
    if not worked:
        return Delivered(note=" ".join(notes) or None)
    return Delivered(record.branch, exported.head, proofs, " ".join(notes) or None)


def _free(name: str, taken: frozenset[str]) -> str:
    """The name, with a number where somebody else has a branch of it: another yard's tasks have the same numbers."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}.{number}"
    return free


def _gist(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "git took too long"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
