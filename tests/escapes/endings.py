"""What a jail leaves behind, and what it leaves to others. Cases 26, 27, 29, 30, 39."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import psutil

from taskyard.runner.adapters import Launch
from taskyard.runner.sandbox.host import find_python
from taskyard.runner.sandbox.policy import Limits
from taskyard.runner.worker import process

from .arena import ALL, PATIENCE, Arena, World, answers
from .findings import Findings, case

STILL = 0.3  # seconds without a beat; a living daemon makes hundreds meanwhile
GROWTH = 64 << 20  # bytes that a runner may take more, whatever its children print
CAPTURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@case(26, "nothing of a stopped attempt survives, however it forks away")
async def stopped(arena: Arena, findings: Findings) -> None:
    world = arena.world()
    beats = world.space / "beats"
    beating = asyncio.Event()

    async def sink(_: str, text: str) -> None:
        if "beating" in text:
            beating.set()

    with mock.patch.object(process, "GRACE", 0.2):
        async with (
            asyncio.timeout(PATIENCE),
            arena.attempt(world, arena.claim(world), Launch(world.attack(26), b"")) as (
                child,
                _,
            ),
        ):
            running = asyncio.create_task(child.run(b"", sink))
            await beating.wait()
            child.stop()
            await running
    await _must_be_still(findings, beats, 0.0)

    bare = arena.world()
    outside = await _bare_daemon(arena, bare)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(outside.pid, signal.SIGKILL)
    await outside.wait()
    await _control_beats(findings, "its group killed", bare)


@case(27, "nothing of an attempt survives its runner's being killed")
async def runner_killed(arena: Arena, findings: Findings) -> None:
    for jailed in (True, False):
        world = arena.world()
        spare = arena.folder(world.folder / "runner") if os.geteuid() == 0 else world.folder / "runner"
        spare.mkdir(exist_ok=True)
        told = {"hold": str(world.folder), "told": world.told, "root": str(spare), "jailed": jailed}
        runner = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.escapes.worker", json.dumps(told)),
            env=arena.environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                assert runner.stdout is not None
                said = await runner.stdout.readline()
            findings.must(b"beating" in said, f"the runner did not begin: {said!r}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                runner.kill()
            await runner.wait()
        if jailed:
            await _must_be_still(findings, world.space / "beats", 1.0)
        else:
            await _control_beats(findings, "without a jail", world)


async def hold(arena: Arena, world: World, jailed: bool) -> None:
    """A runner with an attempt that does not end: what case 27 kills."""

    async def sink(_: str, text: str) -> None:
        if "beating" in text:
            print("beating", flush=True)

    if not jailed:
        child = await _bare_daemon(arena, world)
        print("beating", flush=True)
        await child.wait()
        return
    async with arena.attempt(world, arena.claim(world), Launch(world.attack(26), b"")) as (child, _):
        await child.run(b"", sink)


async def _bare_daemon(arena: Arena, world: World) -> asyncio.subprocess.Process:
    """Beating, outside of any jail; a file `stop` ends it."""
    child = await asyncio.create_subprocess_exec(
        *world.attack(26),
        cwd=world.space,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        **arena.switch(),
    )
    async with asyncio.timeout(PATIENCE):
        while not (world.space / "beats").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # a file tells nobody
    return child


async def _must_be_still(findings: Findings, beats: Path, within: float) -> None:
    deadline = time.monotonic() + within
    while True:
        size = beats.stat().st_size
        await asyncio.sleep(STILL)
        if size == beats.stat().st_size:
            return
        if time.monotonic() > deadline:
            findings.must(False, "a process of the jail is still at work")
            return


async def _control_beats(findings: Findings, what: str, world: World) -> None:
    """Whether the daemon lives on; then it is ended."""
    beats = world.space / "beats"
    size = beats.stat().st_size
    await asyncio.sleep(STILL)
    findings.control(what, beats.stat().st_size > size)
    (world.space / "stop").touch()
    async with asyncio.timeout(PATIENCE):
        while size != (size := beats.stat().st_size):  # noqa: ASYNC110
            await asyncio.sleep(STILL)


@case(29, "a fork bomb stays in its jail")
async def fork_bombs(arena: Arena, findings: Findings) -> None:
    async def bomb(world: World) -> int:
        ended = await arena.inside(world, world.attack(29), limits=Limits(processes=100))
        return int(answers(ended)["29"]["processes"])

    worlds = [arena.world(bomb=150, hold=1.0) for _ in range(3)]
    counts = await asyncio.gather(*map(bomb, worlds))
    findings.must(all(90 <= count < 100 for count in counts), f"processes in three jails at once: {counts}")
    world = arena.world(bomb=150, hold=0.0)
    ended = await arena.outside(world.attack(29), world.space)
    findings.control("150 processes", answers(ended)["29"]["processes"] == "150")


@case(30, "memory, files, /tmp and /dev/shm end at their limits, and neighbours feel nothing")
async def hogs(arena: Arena, findings: Findings) -> None:
    limits = Limits(data=256 << 20, file_size=16 << 20, tmp=8 << 20, shm=8 << 20, files=64)
    greedy = arena.world(tmp="/tmp")
    modest = arena.world()
    hog, neighbour = await asyncio.gather(
        arena.inside(greedy, greedy.attack(30), limits=limits),
        arena.inside(modest, ["sh", "-c", "sleep 0.3; echo fine"]),
    )
    findings.judge(
        answers(hog)["30"],
        {
            "memory": {"MemoryError"},
            "file": {"EFBIG"},
            "/tmp": {"ENOSPC"},
            "/dev/shm": {"ENOSPC"},
            "open files": {"EMFILE"},
        },
    )
    findings.must((greedy.space / "big").stat().st_size == 16 << 20, "the file is larger than its limit")
    findings.must(neighbour.stdout == "fine\n", "the neighbour was disturbed")
    free = arena.world()
    found = answers(await arena.outside(free.attack(30), free.space))["30"]
    findings.judge_control(found, {"/dev/shm": "it is smaller than that here", "open files": "limited here already"})


@case(39, "a flood of output does not fill the runner's memory")
async def flood(arena: Arena, findings: Findings) -> None:
    megabytes = 1024 if arena.thorough else 128
    world = arena.world(megabytes=megabytes)
    before, most, seen = psutil.Process().memory_info().rss, 0, 0

    async def sink(_: str, text: str) -> None:
        nonlocal most, seen
        if seen // (4 << 20) != (seen + len(text)) // (4 << 20):
            most = max(most, psutil.Process().memory_info().rss)
        seen += len(text)

    async with (
        asyncio.timeout(90),
        arena.attempt(world, arena.claim(world, ALL), Launch(world.attack(39), b"")) as (child, _),
    ):
        ended = await child.run(b"", sink)
    findings.must(seen >= megabytes << 20, f"only {seen >> 20} MiB were read")
    findings.must(ended.stdout_cut and len(ended.stdout) <= process.STDOUT_TAIL, "more is kept than the last 4 MiB")
    findings.must(most - before < GROWTH, f"it took {(most - before) >> 20} MiB more")
    small = arena.world(megabytes=128)
    naive = [str(find_python().executable), "-c", CAPTURE, *small.attack(39)]
    done = await asyncio.to_thread(subprocess.run, naive, capture_output=True, text=True, timeout=60, cwd="/")
    findings.control("all of it kept", int(done.stdout) > GROWTH)
