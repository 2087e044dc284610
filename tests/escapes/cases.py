"""The cases that are lists of attempts with the answers that a jail may give. The others are in the modules at the end.

An answer is the name of an error. Outside, every attempt has to succeed, or is excused: some need root, or a kernel that
has what is attacked.
"""

import importlib
import os
from collections.abc import Collection, Mapping, Sequence

from .arena import ALL, Arena, answers
from .findings import CASES, Case, Findings, each

ABSENT = {"ENOENT", "ENOTDIR"}
READ_ONLY = {"EROFS"}
UNREACHABLE = {"ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT"}
FILTERED = {"EPERM"}
NOTHING = {"nothing"}
NO_EXEC = {"ENOSYS"}

ROOT_ONLY = "only root may"
NO_ATTRIBUTES = "no extended attributes on this file system"
KERNEL = "this kernel does not have it, or keeps it for root"
NO_SERVER = "nobody is there to answer"

# By number and attempt: the answers that a jail may give.
EXPECTED: dict[int, Mapping[str, Collection[str]]] = {}


async def attempts(
    arena: Arena,
    findings: Findings,
    number: int,
    expected: Mapping[str, Collection[str]],
    excuses: Mapping[str, str],
    *,
    permissions: Sequence[Sequence[str]] = (ALL,),
    carved: bool = False,
    as_root: bool = False,
) -> None:
    """Run one of the attacker's cases in a jail, with each of these sets of permissions, then outside.

    `as_root`: the control runs as root, where we are.
    """
    for allowed in permissions:
        world = arena.world(carved=carved, **_neighbour(arena, number))
        inherited = os.open(world.outside, os.O_RDONLY | os.O_DIRECTORY)
        os.set_inheritable(inherited, True)
        try:
            before = world.fingerprint()
            found = answers(await arena.inside(world, world.attack(number), allowed))[str(number)]
            findings.judge(found, expected, "inside")
            findings.must(world.fingerprint() == before, "what is outside was changed")
        finally:
            os.close(inherited)
    await _control(arena, findings, number, excuses, carved=carved, as_root=as_root)


async def _control(
    arena: Arena, findings: Findings, number: int, excuses: Mapping[str, str], *, carved: bool, as_root: bool
) -> None:
    world = arena.world(carved=carved, **_neighbour(arena, number))
    inherited = os.open(world.outside, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(inherited, True)
    try:
        ended = await arena.outside(world.attack(number), world.space, as_root=as_root and os.geteuid() == 0)
    finally:
        os.close(inherited)
    findings.judge_control(answers(ended)[str(number)], excuses)


def _neighbour(arena: Arena, number: int) -> dict[str, object]:
    """Another task's folders, for the case that wants them."""
    if number != 35:
        return {}
    folder = arena.root / "neighbour"
    other = {name: folder / name for name in ("workspace", "home", "tool")}
    if not folder.exists():
        arena.folder(folder)
        for path in other.values():
            arena.file(arena.folder(path) / "work", arena.secret)
    return {"other": {name: str(path) for name, path in other.items()}}


def listed(
    number: int,
    name: str,
    expected: Mapping[str, Collection[str]],
    excuses: Mapping[str, str] | None = None,
    *,
    permissions: Sequence[Sequence[str]] = (ALL,),
    carved: bool = False,
    as_root: bool = False,
) -> None:
    """Register a case of attempts()."""

    async def run(arena: Arena, findings: Findings) -> None:
        await attempts(
            arena,
            findings,
            number,
            expected,
            excuses or {},
            permissions=permissions,
            carved=carved,
            as_root=as_root,
        )

    assert number not in CASES
    CASES[number] = Case(number, name, run)
    EXPECTED[number] = expected


SECRETS = ("~/.ssh/id_rsa", ".env", "/etc/shadow")
listed(1, "keys and passwords cannot be read", each(ABSENT, *SECRETS), {"/etc/shadow": ROOT_ONLY})
listed(2, "that they exist cannot be told", each(ABSENT, *SECRETS))
listed(
    3,
    "nothing outside is made, changed or removed",
    each(ABSENT | READ_ONLY, "create", "append", "truncate", "unlink", "rename", "mkdir", "symlink", "mkfifo"),
)
listed(
    4,
    "modes, times and attributes outside stay",
    each(ABSENT | READ_ONLY, "chmod", "utime", "setxattr", "chown"),
    {"setxattr": NO_ATTRIBUTES},
)
listed(
    5,
    "the system's folders are read-only",
    {**each(READ_ONLY, "/", "/usr", "/usr/bin", "/etc"), "/etc/passwd": {"EROFS", "EACCES"}},
    dict.fromkeys(("/", "/usr", "/usr/bin", "/etc", "/etc/passwd"), ROOT_ONLY),
    as_root=True,
)
listed(
    7,
    "what is protected in the workspace cannot be written, replaced or moved away",
    {
        "move .git away": {"EBUSY"},
        "make another": {"EEXIST"},
        "write .git/config": READ_ONLY,
        "replace .git/config": {"EBUSY", "EROFS", "EXDEV"},
        "write a hook": READ_ONLY,
        "write .mcp.json": READ_ONLY,
        "unlink .mcp.json": {"EBUSY", "EROFS"},
    },
    {"write a hook": "its folder has gone with the old .git"},
    carved=True,
)
listed(
    8,
    "a link in the workspace leads nowhere outside",
    each(
        ABSENT | READ_ONLY,
        *(
            f"{what} by a {link} link"
            for link in ("absolute", "relative", "magic")
            for what in ("read", "list", "write")
        ),
    ),
)
listed(
    11,
    "no hard link crosses the border",
    each(ABSENT | {"EXDEV"}, "outside to workspace", "workspace to outside"),
)
listed(
    13,
    "no way through /proc leads out",
    {
        **each(
            ABSENT, "/proc/self/root", "/proc/thread-self/root", "/proc/self/cwd", "..", "victim's root", "victim's cwd"
        ),
        **each(ABSENT | {"EACCES"}, "/proc/1/root", "/proc/1/cwd"),
    },
    {"/proc/1/root": ROOT_ONLY, "/proc/1/cwd": ROOT_ONLY},
)
listed(14, "no other process can be looked into", each(ABSENT, "environ", "cmdline", "mem", "fd", "maps"))
listed(
    15,
    "the runner's secret is in no environment and no command line",
    each(NOTHING, "own environment", "first environment", "every environ", "every cmdline"),
)
listed(
    16,
    "no open file of the runner's is inherited",
    {"read by it": {"EBADF"}, "descriptors above 2": NOTHING},
)
listed(
    17,
    "no server of this host or its network is reached",
    each(
        UNREACHABLE | {"EPROTONOSUPPORT", "ENOPROTOOPT"},
        *("TCP", "TCP by another loopback address", "UDP", "MPTCP", "TCP Fast Open", "::1"),
        *("address of the network card", "169.254.169.254"),
    ),
    {
        "MPTCP": KERNEL,
        "::1": "this host has no IPv6",
        "TCP Fast Open": KERNEL,
        "address of the network card": "this host has no network",
        "169.254.169.254": NO_SERVER,
    },
)
listed(
    18,
    "no local socket of this host is reached",
    {"abstract": {"ECONNREFUSED"}, **each(ABSENT, "docker.sock", ".s.PGSQL.5432", "agent.sock")},
)
listed(
    19,
    "sockets that no namespace confines do not exist",
    each({"EAFNOSUPPORT"}, "AF_VSOCK", "AF_PACKET", "AF_ALG"),
    {"AF_VSOCK": KERNEL, "AF_PACKET": ROOT_ONLY, "AF_ALG": KERNEL},
)
listed(
    23,
    "without the permission to execute, nothing is started but the program itself",
    each(
        NO_EXEC,
        *("bash", "posix_spawn", "a program of the workspace", "the loader", "execveat", "a program in memory"),
    ),
    permissions=(("read", "write"),),
)
listed(
    24,
    "no way to make tasks is in a jail (in SQL: tests/test_escapes.py)",
    each({"ECONNREFUSED"}, "port 3130"),
    permissions=((*ALL, "create_child"), ALL),
)
listed(
    25,
    "no process outside is signalled, traced or read",
    {
        "signal": {"ESRCH"},
        "ptrace": FILTERED,
        "process_vm_readv": FILTERED,
        "pidfd_open": {"ESRCH"},
        "pidfd_getfd": FILTERED,
    },
)
listed(
    31,
    "no further namespace, mount or sandbox",
    {
        **each(
            FILTERED, "unshare", "clone", "mount", "remount", "open_tree", "fsopen", "pivot_root", "chroot", "setns"
        ),
        "clone3": {"ENOSYS"},
        "nested bwrap": {"refused", "ENOENT"},
    },
    {
        "pivot_root": "this host's root cannot be pivoted",
        "nested bwrap": "bwrap is not in the PATH",
    },
)
listed(
    32,
    "system calls that nobody needs are refused",
    each(
        FILTERED,
        *("keyctl", "add_key", "bpf", "io_uring_setup", "userfaultfd", "perf_event_open"),
        *("name_to_handle_at", "open_by_handle_at", "TIOCSTI"),
    ),
    {
        **dict.fromkeys(("bpf", "io_uring_setup", "userfaultfd", "perf_event_open", "TIOCSTI"), KERNEL),
        "open_by_handle_at": ROOT_ONLY,
    },
)
listed(
    33,
    "no device, and nothing of the kernel's to be written",
    {
        "mknod": {"EPERM"},
        **each(ABSENT, "the disk", "/dev/mem", "/sys", "cgroup"),
        "core_pattern": {"EROFS", "EACCES"},
    },
    {
        **dict.fromkeys(("mknod", "core_pattern", "cgroup", "the disk", "/dev/mem", "/sys"), ROOT_ONLY),
    },
    as_root=True,
)
listed(
    35,
    "another task's folders and shared memory do not exist",
    each(
        ABSENT,
        *("workspace, listed", "workspace, read", "home", "tool's state"),
        *("/dev/shm", "System V shared memory", "message queue"),
    ),
)


def every_case() -> dict[int, Case]:
    """All of them, by number."""
    for name in ("calls_out", "collecting", "endings", "failures", "starts", "tools"):
        importlib.import_module(f"{__package__}.{name}")  # registers its cases

    return dict(sorted(CASES.items()))
