"""The user's repository: found, read, held on to, and given branches; nothing else in it ever changes.

What runs here sees that repository alone, and may write nothing in it but objects and refs below refs/heads/taskyard
and refs/taskyard: the rest is mounted read-only.

refs/heads/taskyard/<task>-<attempt>      the work
refs/taskyard/<task>/base                 what a clone of ours borrows objects of, so that no gc takes them away
refs/taskyard/<task>/also/<attempt>/...   further branches, tags and stashes that an agent made
"""

import asyncio
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..adapters import CannotRun
from ..postgres.account import Account
from ..sandbox import beneath
from ..sandbox.errors import SandboxError
from ..sandbox.policy import Mount
from .git import LONG, Git, GitError

BRANCHES = "refs/heads/taskyard"
OURS = "refs/taskyard"
POINTER = 64 * 1024  # bytes of a file that says where something is
DEEPEST = 5  # levels of alternates; git itself follows five (object-file.c)
PAUSES = (0.1, 0.3, 1.0)  # seconds between tries while somebody else holds a lock

LOOK = """
set -u
git rev-parse --show-object-format || exit 1
if [ -n "$1" ]; then
    base=$(git rev-parse --verify --quiet "$1^{commit}") || { echo no base; exit 0; }
elif git rev-parse --verify --quiet HEAD >/dev/null; then
    base=$(git rev-parse --verify 'HEAD^{commit}') || exit 1
else
    base=
fi
start=$base
if [ -n "$2" ] && found=$(git rev-parse --verify --quiet "refs/heads/$2^{commit}"); then
    start=$found
    base=$(git merge-base "$base" "$start") || base=$start
fi
if [ -n "$3" ]; then url=$(git remote get-url --push "$3" 2>/dev/null) || { echo no remote; exit 0; }; else url=; fi
if git show-ref --verify --quiet refs/heads/taskyard; then echo no room; exit 0; fi
if [ -n "$start" ]; then git update-ref "$4" "$start" || exit 1; fi
printf 'found\\n%s\\n%s\\n%s\\n' "$base" "$start" "$url"
git for-each-ref --format='%(refname)' "$5" "$5.*"
"""

# A pack of fewer objects is taken apart, as git fetch does (fetch.unpackLimit): packs would become many.
RECEIVE = """
set -eu
set -- "$1" $(od -An -tu1 -j8 -N4 "$1")
if [ $(($2 * 16777216 + $3 * 65536 + $4 * 256 + $5)) -lt 100 ]; then
    git unpack-objects -q --strict <"$1"
else
    git index-pack --stdin --fix-thin --strict <"$1" >/dev/null
fi
git update-ref --stdin
"""

CURRENT = 'git for-each-ref --format="%(objectname)" "$1"'
RELEASE = 'git update-ref -d "$1"'
STAYS = ("HEAD", "config", "config.worktree", "hooks", "index", "info", "logs", "modules", "objects", "worktrees")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a task starts from: object format, the commit to compare with and the one to start at (None in an empty
    repository), the remote's address, and which names of its branch are taken."""

    format: str
    base: str | None
    start: str | None
    url: str | None
    taken: frozenset[str]


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository as it was found; all paths are absolute and without links.

    `git_dir` has HEAD, `common` has refs and objects: they differ in a work tree that git worktree made. `borrowed` are
    object folders of others that it uses.
    """

    path: Path
    git_dir: Path
    common: Path
    borrowed: tuple[Path, ...]

    @property
    def objects(self) -> tuple[Path, ...]:
        return (self.common / "objects", *self.borrowed)

    async def look(
        self, git: Git, *, base: str | None, before: str | None, remote: str | None, hold: int, name: str
    ) -> Seen:
        """Find the commit to start from, and hold on to it for task `hold`.

        `base`: a branch, tag or commit, None for HEAD; `before`: a branch that, where it is there, is gone on with;
        `remote` has to be there; `name`: the branch that is to be made. Raises CannotRun.
        """
        await self._make_rooms(git)
        try:
            printed = await self._patiently(
                git, LOOK, base or "", before or "", remote or "", f"{OURS}/{hold}/base", f"refs/heads/{name}"
            )
        except GitError as error:
            raise CannotRun(f"git cannot use the repository {self.path}: {error.said}") from error
        form, found, *lines = printed.splitlines()
        if found == "no base":
            raise CannotRun(f"The repository {self.path} has no branch, tag or commit {base}.")
        if found == "no remote":
            raise CannotRun(f"The repository {self.path} has no remote {remote}.")
        if found == "no room":
            raise CannotRun(
                f"The repository {self.path} has a branch named taskyard, so there cannot be any taskyard/…: rename it."
            )
        compare, start, url, *taken = lines
        names = frozenset(ref.removeprefix("refs/heads/") for ref in taken)
        return Seen(form, compare or None, start or None, url or None, names)

    async def receive(self, git: Git, pack: Path, refs: Mapping[str, tuple[str, str]]) -> None:
        """Take in a pack, whose objects are checked, and set refs: {ref: (new, old)}, all or none.

        An `old` of zeros: the ref must not be there; an empty one: it does not matter. Raises GitError, and what
        Git.run() raises.
        """
        commands = "".join(f"update {ref} {new} {old}".rstrip() + "\n" for ref, (new, old) in refs.items())
        at = Path("/pack") if git.jailed else pack
        await self._make_rooms(git)
        await self._patiently(
            git,
            RECEIVE,
            str(at),
            mounts=(Mount(self.common / "objects", writable=True), Mount(pack, at=at)),
            stdin=commands.encode(),
            timeout=LONG,
        )

    async def current(self, git: Git, ref: str) -> str | None:
        """Which commit a ref holds."""
        return (await self._patiently(git, CURRENT, ref)).strip() or None

    async def release(self, git: Git, task: int) -> None:
        """Let go of what was held for a task. Raises GitError, and what Git.run() raises."""
        # A ref that was packed is removed by writing packed-refs anew, which lies beside what is nobody's business.
        heads = [f"refs/{entry.name}" for entry in os.scandir(self.common / "refs") if entry.name != "taskyard"]
        await self._patiently(
            git,
            RELEASE,
            f"{OURS}/{task}/base",
            mounts=(Mount(self.common, writable=True),),
            protected=(*STAYS, *heads),
            narrow=False,
        )

    async def _patiently(
        self,
        git: Git,
        script: str,
        *arguments: str,
        mounts: Sequence[Mount] = (),
        protected: Sequence[str] = (),
        stdin: bytes = b"",
        timeout: float = 60.0,
        narrow: bool = True,
    ) -> str:
        """Run a script here; while another git holds a lock, try again a few times. Its locks are never removed."""
        ours = [Mount(self.common / ref, writable=True) for ref in (BRANCHES, OURS)] if narrow else []
        for pause in (*PAUSES, None):
            try:
                return await git.run(
                    script,
                    *arguments,
                    workspace=self.common,
                    mounts=(Mount(self.common), *ours, *mounts, *(Mount(path) for path in self.borrowed)),
                    env={
                        "GIT_DIR": str(self.git_dir),
                        "GIT_COMMON_DIR": str(self.common),
                    },
                    protected=protected,
                    stdin=stdin,
                    timeout=timeout,
                )
            except (GitError, SandboxError, beneath.Refused) as error:
                # git removes folders of refs that have become empty, also those that are being mounted here.
                passes = not isinstance(error, GitError) or error.busy or "No such file or directory" in error.said
                if pause is None or not passes:
                    raise
                await asyncio.sleep(pause)
                if narrow:
                    await self._make_rooms(git)
        raise AssertionError("unreachable")

    async def _make_rooms(self, git: Git) -> None:
        """The folders of our refs: mounted writable, so they have to be there."""
        account = git.confinement.account
        owner = (account.uid, account.gid) if account is not None and account.switch else None
        try:
            for ref in (BRANCHES, OURS):
                await asyncio.to_thread(beneath.make_directory, self.common, ref, owner)
        except beneath.Refused as refused:
            if (self.common / BRANCHES).is_file():
                raise CannotRun(
                    f"The repository {self.path} has a branch named taskyard,"
                    " so there cannot be any taskyard/…: rename it."
                ) from refused
            raise CannotRun(f"The repository {self.path} cannot be given branches: {refused}") from refused


def locate(named: str, allowed: Sequence[str] | None, *, alternates: bool) -> Repository:
    """The repository at a directory of this host. `allowed`: the paths that the scope has, None for all.

    Nothing is followed that an agent could have planted: no links, and a work tree's pointer only where the repository
    points back. `alternates`: whether others' objects, which it may borrow, have to be within `allowed`. Raises
    CannotRun.
    """
    path = Path(named)
    try:
        os.close(beneath.open_directory(path))
    except beneath.Refused as refused:
        if not path.is_dir():
            raise CannotRun(f"This host has no directory {named}.") from refused
        raise CannotRun(f"The repository cannot be used: {refused}") from refused
    try:
        git_dir, common = _git_dir(path)
        if not all((common / name).is_dir() for name in ("objects", "refs")):
            raise CannotRun(f"{named} is not a git repository.")
        within = None if allowed is None or not alternates else [Path(entry) for entry in allowed]
        return Repository(path, git_dir, common, tuple(_borrowed(path, common / "objects", within, DEEPEST)))
    except beneath.Refused as refused:
        raise CannotRun(f"The repository {named} cannot be used: {refused}") from refused


def check_account(repository: Repository, account: Account) -> None:
    """As root, git runs as the agents' account. Raises CannotRun where that one cannot give it branches."""
    common = repository.common
    needed = [
        (common, os.W_OK | os.R_OK),
        (common / "config", os.R_OK),
        (common / "HEAD", os.R_OK),
        (common / "objects", os.W_OK | os.R_OK),
        (common / "refs", os.W_OK | os.R_OK),
        (common / "refs/heads", os.W_OK | os.R_OK),
    ]
    for path, wanted in needed:
        if path.exists() and not _may(path.stat(), account, wanted):
            raise CannotRun(
                f"The runner is root and its agents are {account.name}, who may not use the repository"
                f" {repository.path}: chown -R {account.name} it, or start the runner as its owner."
            )


def _may(found: os.stat_result, account: Account, wanted: int) -> bool:
    shift = 6 if found.st_uid == account.uid else 3 if found.st_gid == account.gid else 0
    return (stat.S_IMODE(found.st_mode) >> shift) & wanted == wanted


def _git_dir(path: Path) -> tuple[Path, Path]:
    """Where HEAD is, and where refs and objects are."""
    dot = path / ".git"
    if dot.is_symlink():
        raise CannotRun(f"{dot} is a link: name the repository that it leads to.")
    if dot.is_file():
        return _work_tree(path)
    git_dir = dot if dot.is_dir() else path
    if not (git_dir / "HEAD").is_file():
        raise CannotRun(f"{path} is not a git repository.")
    if os.path.lexists(git_dir / "commondir"):
        raise CannotRun(f"{git_dir}/commondir leads to another repository: remove it, if it is not yours.")
    return git_dir, git_dir


def _work_tree(path: Path) -> tuple[Path, Path]:
    """See gitrepository-layout(5), gitdir and commondir."""
    text = beneath.read_bytes(path, ".git", POINTER).decode(errors="surrogateescape").strip()
    git_dir = Path(os.path.normpath(path / text.removeprefix("gitdir:").strip()))
    try:
        back = beneath.read_bytes(git_dir, "gitdir", POINTER).decode(errors="surrogateescape").strip()
        up = beneath.read_bytes(git_dir, "commondir", POINTER).decode(errors="surrogateescape").strip()
    except (FileNotFoundError, beneath.Refused):
        raise CannotRun(f"{path} is part of another repository: name that one.") from None
    common = Path(os.path.normpath(git_dir / up))
    if Path(os.path.normpath(git_dir / back)) != path / ".git" or git_dir.parent != common / "worktrees":
        raise CannotRun(f"{path} says that it is a work tree of {common}, which does not know it.")
    return git_dir, common


def _borrowed(path: Path, objects: Path, within: Sequence[Path] | None, deepest: int) -> list[Path]:
    """The object folders of others, in objects/info/alternates (gitrepository-layout(5))."""
    try:
        text = beneath.read_bytes(objects, "info/alternates", POINTER).decode(errors="surrogateescape")
    except FileNotFoundError:
        return []
    found: list[Path] = []
    for line in text.splitlines():
        other = Path(os.path.normpath(objects / line.strip()))
        if not line.strip() or line.startswith("#") or not other.is_dir():
            continue
        if within is not None and not any(other.is_relative_to(entry) for entry in within):
            raise CannotRun(
                f"The repository {path} borrows objects from {other}, which the task's scope does not have:"
                " git repack -a -d there, and remove objects/info/alternates."
            )
        found.append(other)
        if deepest > 1:
            found += _borrowed(path, other, within, deepest - 1)
    return found
