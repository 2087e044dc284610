"""What a runner does with an agent's files afterwards. Cases 9, 10, 36, 37, 38."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from taskyard.runner.adapters import Launch
from taskyard.runner.sandbox import beneath
from taskyard.runner.sandbox.artifacts import collect
from taskyard.runner.sandbox.host import find_python
from taskyard.runner.sandbox.removal import remove_tree
from taskyard.runner.worker import snapshot
from taskyard.runner.worker.places import Rooms

from .. import hostile
from .arena import Arena, World, answers
from .findings import Findings, case

RMTREE = "import shutil, sys; shutil.rmtree(sys.argv[1])"


@case(9, "links that are left as artifacts are not followed")
async def links_as_artifacts(arena: Arena, findings: Findings) -> None:
    def look(rooms: Rooms) -> None:
        found = collect(rooms.artifacts)
        findings.must([a.path for a in found.artifacts] == ["honest"], f"taken: {[a.path for a in found.artifacts]}")
        findings.must(
            all(arena.secret.encode() not in (a.content or b"") for a in found.artifacts), "the secret was kept"
        )
        refused = {path for path, _ in found.refused}
        findings.must({"link", "relative", "folder", "environ", "pipe"} <= refused, f"refused: {sorted(refused)}")
        findings.must(arena.secret not in str(found.refused), "a refusal quotes the secret")
        with contextlib.suppress(OSError):
            naive.append((rooms.artifacts / "link").read_text())

    naive: list[str] = []
    world = arena.world()
    await arena.inside(world, world.attack(9), after=look)
    findings.control("read by its path", naive == [arena.secret])


@case(10, "an exchange of a folder for a link is never won")
async def exchange(arena: Arena, findings: Findings) -> None:
    """The attacker exchanges as fast as it can, in its jail, while we read and write."""
    world = arena.world()
    seconds = 2.0 if arena.thorough else 0.5
    folder, outside = world.space / "folder", world.outside / "data"
    racing = asyncio.Event()

    async def sink(_: str, text: str) -> None:
        if "racing" in text:
            racing.set()

    launch = Launch(world.attack(10), b"")
    async with asyncio.timeout(60), arena.attempt(world, arena.claim(world), launch) as (child, _):
        running = asyncio.create_task(child.run(b"", sink))
        await racing.wait()
        escapes, fine = await asyncio.to_thread(_raced, lambda: _read(folder), arena.secret.encode(), seconds)
        findings.must(not escapes and fine, f"{escapes} reads escaped, {fine} were fine")
        escapes, fine = await asyncio.to_thread(_raced, lambda: _collected(folder), arena.secret.encode(), seconds)
        findings.must(not escapes, f"{escapes} collections escaped")
        await asyncio.to_thread(_raced, lambda: _written(folder), b"", seconds)
        findings.must(not (outside / "new").exists(), "a write escaped")
        control = await asyncio.to_thread(_first_escape, lambda: _naive(folder), arena.secret.encode(), 20.0)
        findings.control("resolved, checked, then read", control)
        child.kill()
        await running


def _raced(action: Callable[[], bytes], secret: bytes, seconds: float) -> tuple[int, int]:
    """How often it got the secret, and how often something else."""
    escapes = fine = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        got = action()
        escapes += bool(secret) and secret in got
        fine += bool(got) and secret not in got
    return escapes, fine


def _first_escape(action: Callable[[], bytes], secret: bytes, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if secret in action():
            return True
    return False


def _read(folder: Path) -> bytes:
    try:
        return beneath.read_bytes(folder.parent, "folder/one", 4096)
    except (beneath.Refused, FileNotFoundError):
        return b""


def _collected(folder: Path) -> bytes:
    try:
        return b"".join(artifact.content or b"" for artifact in collect(folder).artifacts)
    except beneath.Refused:
        return b""


def _written(folder: Path) -> bytes:
    with contextlib.suppress(beneath.Refused):
        beneath.write_bytes(folder.parent, "folder/new", b"written by the runner")
    return b""


def _naive(folder: Path) -> bytes:
    path = folder / "one"
    try:
        if path.resolve().is_relative_to(folder.parent):
            return path.read_bytes()
    except (OSError, RuntimeError):
        pass
    return b""


@case(36, "a poisoned repository runs nothing outside of a jail")
async def poisoned_repository(arena: Arena, findings: Findings) -> None:
    world = arena.world()
    ran, ran_here = world.outside / "ran", world.space / "ran-here"
    taken: list[snapshot.Snapshot | None] = []

    async with asyncio.timeout(90):
        claim = arena.claim(world)
        async with arena.places(world).rooms(claim, world.space, lasting=True) as rooms:
            found = answers(await arena.inside(world, world.attack(36)))["36"]
            findings.must(set(found.values()) == {"done"}, f"the repository could not be poisoned: {found}")
            ran_here.unlink(missing_ok=True)
            taken.append(await snapshot.take(rooms, 1, 1, "work so far", arena.confinement))
    findings.must(not ran.exists(), "the agent's program ran outside")
    findings.must(taken[0] is not None, "no snapshot was taken, so nothing is proved")
    findings.must(ran_here.exists(), "the agent's program did not even run inside, so nothing is proved")
    git = ["git", "-C", str(world.space), "-c", "safe.directory=*"]
    await arena.outside([*git, "add", "--all"], world.space)
    findings.control("git add", ran.exists())
    ran.unlink(missing_ok=True)
    await arena.outside([*git, "status"], world.space)
    findings.control("git status", ran.exists())


@case(43, "what is protected from an attempt is so from the git that runs after it")
async def protected_from_git(arena: Arena, findings: Findings) -> None:
    """The user's own configuration starts a program of the workspace, which the agent has rewritten."""
    for jailed in (True, False):
        world = arena.world()
        config, git = world.space / ".git/config", ["git", "-C", str(world.space), "-c", "safe.directory=*"]
        for words in (["init", "--quiet"], ["config", "filter.tidy.clean", "./tidy"]):
            await arena.outside([*git, *words], world.space)
        arena.file(world.space / ".gitattributes", "*.txt filter=tidy\n")
        before = config.read_text()
        rewrite = f"printf '%s\\n' '#!/bin/sh' 'echo \"#\" >> {config}' cat > tidy; chmod +x tidy; echo work > work.txt"
        claim = arena.claim(world)
        async with arena.places(world).rooms(claim, world.space, lasting=True) as rooms:
            await arena.inside(world, ["sh", "-c", rewrite])
            if jailed:
                taken = await snapshot.take(rooms, 1, 1, "work so far", arena.confinement)
                findings.must(taken is not None, "no snapshot was taken, so nothing is proved")
                findings.must(config.read_text() == before, ".git/config was written by the agent's program")
            else:
                await arena.outside([*git, "add", "--all"], world.space)
                findings.control("git add", config.read_text() != before)


NAMES_TAKEN = ("ok.txt", "sub/ok.txt", "café.txt")
NAMES_REFUSED = (
    *("../outside/secret", "sub/../../outside/secret", "sub/../ok.txt", "./ok.txt", "sub//ok.txt", "sub/", ".", ".."),
    *("....//outside/secret", "", "/etc/passwd", "//etc/passwd", "file:///etc/passwd", "/dev/stdin", "/proc/self/fd/0"),
    *(
        "outward/secret",
        "up/outside/secret",
        "cwd/ok.txt",
        "root/etc/passwd",
        "nul\0",
        "\0",
        "bell\x07",
        "evil\u202etxt.exe",
    ),
    *("\udc80", "n" * 256, "p/" * 2100 + "x", "..\\secret", "C:\\x", "C:x", "\\\\server\\share"),
)
NAMES_OF_TRAPS = (
    *("absolute", "relative", "loop", "inward", "environ", "descriptor", "zero", "nowhere", "pipe", "socket", "hard"),
    *("sub", "sparse", "inner"),
)
NAMES_ABSENT = ("cafe\u0301.txt", "..%2fsecret", "\uff0e\uff0e/secret", "..\u2215secret", "~/x", "con")
SLOW = 0.1  # seconds


@case(37, "no name leads a reader or a writer astray")
async def names(arena: Arena, findings: Findings) -> None:
    folder = arena.root / "names"
    folder.mkdir()
    work = hostile.planted(folder)
    for name in NAMES_TAKEN:
        findings.must(_name_read(work, name, findings) == b"inside", f"{name!a} cannot be read")
    for name in (*NAMES_REFUSED, *NAMES_OF_TRAPS):
        findings.must(_name_read(work, name, findings) == "refused", f"{name[:40]!a} is read")
    for name in NAMES_ABSENT:
        findings.must(_name_read(work, name, findings) == "absent", f"{name!a} is taken for something else")
    for name in (*NAMES_REFUSED, *NAMES_OF_TRAPS, *NAMES_ABSENT, "device"):
        begun = time.monotonic()
        with contextlib.suppress(beneath.Refused):
            beneath.write_bytes(work, name, b"written by the runner")
        findings.must(time.monotonic() - begun < SLOW, f"writing {name[:40]!a} blocked")
    outside = folder / "outside"
    findings.must(sorted(os.listdir(outside)) == ["secret"], f"outside is now: {os.listdir(outside)}")
    findings.must((outside / "secret").read_bytes() == hostile.SECRET, "the secret was overwritten")
    findings.must(sorted(os.listdir(folder)) == ["outside", "work"], "something was made beside the folder")
    for name in ("../outside/secret", "sub/../../outside/secret"):
        findings.control(name, (work / name).read_bytes() == hostile.SECRET)
    hostile_again = arena.root / "names-again"
    hostile_again.mkdir()
    naive = hostile.planted(hostile_again)
    for name in ("absolute", "relative", "outward/secret", "hard"):
        findings.control(name, (naive / name).read_bytes() == hostile.SECRET)


def _name_read(work: Path, name: str, findings: Findings) -> bytes | str:
    begun = time.monotonic()
    try:
        return beneath.read_bytes(work, name, 4096)
    except FileNotFoundError:
        return "absent"
    except beneath.Refused:
        return "refused"
    finally:
        findings.must(time.monotonic() - begun < SLOW, f"reading {name[:40]!a} blocked")


@case(38, "a tree that is made to resist is removed")
async def stubborn_tree(arena: Arena, findings: Findings) -> None:

    async def planted() -> World:
        world = arena.world(depth=3000 if arena.thorough else 1200, files=20_000 if arena.thorough else 1000)
        answers(await arena.inside(world, world.attack(38)))
        return world

    world = await planted()
    findings.must(await asyncio.to_thread(remove_tree, world.space), "it says that it could not")
    findings.must(not world.space.exists(), "something is left")
    again = await planted()
    await arena.outside([str(find_python().executable), "-c", RMTREE, str(again.space)], arena.root)
    findings.control("shutil.rmtree", again.space.exists())
    await asyncio.to_thread(remove_tree, again.space)
