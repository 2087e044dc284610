"""How a jail starts and ends: nothing runs that is not confined, and nothing is left of it afterwards."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from taskyard.runner.postgres.account import Account, account_of
from taskyard.runner.sandbox import beneath
from taskyard.runner.sandbox import jail as jail_module
from taskyard.runner.sandbox.account import agent_account
from taskyard.runner.sandbox.errors import SandboxError
from taskyard.runner.sandbox.jail import Jail
from taskyard.runner.sandbox.policy import GATEWAY_PORT, Mount, Policy
from taskyard.runner.sandbox.run import run

from .jails import AS_ROOT, HOPPING, INSIDE, OUTPUT, RUNNERS, Host, a_host, grown, python_command, spawn


@pytest.fixture(params=RUNNERS)
def here(request: pytest.FixtureRequest) -> Generator[Host, None, None]:
    with a_host(request.param) as host:
        yield host


def test_a_link_is_no_folder_to_grant(here: Host) -> None:
    (here.space / "data").symlink_to(here.folder / "other")
    with pytest.raises(beneath.Refused):
        here.run(here.policy(Mount(here.space / "data")), "true")


def test_the_folder_that_was_opened_is_mounted_whatever_its_name_leads_to_by_then(here: Host) -> None:
    (here.folder / "data").mkdir()
    agent_account().own(here.folder / "data", 0o700)
    agent_account().own(here.folder, 0o755)

    def swap() -> None:
        (here.folder / "data").rename(here.folder / "moved")
        (here.folder / "data").symlink_to(here.folder / "other")

    policy = here.policy(Mount(here.folder / "data", writable=True))
    assert (
        here.call(
            lambda: asyncio.run(
                started(policy, ["/bin/sh", "-c", f"ls {here.folder}/data; touch {here.folder}/data/x"], swap)
            )
        )
        == b""
    )
    assert (here.folder / "moved" / "x").exists()
    assert os.listdir(here.folder / "other") == ["secret"]


def test_a_place_that_is_exchanged_for_a_link_before_it_is_mounted_on_stops_the_start(here: Host) -> None:
    for name in ("data", "elsewhere"):
        (here.space / name).mkdir()
        agent_account().own(here.space / name, 0o700)

    def swap() -> None:
        (here.space / "data").rename(here.space / "moved")
        (here.space / "data").symlink_to("elsewhere")

    policy = here.policy(Mount(here.space / "data"))
    with pytest.raises(SandboxError):
        here.call(lambda: asyncio.run(started(policy, ["/bin/sh", "-c", "touch ran"], swap)))
    assert not (here.space / "ran").exists()


@pytest.mark.parametrize("changed", ["another", "writable"])
def test_a_mount_that_is_not_as_it_should_be_stops_the_start(
    here: Host, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """Whatever bwrap made of its options: the shim looks at what is there."""
    sound = jail_module.options
    other = str(here.folder / "other")

    def wrong(*arguments: Any) -> list[str]:
        words = sound(*arguments)
        at = next(at for at, word in enumerate(words) if word == "--ro-bind-fd" and words[at + 2] == other)
        words[at : at + 2] = ["--bind-fd", words[at + 1]] if changed == "writable" else ["--ro-bind", "/usr/bin"]
        return words

    monkeypatch.setattr(jail_module, "options", wrong)
    with pytest.raises(SandboxError, match="is writable" if changed == "writable" else "was replaced"):
        here.run(here.policy(Mount(here.folder / "other")), "touch", "ran")
    assert not (here.space / "ran").exists()


@pytest.mark.parametrize("execute", [True, False])
def test_what_cannot_be_started_ends_as_in_a_shell(here: Host, execute: bool) -> None:
    policy = here.policy(execute=execute)
    (here.space / "text").write_text("no program")
    absent = here.run(policy, "no-such-program")
    assert (absent.code, absent.stderr) == (127, b"no-such-program: not found in PATH\n")
    assert here.run(policy, str(here.space / "absent")).code == 127
    assert here.run(policy, str(here.space / "text")).code == 126


def test_the_runner_answers_on_the_jails_own_loopback(here: Host) -> None:
    code = """
def ask(port):
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        return client.recv(100).decode()
print(json.dumps([ask(3101), attempt(lambda: ask(3128)), attempt(lambda: socket.create_server(("127.0.0.1", 3101)))]))
"""

    async def served() -> bytes:
        with Jail(
            here.policy(listeners=(GATEWAY_PORT,)), [*python_command(), INSIDE + code], {}, agent_account()
        ) as jail:
            process = await spawn(jail)
            entered = await jail.entered()
            assert list(entered.listeners) == [GATEWAY_PORT]
            connection, _ = await asyncio.get_running_loop().sock_accept(entered.listeners[GATEWAY_PORT])
            with connection:
                connection.sendall(b"from outside")
            output, _ = await process.communicate()
            return output

    assert json.loads(here.call(lambda: asyncio.run(served()))) == ["from outside", "ECONNREFUSED", "EADDRINUSE"]


def test_a_signal_reaches_the_program_itself(here: Host) -> None:
    code = """
import signal
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
print("ready", flush=True)
signal.pause()
"""

    async def stopped() -> tuple[int, int]:
        with Jail(here.policy(), [*python_command(), INSIDE + code], {}, agent_account()) as jail:
            process = await spawn(jail)
            entered = await jail.entered()
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
            uid = Path(f"/proc/{entered.pid}").stat().st_uid
            entered.signal(signal.SIGTERM)
            ended = await process.wait()
            entered.signal(signal.SIGTERM)  # gone by now, which is no error
            return ended, uid

    assert here.call(lambda: asyncio.run(stopped())) == (7, agent_account().uid)


@pytest.mark.parametrize("parent", ["leave", "stay"])
def test_nothing_is_left_of_a_jail_that_is_ended(here: Host, parent: str) -> None:
    trace = here.space / "trace"

    async def ended() -> tuple[int, int]:
        with Jail(
            here.policy(), [*python_command(), INSIDE + HOPPING, str(trace), parent], {}, agent_account()
        ) as jail:
            process = await spawn(jail)
            entered = await jail.entered()
            assert process.stdout is not None
            assert await process.stdout.readline() == b"started\n"
            await grown(trace)
            entered.signal(signal.SIGTERM)
            await entered.end()
            size = trace.stat().st_size
            await process.wait()
            await asyncio.sleep(0.1)  # a hundred hops
            return size, trace.stat().st_size

    before, after = here.call(lambda: asyncio.run(ended()))
    assert 0 < before == after


def test_a_command_that_ran_leaves_nothing_behind(here: Host) -> None:
    trace = here.space / "trace"
    done = here.run(here.policy(), *python_command(), INSIDE + HOPPING, str(trace), "leave")
    assert (done.code, done.stdout) == (0, b"started\n")
    size = trace.stat().st_size if trace.exists() else 0
    time.sleep(0.1)  # a hundred hops
    assert (trace.stat().st_size if trace.exists() else 0) == size


def test_a_jail_dies_with_a_killed_runner(here: Host) -> None:
    trace = here.space / "trace"
    command = [*python_command(), INSIDE + HOPPING, str(trace), "stay"]
    child = os.fork()
    if child == 0:
        try:
            here.become()
            asyncio.run(run(here.policy(), command, {}, agent_account(), timeout=60, output_limit=OUTPUT))
        finally:
            os._exit(0)
    try:
        asyncio.run(grown(trace))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    deadline = time.monotonic() + 5
    size = -1
    while size != (size := trace.stat().st_size):
        assert time.monotonic() < deadline, "it goes on without its runner"
        time.sleep(0.1)  # a hundred hops


def test_input_output_and_exit_status_are_passed_on(here: Host) -> None:
    done = here.run(here.policy(), "sh", "-c", "cat; echo bad >&2; exit 5", stdin=b"x" * 300_000)
    assert (done.code, done.stdout, done.stderr, done.cut) == (5, b"x" * 300_000, b"bad\n", False)
    assert here.run(here.policy(), "sh", "-c", "kill -9 $$").code == 128 + 9
    done = here.run(here.policy(), "sh", "-c", "pwd; yes | head -c 5000000", output_limit=1000)
    assert done.stdout.startswith(str(here.space).encode() + b"\ny\n") and len(done.stdout) == 1000 and done.cut


def test_a_command_that_takes_too_long_is_gone(here: Host) -> None:
    started_at = time.monotonic()
    with pytest.raises(TimeoutError):
        here.run(here.policy(), "sh", "-c", "sleep 60; touch late", timeout=0.5)
    assert time.monotonic() - started_at < 10
    assert not (here.space / "late").exists()


def test_ignored_signals_are_not_inherited(here: Host) -> None:
    done = here.run(here.policy(), "grep", "SigIgn", "/proc/self/status")
    # 32 and 33 are the C library's own; where somebody above us ignores them, nobody can change that.
    assert int(done.stdout.split()[1], 16) & ~(3 << 31) == 0


def test_a_bwrap_that_fails_means_that_nothing_runs(here: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = here.folder / "bwrap"
    fake.write_text(
        "#!/bin/sh\necho 'bwrap: Can'\\''t mount proc on /newroot/proc: Operation not permitted' >&2\nexit 1\n"
    )
    fake.chmod(0o755)

    def found(account: Account) -> str:
        return str(fake)

    monkeypatch.setattr(jail_module, "find_bwrap", found)
    with pytest.raises(SandboxError) as raised:
        here.run(here.policy(), "touch", "ran")
    assert "/proc masked" in raised.value.cause and "systempaths=unconfined" in raised.value.cure
    assert not (here.space / "ran").exists()


def test_a_shim_that_fails_means_that_nothing_runs(here: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jail_module, "_shim", lambda: b"raise SystemExit(3)")
    with pytest.raises(SandboxError):
        here.run(here.policy(), "touch", "ran")
    assert not (here.space / "ran").exists()


def test_a_port_that_cannot_be_opened_stops_the_start_with_its_reason(here: Host) -> None:
    with pytest.raises(SandboxError, match="already in use"):
        here.run(here.policy(listeners=(3101, 3101)), "touch", "ran")
    assert not (here.space / "ran").exists()


def test_a_runner_that_never_answers_means_that_nothing_runs(here: Host) -> None:
    async def unanswered() -> int:
        with Jail(here.policy(), ["touch", "ran"], {}, agent_account()) as jail:
            process = await spawn(jail)
            jail._theirs.close()  # pyright: ignore[reportPrivateUsage]
        await process.communicate()
        assert process.returncode is not None
        return process.returncode

    assert here.call(lambda: asyncio.run(unanswered())) != 0
    assert not (here.space / "ran").exists()


def test_root_is_never_the_one_who_is_confined(here: Host) -> None:
    with (
        pytest.raises(SandboxError, match="root"),
        Jail(here.policy(), ["true"], {}, Account("root", 0, 0, switch=True)),
    ):
        pass
    if AS_ROOT:
        with pytest.raises(SandboxError, match="root"), Jail(here.policy(), ["true"], {}, account_of(0, 0)):
            pass


@pytest.mark.timed
def test_a_jail_costs_a_tenth_of_a_second(here: Host) -> None:
    def times() -> list[float]:
        found: list[float] = []
        for execute in (True, False) * 5:
            begun = time.perf_counter()
            asyncio.run(
                run(here.policy(execute=execute), ["true"], {}, agent_account(), timeout=30, output_limit=OUTPUT)
            )
            found.append(time.perf_counter() - begun)
        return found

    assert min(here.call(times)) < 0.15


async def started(policy: Policy, argv: list[str], between: Callable[[], None]) -> bytes:
    """Start a command with something happening between opening its folders and mounting them; returns its output."""
    with Jail(policy, argv, {}, agent_account()) as jail:
        between()
        process = await spawn(jail)
        try:
            await jail.entered()
            assert process.stdout is not None
            return await process.stdout.read()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.communicate()
