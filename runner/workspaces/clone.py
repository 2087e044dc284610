"""A task's own clone of a repository, whose objects it borrows: an agent works in it, and may do to it what it likes.

<folder>/clone       the work tree, with .git
<folder>/clone.json  what we know of it, where no agent can write
<folder>/clone.lock  held (flock(2)) by whoever is at work in it

The user's configuration is not in it, so neither are its filters, hooks and drivers; and what an agent made of ours is
replaced before git runs here again.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..sandbox import beneath
from ..sandbox.policy import Mount
from ..sandbox.removal import remove_tree
from .git import LONG, Git, GitError
from .repository import Repository

CLONE = "clone"
RECORD = "clone.json"
LOCK = "clone.lock"
PROOF_LIMIT = 4 << 20  # bytes, of each; the database takes no more (see add_artifact())
MOST_EXTRAS = 50  # further branches, tags and stashes

# Pinned and read-only for agents, so that git outside of any jail runs nothing of theirs either.
PROTECTED = (".git/config", ".git/hooks")

# $CONFIG and $ALTERNATES are the contents of those two files. An agent can plant a link where they are.
_PROLOGUE = """
set -u
put() {
    if [ -L "$1" ] || [ ! -f "$1" ] || [ "$(cat "$1")" != "$2" ]; then
        rm -rf "$1.taskyard" && printf '%s\\n' "$2" >"$1.taskyard" || exit 1
        if [ ! -f "$1" ]; then rm -rf "$1"; fi
        mv -f "$1.taskyard" "$1" || exit 1
    fi
}
put "$GIT_DIR/config" "$CONFIG"
put "$GIT_DIR/objects/info/alternates" "$ALTERNATES"
"""

MAKE = """
set -eu
env -u GIT_COMMON_DIR git init --quiet --template= --object-format="$1" --initial-branch="$2"
mkdir -p "$GIT_DIR/hooks" "$GIT_DIR/info" "$GIT_DIR/objects/info"
printf '%s\\n' "$CONFIG" >"$GIT_DIR/config"
printf '%s\\n' "$ALTERNATES" >"$GIT_DIR/objects/info/alternates"
if [ -f "$4" ]; then cp "$4" "$GIT_DIR/shallow"; fi
if [ -n "$3" ]; then
    git update-ref "refs/heads/$2" "$3"
    git reset --quiet --hard
fi
"""

# $1 branch, $2 message, $3 a tree that is no work, $4 "end" once nobody else is at work here.
COMMIT = (
    _PROLOGUE
    + """
under_way=
for name in MERGE_HEAD CHERRY_PICK_HEAD REVERT_HEAD rebase-merge rebase-apply BISECT_LOG; do
    if [ -e "$GIT_DIR/$name" ]; then under_way=1; fi
done
if [ "$4" = end ]; then
    find "$GIT_DIR" -name '*.lock' -type f -delete
elif [ -n "$under_way" ]; then
    exit 0
fi
partial=
add() { git add --all --ignore-errors -- . 2>"$HOME/said"; }
if ! add; then
    if grep -q "index.lock'" "$HOME/said"; then cat "$HOME/said" >&2; exit 1; fi
    again=
    if [ "$4" = end ] && ! git ls-files >/dev/null 2>&1; then
        # A crash left the index unreadable: the work tree tells as much.
        rm -rf "$GIT_DIR/index"
        if git rev-parse --verify --quiet HEAD >/dev/null; then git read-tree HEAD || exit 1; fi
        again=1
    fi
    if [ -z "$again" ] || ! add; then
        partial=$(grep -E -m 1 '^(error|fatal): ' "$HOME/said" | head -c 300)
        partial=${partial:-git add failed}
    fi
fi
tree=$(git write-tree) || exit 1
head=$(git rev-parse --verify --quiet 'HEAD^{commit}') || head=
if [ -n "$head" ]; then old=$(git rev-parse "$head^{tree}"); else old=$(git hash-object -t tree /dev/null); fi
files=0
if [ "$tree" = "$3" ]; then
    git reset --quiet
elif [ "$tree" != "$old" ] || [ -e "$GIT_DIR/MERGE_HEAD" ]; then
    files=$(git diff-tree -r --name-only --no-renames "$old" "$tree" | wc -l)
    git commit --quiet --no-verify --no-status --allow-empty -m "$2" || exit 1
    head=$(git rev-parse --verify HEAD) || exit 1
fi
if [ -n "$head" ] && [ "$(git symbolic-ref --quiet HEAD)" != "refs/heads/$1" ]; then
    tip=$(git rev-parse --verify --quiet "refs/heads/$1") || tip=
    if [ -n "$tip" ] && ! git merge-base --is-ancestor "$tip" "$head"; then
        git update-ref "refs/taskyard/left/$tip" "$tip" || exit 1
    fi
    git update-ref "refs/heads/$1" "$head" || exit 1
fi
nested=
for path in $(git ls-files --stage | sed -n 's/^160000 [0-9a-f]* [0-3].//p' | head -n 100); do
    if [ -e "$path/.git" ]; then nested=$path; break; fi
done
printf '%s\\n%s\\n%s\\n%s\\n' "$head" "$((files))" "$partial" "$nested"
"""
)

# What a verification left behind is noted as a tree, with an index of its own.
TREE = (
    _PROLOGUE
    + """
if [ -f "$GIT_DIR/index" ]; then cp "$GIT_DIR/index" "$HOME/index"; fi
export GIT_INDEX_FILE="$HOME/index"
git add --all --ignore-errors -- . || true
git write-tree
"""
)

# A new branch at what is checked out; what was under way is committed by now, and is not gone on with.
BRANCH = (
    _PROLOGUE
    + """
set -e
find "$GIT_DIR" -name '*.lock' -type f -delete
rm -rf "$GIT_DIR/rebase-merge" "$GIT_DIR/rebase-apply"
rm -f "$GIT_DIR/MERGE_HEAD" "$GIT_DIR/MERGE_MSG" "$GIT_DIR/MERGE_MODE" "$GIT_DIR/CHERRY_PICK_HEAD" \
    "$GIT_DIR/REVERT_HEAD" "$GIT_DIR"/BISECT_*
if head=$(git rev-parse --verify --quiet 'HEAD^{commit}'); then git update-ref "refs/heads/$1" "$head"; fi
git symbolic-ref HEAD "refs/heads/$1"
"""
)

# $1 base, $2 the commit borrowed from, $3 branch, $4 how many refs, $5 bytes. Leaves refs, pack and proofs in $HOME.
EXPORT = (
    _PROLOGUE
    + """
head=$(git rev-parse --verify --quiet "refs/heads/$3") || { [ -z "$2" ]; exit; }
git for-each-ref --count="$4" --no-merged="$head" --format='%(objectname) %(refname)' \
    refs/heads refs/tags refs/stash refs/taskyard/left >"$HOME/refs" || exit 1
{
    printf '%s\\n' "$head"
    cut -d' ' -f1 "$HOME/refs"
    if [ -n "$2" ]; then printf '^%s\\n' "$2"; fi
} >"$HOME/wanted"
git pack-objects --revs --thin --stdout --quiet --delta-base-offset <"$HOME/wanted" >"$HOME/pack" || exit 1
empty=$(git hash-object -t tree /dev/null)
plain="--no-ext-diff --no-textconv --no-color"
git diff $plain "${1:-$empty}" "$head" | head -c "$5" >"$HOME/changes.diff"
git diff $plain --stat=120 --summary "${1:-$empty}" "$head" | head -c "$5" >"$HOME/diffstat.txt"
git log --no-color --no-show-signature --stat=120 $plain "$head" ${1:+"^$1"} | head -c "$5" >"$HOME/commits.txt"
printf '%s\\n' "$head"
"""
)


@dataclass(slots=True)
class Record:
    """What is known of a clone.

    `task` and `number` are those of the last attempt, `holder` the task whose folder this is. `held` is the commit that
    the repository keeps for it, `base` the one that work is compared with; both None where the repository was empty.
    `delivered` is what the repository has got: {ref: object}. `known` is a tree that is no work. `settled`: nothing was
    left to commit or to deliver when the last attempt ended.
    """

    holder: int
    repository: str
    format: str
    held: str | None
    base: str | None
    task: int
    number: int
    branch: str
    delivered: dict[str, str] = field(default_factory=dict[str, str])
    known: str | None = None
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """A clone after commit(): its commit, how many files that took in, and what could not be committed (None: all)."""

    head: str | None
    files: int
    left_out: str | None


@dataclass(frozen=True, slots=True)
class Exported:
    """What leaves a clone: its commit, further refs {ref: object}, and proofs {name: content}; the pack is a file."""

    head: str
    extras: dict[str, str]
    pack: Path
    proofs: dict[str, bytes]


class Clone:
    """The clone in a folder of ours. Its methods raise GitError, and what Git.run() raises."""

    def __init__(self, folder: Path, record: Record, repository: Repository, git: Git) -> None:
        self.folder = folder
        self.path = folder / CLONE
        self.record = record
        self.repository = repository
        self._git = git

    @classmethod
    async def make(cls, folder: Path, record: Record, repository: Repository, git: Git) -> "Clone":
        """Make it, with its work tree; one that was not finished is made anew."""
        unfinished = folder / f"{CLONE}.new"
        remove_tree(unfinished)
        unfinished.mkdir(mode=0o700)
        if git.confinement.account is not None:
            git.confinement.account.own(unfinished, 0o700)
        clone = cls(folder, record, repository, git)
        shallow = repository.common / "shallow"
        known = "/shallow" if git.jailed else str(shallow)
        mounts = [Mount(shallow, at=Path(known))] if shallow.is_file() and git.jailed else []
        arguments = (record.format, record.branch, record.held or "", known)
        await clone._run(MAKE, *arguments, at=unfinished, mounts=mounts, timeout=LONG)
        clone.save()
        unfinished.rename(clone.path)
        return clone

    def save(self) -> None:
        content = json.dumps(asdict(self.record), indent=1).encode()
        beneath.write_bytes(self.folder, RECORD, content)

    async def commit(self, message: str, *, end: bool) -> Look | None:
        """Commit all that differs, on what is checked out, and let the branch have it.

        `end`: nobody else is at work here, so locks are stale and merges that were under way are over; else None where
        it is no moment to commit.
        """
        arguments = (self.record.branch, message, self.record.known or "-", "end" if end else "")
        try:
            printed = await self._run(COMMIT, *arguments, timeout=LONG)
        except GitError as error:
            if error.busy and not end:
                return None
            raise
        if not printed:
            return None
        head, files, partial, nested = printed.split("\n")[:4]
        left_out = partial or (f"{nested} is a repository of its own" if nested else None)
        return Look(head or None, int(files), left_out)

    async def note_tree(self) -> None:
        """What now differs from the last commit is no work."""
        self.record.known = (await self._run(TREE, timeout=LONG)).strip()
        self.save()

    async def begin(self, task: int, number: int, branch: str) -> None:
        """Go on, for another attempt, on a branch of its own."""
        await self._run(BRANCH, branch)
        self.record.task, self.record.number, self.record.branch = task, number, branch
        self.record.known, self.record.settled = None, False
        self.save()

    async def export(self, home: Path) -> Exported | None:
        """Pack into `home` what the repository has not got, with proofs of the work; None: there is not one commit."""
        record = self.record
        arguments = (record.base or "", record.held or "", record.branch, str(MOST_EXTRAS), str(PROOF_LIMIT))
        head = (await self._run(EXPORT, *arguments, home=home, timeout=LONG)).strip()
        if not head:
            return None
        extras: dict[str, str] = {}
        for line in beneath.read_bytes(home, "refs", 1 << 20).decode(errors="replace").splitlines():
            found, ref = line.split(" ", 1)
            name = ref.removeprefix("refs/").removeprefix("taskyard/")
            theirs = f"refs/taskyard/{record.task}/also/{record.number}/{name}"
            if found not in record.delivered.values():
                extras[theirs] = found
        names = ("changes.diff", "diffstat.txt", "commits.txt")
        proofs = {name: beneath.read_bytes(home, name, PROOF_LIMIT) for name in names}
        return Exported(head, extras, home / "pack", proofs)

    def mounts(self) -> tuple[Mount, ...]:
        """What git needs to see besides the clone itself."""
        return tuple(Mount(path) for path in self.repository.objects)

    async def _run(
        self,
        script: str,
        *arguments: str,
        at: Path | None = None,
        home: Path | None = None,
        mounts: Sequence[Mount] = (),
        timeout: float = 60.0,
    ) -> str:
        git_dir = str((at or self.path) / ".git")
        return await self._git.run(
            script,
            *arguments,
            workspace=at or self.path,
            mounts=(Mount(at or self.path, writable=True), *self.mounts(), *mounts),
            env={
                "GIT_DIR": git_dir,
                "GIT_COMMON_DIR": git_dir,
                "CONFIG": _config(self.record.format),
                "ALTERNATES": "\n".join(str(path) for path in self.repository.objects),
            },
            home=home,
            timeout=timeout,
        )


@contextlib.contextmanager
def held(folder: Path) -> Generator[bool]:
    """Whether the clone in a folder of ours is free for us, and then nobody else's meanwhile, whichever process asks.

    The lock ends with the process at the latest.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def load(folder: Path) -> Record | None:
    """What is known of the clone in a folder of ours, None where there is none."""
    if not os.path.lexists(folder / CLONE):
        return None
    try:
        return Record(**json.loads(beneath.read_bytes(folder, RECORD, 1 << 20)))
    except (FileNotFoundError, beneath.Refused):
        return None


def _config(form: str) -> str:
    version, extensions = ("0", "") if form == "sha1" else ("1", f"\n[extensions]\n\tobjectformat = {form}")
    return (
        f"[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true"
        f"\n[gc]\n\tauto = 0\n[maintenance]\n\tauto = false{extensions}"
    )
