"""What a child in a jail can see and do: real processes, by a runner that is root and by one that is not.

Where no sandbox can be set up these tests fail: agents would not run there either.
"""

import asyncio
import errno
import json
import os
import shutil
import socket
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from taskyard.runner.sandbox import beneath
from taskyard.runner.sandbox.account import agent_account
from taskyard.runner.sandbox.jail import Jail
from taskyard.runner.sandbox.policy import Limits, Mount
from taskyard.runner.sandbox.run import run

from .jails import INSIDE, OUTPUT, RUNNERS, Host, a_host, python_command, spawn


@pytest.fixture(params=RUNNERS)
def here(request: pytest.FixtureRequest) -> Generator[Host, None, None]:
    with a_host(request.param) as host:
        yield host


def test_what_nobody_granted_does_not_exist(here: Host) -> None:
    secret = here.folder / "secret"
    paths = [secret, here.folder / "other", "/etc/shadow", "/etc/hostname", "/root", "/var/lib", "/sys"]
    links = [f"/proc/{link}{secret}" for link in ("self/root", "1/root", "self/cwd", "self/fd/0")]
    code = "print(json.dumps({path: attempt(lambda: os.lstat(path)) for path in sys.argv[1:]}))"
    found = here.python(here.policy(), code, *paths, *links)
    assert set(found.values()) <= {"ENOENT", "ENOTDIR"}, found


def test_what_nobody_granted_cannot_be_changed(here: Host) -> None:
    """Where it would be is a temporary folder of the jail at most."""
    before = (here.folder / "secret").stat()
    code = """
for action in (write, os.unlink, lambda path: os.chmod(path, 0o777), os.utime, os.mkdir, lambda path: os.rename(path, path + "x")):
    attempt(lambda: action(sys.argv[1]))
print(json.dumps(attempt(lambda: os.symlink(sys.argv[1], sys.argv[2] + "/link"))))
attempt(lambda: write(sys.argv[2] + "/link"))
"""
    assert here.python(here.policy(), code, here.folder / "secret", here.space) is None
    after = (here.folder / "secret").stat()
    assert (here.folder / "secret").read_text() == "secret"
    assert (after.st_mode, after.st_mtime_ns, after.st_ino) == (before.st_mode, before.st_mtime_ns, before.st_ino)
    assert sorted(os.listdir(here.folder)) == ["home", "other", "secret", "space"]


def test_its_neighbours_in_the_root_are_the_systems_alone(here: Host) -> None:
    names = here.python(here.policy(), "print(json.dumps(os.listdir('/')))")
    top = here.folder.parts[1]
    assert set(names) <= {
        "bin",
        "dev",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "proc",
        "run",
        "sbin",
        "usr",
        "var",
        "tmp",
        top,
    }


def test_a_writable_mount_is_written_on_the_host_and_a_read_only_one_is_not(here: Host) -> None:
    code = """
import stat
print(json.dumps([
    attempt(lambda: write(sys.argv[1] + "/made")),
    attempt(lambda: write(sys.argv[2] + "/made")),
    attempt(lambda: write(sys.argv[2] + "/secret")),
    attempt(lambda: os.chmod(sys.argv[2] + "/secret", 0o777)),
    attempt(lambda: os.rename(sys.argv[2] + "/secret", sys.argv[2] + "/x")),
    attempt(lambda: os.link(sys.argv[2] + "/secret", sys.argv[1] + "/x")),
    attempt(lambda: os.mknod(sys.argv[1] + "/disk", 0o600 | stat.S_IFBLK, os.makedev(254, 0))),
    open(sys.argv[2] + "/secret").read(),
]))
"""
    policy = here.policy(Mount(here.folder / "other"))
    *errors, content = here.python(policy, code, here.space, here.folder / "other")
    assert errors == [None, "EROFS", "EROFS", "EROFS", "EROFS", "EXDEV", "EPERM"]
    assert content == "secret"
    made = here.space / "made"
    assert made.read_text() == "written inside" and made.stat().st_uid == agent_account().uid


def test_a_single_file_can_be_granted(here: Host) -> None:
    secret = here.folder / "other" / "secret"
    code = """
folder = os.path.dirname(sys.argv[1])
print(json.dumps([open(sys.argv[1]).read(), attempt(lambda: write(sys.argv[1])), os.listdir(folder)]))
"""
    assert here.python(here.policy(Mount(secret)), code, secret) == ["secret", "EROFS", ["secret"]]


def test_a_folder_can_be_granted_at_another_place(here: Host) -> None:
    policy = here.policy(
        Mount(here.folder / "other", at=Path("/opt/x")), Mount(here.folder / "other", at=Path("/home/agent/a/b"))
    )
    code = 'print(json.dumps([open(f"{place}/secret").read() for place in ("/opt/x", "/home/agent/a/b")]))'
    assert here.python(policy, code) == ["secret", "secret"]


def test_a_mount_needs_a_place_within_another_mount(here: Host) -> None:
    with pytest.raises(ValueError, match="could be mounted on"):
        here.run(here.policy(Mount(here.folder / "other", at=here.space / "absent")), "true")
    assert not (here.space / "absent").exists()


def test_the_systems_folders_are_read_only(here: Host) -> None:
    code = """
places = ["/x", "/usr/x", "/usr/bin/python3", "/etc/x", "/etc/passwd", "/dev/x", "/run/x", "/run/taskyard/shim.py", "/home/x",
    "/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sys/user/max_user_namespaces"]
print(json.dumps({place: attempt(lambda: write(place)) for place in places}))
"""
    found = here.python(here.policy(), code)
    assert set(found.values()) <= {"EROFS", "EACCES", "EPERM"}, found


def test_what_is_protected_can_neither_be_changed_nor_moved_away(here: Host) -> None:
    account = agent_account()
    for folder in (here.space / ".git", here.space / ".git/hooks"):
        folder.mkdir()
        account.own(folder, 0o755)
    for name in (".git/config", ".mcp.json"):
        (here.space / name).write_text("as it was")
        account.own(here.space / name, 0o644)
    policy = here.policy(protected=(".git/config", ".git/hooks", ".mcp.json", ".claude"))
    code = """
os.chdir(sys.argv[1])
print(json.dumps([
    attempt(lambda: write(".git/config")),
    attempt(lambda: write(".git/hooks/post-checkout")),
    attempt(lambda: os.rename(".git", "moved")),
    attempt(lambda: os.rename(".git/config", ".git/moved")),
    attempt(lambda: os.unlink(".git/config")),
    attempt(lambda: os.unlink(".mcp.json")),
    attempt(lambda: os.rename(sys.argv[1], sys.argv[1] + "-moved")),
    attempt(lambda: write(".git/HEAD")),
]))
"""
    assert here.python(policy, code, here.space) == [
        "EROFS",
        "EROFS",
        "EBUSY",
        "EBUSY",
        "EBUSY",
        "EBUSY",
        "EBUSY",
        None,
    ]
    # Also where a wider grant makes the workspace's own folder movable.
    account.own(here.folder, 0o755)
    wider = replace(policy, mounts=(Mount(here.folder, writable=True),))
    assert here.python(wider, code, here.space) == [
        "EROFS",
        "EROFS",
        "EBUSY",
        "EBUSY",
        "EBUSY",
        "EBUSY",
        "EBUSY",
        None,
    ]
    assert (here.space / ".git/config").read_text() == (here.space / ".mcp.json").read_text() == "as it was"
    assert not any((here.space / ".git/hooks").iterdir())


def test_what_only_the_runner_can_reach_can_be_granted(here: Host) -> None:
    """As root that is what is below folders that the agents' account cannot enter; a runner that is not root cannot."""
    hidden = here.folder / "hidden"
    data = hidden / "data"
    data.mkdir(parents=True)
    (data / "file").write_text("content")
    agent_account().own(data, 0o755)
    hidden.chmod(0)
    policy = here.policy(Mount(data, writable=True), Mount(data / "file"))
    code = """
print(json.dumps([open(sys.argv[1] + "/file").read(), attempt(lambda: write(sys.argv[1] + "/made")), attempt(lambda: write(sys.argv[1] + "/file"))]))
"""
    try:
        if here.runner == "root":
            assert here.python(policy, code, data) == ["content", None, "EROFS"]
            assert (data / "made").stat().st_uid == agent_account().uid
            assert not os.listdir("/run/taskyard")
        else:
            with pytest.raises(beneath.Refused):
                here.run(policy, "true")
    finally:
        hidden.chmod(0o700)


def test_no_server_of_this_host_is_reached(here: Host) -> None:
    code = """
def connect(family, address):
    with socket.socket(family) as client:
        client.settimeout(5)
        client.connect(address)
port, name, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", port)); client.send(b"x"); client.recv(1)
print(json.dumps([
    attempt(lambda: connect(socket.AF_INET, ("127.0.0.1", port))),
    attempt(lambda: connect(socket.AF_INET6, ("::1", port))),
    attempt(lambda: connect(socket.AF_INET, ("169.254.169.254", 80))),
    attempt(lambda: connect(socket.AF_UNIX, "\\0" + name)),
    attempt(lambda: connect(socket.AF_UNIX, path)),
    attempt(datagram),
    [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line],
]))
"""
    name = f"ty-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as named,
    ):
        abstract.bind(f"\0{name}")
        abstract.listen()
        named.bind(str(here.folder / "socket"))
        named.listen()
        found = here.python(here.policy(), code, server.getsockname()[1], name, here.folder / "socket")
    assert found == ["ECONNREFUSED", "ECONNREFUSED", "ENETUNREACH", "ECONNREFUSED", "ENOENT", "ECONNREFUSED", ["lo"]]


def test_sockets_that_no_namespace_confines_do_not_exist(here: Host) -> None:
    code = """
families = {"vsock": 40, "packet": 17, "alg": 38, "bluetooth": 31, "tipc": 30}
print(json.dumps({name: attempt(lambda: socket.socket(number, socket.SOCK_STREAM)) for name, number in families.items()}))
"""
    assert set(here.python(here.policy(), code).values()) == {"EAFNOSUPPORT"}


def test_the_child_has_what_it_was_given_and_nothing_else_is_to_be_read(here: Host) -> None:
    code = """
texts = []
for name in filter(str.isdecimal, os.listdir("/proc")):
    for file in ("environ", "cmdline"):
        texts.append([name, file, open(f"/proc/{name}/{file}").read()])
print(json.dumps([dict(os.environ), texts]))
"""
    os.environ["TASKYARD_SECRET"] = "swordfish"
    try:
        done = here.run(here.policy(), *python_command(), INSIDE + code, env={"GIVEN": "yes", "PATH": "/usr/bin"})
    finally:
        del os.environ["TASKYARD_SECRET"]
    environment, texts = json.loads(done.stdout)
    given = {
        "GIVEN": "yes",
        "PATH": "/usr/bin",
        "HOME": "/home/agent",
        "USER": "agent",
        "LOGNAME": "agent",
        "TMPDIR": "/tmp",
    }
    assert {name: text for name, text in environment.items() if name not in ("LC_CTYPE", "PWD")} == given
    first = {file: text for name, file, text in texts if name == "1"}
    assert "GIVEN" not in first["environ"] and str(here.folder) not in first["cmdline"]
    assert "swordfish" not in done.stdout.decode()
    assert len({name for name, _, _ in texts}) <= 3  # bwrap and this


def test_the_environment_is_the_childs_and_not_bwraps(here: Host) -> None:
    """A library to preload would run outside of the jail."""
    library = here.space / "evil.so"
    done = here.run(here.policy(), "sh", "-c", "echo $LD_PRELOAD", env={"LD_PRELOAD": str(library)})
    assert done.stdout.decode().strip() == str(library)
    errors = [line for line in done.stderr.decode().splitlines() if line]
    assert errors and all("object" in line and "evil.so" in line for line in errors)
    assert len(errors) == 1  # by the program alone; bwrap and the shim would each say so too


def test_no_descriptor_is_inherited(here: Host) -> None:
    outside = os.open(here.folder, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(outside, True)
    try:
        done = here.run(here.policy(), "sh", "-c", "ls -l /proc/self/fd /proc/1/fd")
    finally:
        os.close(outside)
    lines = done.stdout.decode().splitlines()
    opened = [line.rpartition(" -> ")[2] for line in lines if " -> " in line]
    assert len(opened) >= 7
    assert all(target.startswith(("pipe:", "socket:", "/proc/", "anon_inode:[eventfd]")) for target in opened), opened


def test_root_is_nowhere_in_a_jail(here: Host) -> None:
    code = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([os.getuid(), *[status[name].split() for name in ("NoNewPrivs", "Seccomp", "CapEff", "CapBnd", "Groups")]]))
"""
    uid, privileges, seccomp, effective, bounding, groups = here.python(here.policy(), code)
    assert uid == agent_account().uid != 0
    assert (privileges, seccomp) == (["1"], ["2"])
    assert int(effective[0], 16) == int(bounding[0], 16) == 0
    assert groups == [] or here.runner != "root"


def test_calls_into_the_kernel_that_nobody_needs_are_refused(here: Host) -> None:
    code = """
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(*map(ctypes.c_long, arguments)) < 0 else None
numbers = {"x86_64": dict(unshare=272, mount=165, keyctl=250, bpf=321, ptrace=101, userfaultfd=323, perf=298, clone=56),
           "aarch64": dict(unshare=97, mount=40, keyctl=219, bpf=280, ptrace=117, userfaultfd=282, perf=241, clone=220)}[platform.machine()]
import fcntl
found = {name: call(number, 0x10000000 | (17 if name == "clone" else 0), 0, 0, 0, 0) for name, number in numbers.items()}
found["io_uring_setup"] = call(425, 1, 0)
found["clone3"] = call(435, 0, 0)
found["pty"] = attempt(lambda: fcntl.ioctl(os.openpty()[1], 0x5412, b"x"))
print(json.dumps(found))
"""
    found = here.python(here.policy(), code)
    assert found.pop("clone3") == "ENOSYS"
    assert set(found.values()) == {"EPERM"}, found


def test_ordinary_tools_work_inside(here: Host) -> None:
    """Threads, processes, pipes, pseudo-terminals and local sockets of their own."""
    code = """
import asyncio, multiprocessing, pty, subprocess, threading
threading.Thread(target=print, args=("",), kwargs={"file": sys.stderr}).start()
async def processes():
    child = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
    return await child.wait()
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
    client.send(b"x")
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(json.dumps([asyncio.run(processes()), pool.map(abs, [-1, -2]), subprocess.check_output(["id", "-un"], text=True),
        os.access("/tmp", os.W_OK), attempt(lambda: pty.openpty())]))
"""
    assert here.python(here.policy(), code) == [3, [1, 2], "agent\n", True, None]


def test_a_child_that_may_not_execute_starts_nothing_but_itself(here: Host) -> None:
    shutil.copy("/bin/true", here.space / "own")
    agent_account().own(here.space / "own", 0o755)
    code = """
import ctypes, glob, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)
loader = next(iter(glob.glob("/lib64/ld-linux-*") + glob.glob("/lib/ld-linux-*")))
def execveat():
    libc.execveat(os.open("/bin/true", os.O_PATH), b"", (ctypes.c_char_p * 2)(b"true", None), (ctypes.c_char_p * 1)(), 0x1000)
    raise OSError(ctypes.get_errno(), "")
def in_child(action):
    child = os.fork()
    if child == 0:
        try:
            action()
        except OSError as failed:
            os._exit(failed.errno)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
def in_thread():
    thread = threading.Thread(target=lambda: found.append(attempt(lambda: subprocess.run(["true"]))))
    thread.start(); thread.join()
found = [
    attempt(lambda: subprocess.run(["true"])),
    attempt(lambda: os.posix_spawn("/bin/true", ["true"], {})),
    in_child(lambda: os.execv("/bin/true", ["true"])),
    in_child(lambda: os.execv(sys.argv[1], ["own"])),
    in_child(lambda: os.execv(loader, [loader, "/bin/true"])),
    in_child(execveat),
]
in_thread()
print(json.dumps(found))
"""
    own = here.space / "own"
    assert here.python(here.policy(), code, own) == [None, None, 0, 0, 0, 0, None]
    number = errno.ENOSYS
    found = here.python(here.policy(execute=False), code, own)
    assert found == ["ENOSYS", "ENOSYS", number, number, number, number, "ENOSYS"]


def test_limits_hold(here: Host) -> None:
    code = """
import resource
def fill(path, size):
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // 65536):
            file.write(bytes(65536))
def forks():
    import signal, time
    children = []
    try:
        for _ in range(200):
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    except BlockingIOError:
        pass
    for child in children:
        os.kill(child, signal.SIGKILL); os.waitpid(child, 0)
    return len(children)
def files():
    opened = []
    try:
        while True:
            opened.append(open("/dev/null"))
    except OSError:
        return len(opened)
    finally:
        del opened
def memory():
    try:
        bytearray(512 << 20)
    except MemoryError:
        return "MemoryError"
def higher():
    try:
        resource.setrlimit(resource.RLIMIT_NPROC, (600, 600))
    except ValueError:
        return "refused"
print(json.dumps({
    "processes": forks(), "files": files(), "memory": memory(),
    "file": attempt(lambda: fill(sys.argv[1] + "/big", 32 << 20)),
    "tmp": attempt(lambda: fill("/tmp/big", 8 << 20)),
    "shm": attempt(lambda: fill("/dev/shm/big", 8 << 20)),
    "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
    "higher": higher(),
    "oom": int(open("/proc/self/oom_score_adj").read()),
}))
"""
    limits = Limits(processes=40, files=64, data=256 << 20, file_size=16 << 20, tmp=4 << 20, shm=2 << 20)
    found = here.python(here.policy(limits=limits), code, here.space)
    assert 30 <= found["processes"] < 40 and 50 <= found["files"] < 64
    assert (found["memory"], found["higher"]) == ("MemoryError", "refused")
    assert (found["file"], found["tmp"], found["shm"]) == ("EFBIG", "ENOSPC", "ENOSPC")
    assert (found["core"], found["oom"]) == (0, 1000)
    assert (here.space / "big").stat().st_size == 16 << 20


def test_processes_are_counted_in_each_jail_by_itself(here: Host) -> None:
    """All jails have the same user; a fork bomb in one leaves the others their processes."""
    policy = here.policy(limits=Limits(processes=30))
    bomb = "while :; do sleep 30 & done"

    async def both() -> tuple[int, bytes]:
        account = agent_account()
        with Jail(policy, ["sh", "-c", bomb], {}, account) as jail:
            process = await spawn(jail)
            entered = await jail.entered()
            assert process.stderr is not None
            await process.stderr.readuntil(b"fork")  # it has hit its limit
            done = await run(
                policy,
                ["sh", "-c", "for n in 1 2 3 4 5 6 7 8 9 10; do sleep 0.01 & done; wait; echo fine"],
                {},
                account,
                timeout=30,
                output_limit=OUTPUT,
            )
            await entered.end()
            await process.communicate()
            return done.code, done.stdout

    assert here.call(lambda: asyncio.run(both())) == (0, b"fine\n")
