"""How jails start: what they show, whom they refuse, and from where they are started. Cases 6, 12, 28, 34, 41."""

import asyncio
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import click.testing

from taskyard.runner.adapters import CannotRun
from taskyard.runner.cli import main as command_line
from taskyard.runner.cli.options import State
from taskyard.runner.postgres.account import Account
from taskyard.runner.sandbox.errors import SandboxError
from taskyard.runner.sandbox.host import find_bwrap, system_layout
from taskyard.runner.sandbox.jail import Jail
from taskyard.runner.sandbox.policy import Mount, Policy
from taskyard.runner.worker import confined
from taskyard.runner.worker import main as worker_main

from .arena import Arena, World, answers
from .findings import Findings, case, each


@case(6, "a scope without write is read-only, and one with it writes to the host")
async def write_permission(arena: Arena, findings: Findings) -> None:
    names = ("workspace", "granted folder", "overwrite", "chmod")
    world = arena.world()
    granted = [str(world.granted)]
    found = answers(await arena.inside(world, world.attack(6), ("read", "execute"), allowed_paths=granted))["6"]
    findings.judge(found, each({"EROFS"}, *names), "without write")
    findings.must((world.granted / "file").read_text() == "as it was", "a file of a read-only scope was changed")
    found = answers(await arena.inside(world, world.attack(6), allowed_paths=granted))["6"]
    findings.judge(found, each({"done"}, *names), "with write")
    for made in (world.space / "made", world.granted / "made"):
        findings.must(made.exists() and made.stat().st_uid == arena.account.uid, f"{made.name} is not on the host")
    findings.control("the same scope, with write", all(answer == "done" for answer in found.values()))


@case(12, "a granted folder that is exchanged for a link opens nothing else")
async def exchanged_folder(arena: Arena, findings: Findings) -> None:
    def exchange(world: World) -> None:
        world.granted.rename(world.folder / "moved")
        world.granted.symlink_to(world.outside / "data")

    early = arena.world()
    exchange(early)
    try:
        await arena.inside(early, early.attack(12), allowed_paths=[str(early.granted)])
        findings.must(False, "a scope's folder that was a link was mounted")
    except CannotRun:
        pass

    late, usual = arena.world(), confined.spawn

    async def spawn(*arguments: Any) -> Any:
        exchange(late)
        return await usual(*arguments)

    with mock.patch.object(confined, "spawn", spawn):
        try:
            ended = await arena.inside(late, late.attack(12), allowed_paths=[str(late.granted)])
            findings.judge(answers(ended)["12"], {"swapped folder": {"nothing", "ENOENT"}})
        except SandboxError:
            pass  # as good: it never started

    # What a jail that mounts by the path does.
    system = system_layout()
    shown = [word for folder in system.folders for word in ("--ro-bind", folder, folder)]
    shown += [word for link, target in system.links.items() for word in ("--symlink", target, link)]
    by_path = [find_bwrap(arena.account), *shown, "--ro-bind", str(late.granted), "/granted"]
    ended = await arena.outside([*by_path, "cat", "/granted/one"], late.space)
    findings.control("mounted by its path", arena.secret in ended.stdout)


@case(28, "a job goes on when threads of the runner end")
async def ending_threads(arena: Arena, findings: Findings) -> None:
    world = arena.world()
    loop, threads = asyncio.get_running_loop(), ThreadPoolExecutor(2)
    loop.set_default_executor(threads)
    try:
        claim = arena.claim(world)
        launch = confined.Launch(["sh", "-c", "echo ready; read line; echo $line"], b"still here\n")
        heard: list[str] = []

        async def sink(_: str, text: str) -> None:
            heard.append(text)
            loop.set_default_executor(ThreadPoolExecutor())
            threads.shutdown(wait=True)

        async with asyncio.timeout(20), arena.attempt(world, claim, launch) as (child, _):
            await asyncio.to_thread(int)
            ended = await child.run(launch.stdin, sink)
    finally:
        loop.set_default_executor(ThreadPoolExecutor())
        threads.shutdown(wait=True)
    findings.must(ended.code == 0 and "still here" in "".join(heard), f"the job ended with {ended.code}: {heard}")
    findings.control("started by a thread that ends", await _started_by_a_thread(arena) != 0)


async def _started_by_a_thread(arena: Arena) -> int:
    """The kernel's rule that makes this a promise: a jail ends with the thread that spawned it."""
    world = arena.world()
    home = arena.folder(world.folder / "home")
    policy = Policy(world.space, home, (Mount(world.space, writable=True),))
    with Jail(policy, ["sh", "-c", "sleep 1"], {}, arena.account) as jail:
        spawned: list[subprocess.Popen[bytes]] = []
        entered, may_end = threading.Event(), threading.Event()

        def start() -> None:
            process = subprocess.Popen(
                jail.argv,
                env={},
                cwd="/",
                pass_fds=jail.pass_fds,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            spawned.append(process)
            entered.set()
            may_end.wait(10)

        thread = threading.Thread(target=start)
        thread.start()
        try:
            await asyncio.to_thread(entered.wait, 10)
            await jail.entered()
        finally:
            may_end.set()
            await asyncio.to_thread(thread.join)
        return await asyncio.to_thread(spawned[0].wait, 10)


@case(34, "root is never the one in a jail")
async def never_root(arena: Arena, findings: Findings) -> None:
    world = arena.world()
    policy = Policy(world.space, arena.folder(world.folder / "home"), (Mount(world.space, writable=True),))
    for account in (Account("root", 0, 0, switch=False), Account("root", 0, 0, switch=True)):
        try:
            with Jail(policy, ["touch", "ran"], {}, account):
                findings.must(False, "a jail for uid 0 was made")
        except SandboxError:
            pass
    found = answers(await arena.inside(world, world.attack(34)))["34"]
    expected = {
        "NoNewPrivs": {"1"},
        "Seccomp": {"2"},
        "core_pattern": {"EROFS", "EACCES"},
        "setuid": {"EPERM", "EINVAL"},
    }
    expected |= each({"0" * 16}, "CapEff", "CapPrm", "CapBnd") | {"uid": {str(arena.account.uid)}}
    expected["Groups"] = {"", "65534", *([] if arena.account.switch else _groups())}
    findings.judge(found, expected)
    findings.must(arena.account.uid != 0, "agents are root")
    if os.geteuid() != 0:
        findings.impossible["core_pattern as root"] = "this runner is not root"
        return
    # Opened for writing, and nothing is written.
    jail = [
        find_bwrap(),
        "--unshare-all",
        "--uid",
        "1000",
        "--cap-drop",
        "ALL",
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
    ]
    ended = await arena.outside([*jail, "sh", "-c", "exec 3>>/proc/sys/kernel/core_pattern"], world.space, as_root=True)
    findings.control("core_pattern from bwrap as root", ended.code == 0)


def _groups() -> list[str]:
    """Our own, which the kernel shows as nobody's or as they are."""
    return [" ".join(["65534"] * len(os.getgroups())), " ".join(map(str, os.getgroups()))]


@case(41, "without a sandbox nothing runs, unless an ordinary user says so twice")
async def said_twice(arena: Arena, findings: Findings) -> None:
    # Tasks of confined scopes are kept from such runners in SQL: tests/test_scopes.py and its neighbours.
    once, twice = ("--sandbox", "none"), ("--sandbox", "none", "--unsafe-no-sandbox")
    code, output, ran = _asked_to_run(*once)
    findings.must(code != 0 and not ran and "--unsafe-no-sandbox" in output, f"said once, it runs: {output}")
    code, output, ran = _asked_to_run(*twice)
    if os.geteuid() == 0:
        findings.must(code != 0 and not ran and "root" in output, f"as root it runs: {output}")
        findings.control("with a sandbox, as root", _asked_to_run()[2])
    else:
        findings.control("said twice by an ordinary user", ran)
    level = arena.confinement.level
    findings.must(level == "strict", f"the level of this suite is {level}")


def _asked_to_run(*options: str) -> tuple[int, str, bool]:
    """`taskyard runner`, up to where it would begin: its exit status, what it said, and whether it would."""
    ran: list[object] = []

    def begin(options: object) -> int:
        ran.append(options)
        return 0

    with (
        mock.patch.object(State, "connect"),
        mock.patch.object(State, "database"),
        mock.patch("taskyard.runner.cli.runner.is_pooled", return_value=False),
        mock.patch.object(worker_main, "run", begin),
    ):
        done = click.testing.CliRunner().invoke(command_line, ["runner", *options])
    return done.exit_code, done.output + (done.stderr if done.stderr_bytes else ""), bool(ran)
