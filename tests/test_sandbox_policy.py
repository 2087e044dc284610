"""What a jail is made of, as values: mounts in their order, bwrap's options, the system-call filter, and diagnoses."""

import errno
import struct
from pathlib import Path

import pytest

from taskyard.runner.sandbox import seccomp
from taskyard.runner.sandbox.diagnosis import Facts, diagnose, impossible
from taskyard.runner.sandbox.errors import SandboxError
from taskyard.runner.sandbox.host import Python, System
from taskyard.runner.sandbox.policy import (
    HOME,
    Bind,
    Contents,
    Limits,
    Mount,
    Policy,
    account_files,
    argv,
    environment,
    layout,
    options,
)

SPACE, OTHER = Path("/srv/project/space"), Path("/srv/project")
TASK_HOME = Path("/var/lib/taskyard/task")
MERGED = System(("/usr",), {"/bin": "usr/bin", "/lib": "usr/lib", "/lib64": "usr/lib64"})


def policy(*mounts: Mount, protected: tuple[str, ...] = ()) -> Policy:
    return Policy(SPACE, TASK_HOME, mounts or (Mount(SPACE, writable=True),), protected)


def laid_out(*mounts: Mount, protected: tuple[str, ...] = ()) -> tuple[Mount, ...]:
    """On a host where everything exists."""
    return layout(policy(*mounts, protected=protected), lambda path: True)


def places(*mounts: Mount, protected: tuple[str, ...] = ()) -> list[tuple[str, bool]]:
    """All but home, as (path, writable) in the order of mounting."""
    made = laid_out(*mounts, protected=protected)
    return [(str(mount.place), mount.writable) for mount in made if mount.place != HOME]


def said(*binds: Bind, system: System = MERGED) -> list[str]:
    return options(policy(), binds, Contents(11, 12, 13, 14, 15), system)


def pairs(words: list[str], option: str) -> list[tuple[str, str]]:
    return [(words[at + 1], words[at + 2]) for at, word in enumerate(words) if word == option]


def test_home_is_the_tasks_own_folder_and_writable() -> None:
    home = next(mount for mount in laid_out() if mount.place == HOME)
    assert (home.source, home.writable) == (TASK_HOME, True)


def test_shallow_mounts_are_made_before_those_within_them() -> None:
    deep, shallow = Mount(SPACE / "a/b", writable=True), Mount(SPACE, writable=True)
    assert places(deep, shallow) == [(str(SPACE), True), (str(SPACE / "a/b"), True)]


def test_what_is_protected_is_read_only_and_the_folders_above_it_are_pinned() -> None:
    assert places(protected=(".git/hooks",)) == [
        (str(SPACE), True),
        (str(SPACE / ".git"), True),
        (str(SPACE / ".git/hooks"), False),
    ]


def test_a_workspace_within_a_wider_grant_cannot_be_moved_with_what_it_protects() -> None:
    assert places(Mount(OTHER, writable=True), protected=(".mcp.json",)) == [
        (str(OTHER), True),
        (str(SPACE), True),
        (str(SPACE / ".mcp.json"), False),
    ]


def test_pins_reach_up_through_writable_mounts_within_writable_mounts() -> None:
    mounts = (Mount(OTHER, writable=True), Mount(SPACE / "a/b", writable=True), Mount(SPACE / "a/b/c"))
    assert (str(SPACE / "a"), True) in places(*mounts)


def test_a_protected_name_stays_read_only_whatever_else_is_granted() -> None:
    mounts = (Mount(SPACE, writable=True), Mount(SPACE / ".claude", writable=True))
    assert places(*mounts, protected=(".claude",))[-1] == (str(SPACE / ".claude"), False)


def test_a_protected_name_that_does_not_exist_is_not_mounted() -> None:
    made = layout(policy(protected=(".git/config", ".mcp.json")), lambda path: path.name == "config")
    assert [mount.place for mount in made if not mount.writable] == [SPACE / ".git/config"]


def test_pins_show_the_folder_of_the_host_that_is_seen_there() -> None:
    mounts = (Mount(Path("/data/x"), writable=True, at=SPACE),)
    made = laid_out(*mounts, protected=(".git/config",))
    assert {mount.place: mount.source for mount in made}[SPACE / ".git"] == Path("/data/x/.git")


def test_grants_of_the_same_folder_add_up() -> None:
    assert places(Mount(SPACE, writable=True), Mount(SPACE)) == [(str(SPACE), True)]


def test_two_folders_at_one_place_are_refused() -> None:
    with pytest.raises(ValueError, match="Two different folders"):
        laid_out(Mount(SPACE), Mount(OTHER, at=SPACE))


def test_a_workspace_that_is_not_granted_is_refused() -> None:
    with pytest.raises(ValueError, match="not among what the task may see"):
        laid_out(Mount(Path("/srv/project/space-2"), writable=True))


@pytest.mark.parametrize(
    "mount",
    [
        Mount(Path("/")),
        Mount(Path("/proc")),
        Mount(Path("/proc/sys")),
        Mount(Path("/sys/fs/cgroup")),
        Mount(Path("/dev")),
        Mount(Path("/dev/shm")),
        Mount(Path("/run")),
        Mount(Path("/run/taskyard")),
        Mount(Path("/home")),
        Mount(Path("/home/agent")),
        Mount(SPACE, at=Path("/home/agent")),
        Mount(Path("/usr"), writable=True),
        Mount(Path("/usr/bin"), writable=True),
        Mount(Path("/etc/ssl"), writable=True),
        Mount(Path("/lib64/x"), writable=True),
        Mount(Path("relative")),
        Mount(Path("/srv/../proc")),
        Mount(Path("//proc")),
    ],
)
def test_what_is_the_systems_or_the_jails_own_cannot_be_mounted_over(mount: Mount) -> None:
    with pytest.raises(ValueError, match=r"cannot be|not an absolute path"):
        laid_out(Mount(SPACE, writable=True), mount)


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/etc/passwd", "."])
def test_a_protected_name_outside_of_the_workspace_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a name in the workspace"):
        laid_out(protected=(name,))


def test_every_namespace_is_its_own_always() -> None:
    words = said()
    for namespace in ("user", "ipc", "pid", "net", "uts"):
        assert f"--unshare-{namespace}" in words
    assert "--share-net" not in words
    for needed in ("--disable-userns", "--assert-userns-disabled", "--die-with-parent", "--new-session"):
        assert needed in words
    assert words[words.index("--cap-drop") + 1] == "ALL"
    assert words[-2:] == ["--seccomp", "15"]


def test_the_root_is_empty_and_nothing_of_the_host_is_mounted_but_the_system_and_what_was_opened() -> None:
    words = said(Bind(20, SPACE, True), Bind(21, OTHER, False))
    assert "--tmpfs" in words and words[words.index("--tmpfs") + 1] == "/"
    assert pairs(words, "--ro-bind") == [("/usr", "/usr")]
    assert all(source.startswith("/etc/") for source, _ in pairs(words, "--ro-bind-try"))
    assert not {"--bind", "--dev-bind", "--bind-try"} & set(words)
    assert pairs(words, "--bind-fd") == [("20", str(SPACE))]
    assert pairs(words, "--ro-bind-fd") == [("21", str(OTHER))]
    assert not {"/etc", "/etc/passwd", "/etc/shadow", "/etc/resolv.conf"} & {
        source for source, _ in pairs(words, "--ro-bind-try")
    }


def test_the_root_becomes_read_only_after_everything_is_in_its_place() -> None:
    words = said(Bind(20, SPACE, True))
    last = max(at for at, word in enumerate(words) if word in ("--bind-fd", "--tmpfs", "--symlink", "--ro-bind-data"))
    read_only = [at for at, word in enumerate(words) if word == "--remount-ro"]
    assert [words[at + 1] for at in read_only] == ["/dev", "/"]
    assert min(read_only) > last


def test_where_bin_and_lib_are_no_links_they_are_mounted() -> None:
    assert pairs(said(system=System(("/usr", "/bin", "/lib"), {})), "--ro-bind") == [
        ("/usr", "/usr"),
        ("/bin", "/bin"),
        ("/lib", "/lib"),
    ]


def test_temporary_folders_have_a_size() -> None:
    words = options(
        Policy(SPACE, TASK_HOME, (Mount(SPACE),), limits=Limits(tmp=1000, shm=2000)),
        [],
        Contents(1, 2, 3, 4, 5),
        MERGED,
    )
    sizes = {words[at + 3]: words[at + 1] for at, word in enumerate(words) if word == "--size"}
    assert sizes == {"/tmp": "1000", "/dev/shm": "2000"}


def test_the_command_shows_no_path_of_the_host() -> None:
    words = argv("/usr/bin/bwrap", 30, Python(Path("/usr/bin/python3"), None), 31, 32)
    assert " ".join(words) == "/usr/bin/bwrap --args 30 -- /usr/bin/python3 -I -S /run/taskyard/shim.py 31 32"


def test_home_and_user_are_the_jails_whatever_the_environment_says() -> None:
    given = {"HOME": "/root", "USER": "root", "LOGNAME": "root", "TMPDIR": "/x", "XDG_RUNTIME_DIR": "/run/user/0"}
    made = environment({**given, "PATH": "/opt/bin", "KEY": "value"})
    assert made == {
        "PATH": "/opt/bin",
        "KEY": "value",
        "HOME": "/home/agent",
        "USER": "agent",
        "LOGNAME": "agent",
        "TMPDIR": "/tmp",
    }


def test_the_jail_knows_one_user_and_itself() -> None:
    passwd, group, hosts = account_files(1000, 1001)
    assert passwd.splitlines()[0] == "agent:x:1000:1001:agent:/home/agent:/bin/sh"
    assert group.splitlines()[0] == "agent:x:1001:"
    assert {line.split()[0] for line in hosts.splitlines()} == {"127.0.0.1", "::1"}


def decide(program: bytes, number: int, *arguments: int, audit: int) -> int:
    """Run a filter as the kernel does, for the few instructions that these have."""
    data = struct.pack(
        "=iIQ6Q", struct.unpack("=i", struct.pack("=I", number))[0], audit, 0, *arguments, *[0] * (6 - len(arguments))
    )
    at, loaded = 0, 0
    while True:
        code, true, false, operand = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("=I", data, operand)
        elif code == 0x06:
            return operand
        else:
            holds = {0x15: loaded == operand, 0x25: loaded > operand, 0x45: bool(loaded & operand)}[code]
            at += true if holds else false


def refused(error: int) -> int:
    return 0x00050000 | error


ALLOWED, KILLED, ASKED = 0x7FFF0000, 0x80000000, 0x7FC00000


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request: pytest.FixtureRequest) -> seccomp.Machine:
    return seccomp.machine(request.param)


def test_calls_that_reach_beyond_the_jail_are_refused(machine: seccomp.Machine) -> None:
    program = seccomp.program(machine)
    assert {"ptrace", "bpf", "keyctl", "mount", "unshare", "setns", "io_uring_setup", "pidfd_getfd"} <= set(
        machine.refused
    )
    for name, number in machine.refused.items():
        assert decide(program, number, audit=machine.audit) == refused(errno.EPERM), name


def test_ordinary_calls_are_allowed(machine: seccomp.Machine) -> None:
    program = seccomp.program(machine)
    ordinary = {"x86_64": (0, 1, 2, 9, 57, 59, 202, 231, 257, 262), "aarch64": (56, 63, 64, 98, 221, 222)}
    for number in ordinary[machine.name]:
        assert decide(program, number, audit=machine.audit) == ALLOWED, number
    assert len(program) // 8 <= 4096  # BPF_MAXINSNS


@pytest.mark.parametrize("bit", [7 + 10, 25, 26, 27, 28, 29, 30])
def test_clone_makes_no_namespace(machine: seccomp.Machine, bit: int) -> None:
    program = seccomp.program(machine)
    assert decide(program, machine.clone, 1 << bit | 17, audit=machine.audit) == refused(errno.EPERM)


def test_clone_makes_processes_and_threads_and_clone3_does_not_exist(machine: seccomp.Machine) -> None:
    program = seccomp.program(machine)
    for flags in (17, 0x3D0F00, 0x4111):  # fork, pthread_create, posix_spawn
        assert decide(program, machine.clone, flags, audit=machine.audit) == ALLOWED
    assert decide(program, machine.clone3, audit=machine.audit) == refused(errno.ENOSYS)


def test_sockets_are_those_that_a_network_namespace_confines(machine: seccomp.Machine) -> None:
    program = seccomp.program(machine)
    for call in (machine.socket, machine.socketpair):
        allowed = [family for family in range(64) if decide(program, call, family, audit=machine.audit) == ALLOWED]
        assert allowed == [1, 2, 10, 16]
        # The kernel takes the family as an int: what is above its 32 bits does not change it.
        assert decide(program, call, 40 | 1 << 32, audit=machine.audit) == refused(errno.EAFNOSUPPORT)


def test_no_terminal_is_typed_into(machine: seccomp.Machine) -> None:
    program = seccomp.program(machine)
    for request in (0x5412, 0x541C, 0x5412 | 1 << 32):
        assert decide(program, machine.ioctl, 0, request, audit=machine.audit) == refused(errno.EPERM)
    assert decide(program, machine.ioctl, 0, 0x5401, audit=machine.audit) == ALLOWED


def test_calls_newer_than_the_table_do_not_exist(machine: seccomp.Machine) -> None:
    program = seccomp.program(machine)
    for number in (seccomp.NEWEST + 1, 1000, 0xFFFFFFFF):
        assert decide(program, number, audit=machine.audit) == refused(errno.ENOSYS)


def test_another_architectures_calls_kill(machine: seccomp.Machine) -> None:
    for program in (seccomp.program(machine), seccomp.gate(machine)):
        assert decide(program, 0, audit=0x40000003) == KILLED  # i386


def test_x32_calls_kill() -> None:
    machine = seccomp.machine("x86_64")
    assert decide(seccomp.program(machine), 0x40000000 + 520, audit=machine.audit) == KILLED


def test_the_gate_asks_about_programs_and_about_nothing_else(machine: seccomp.Machine) -> None:
    program = seccomp.gate(machine)
    asked = [number for number in range(500) if decide(program, number, audit=machine.audit) != ALLOWED]
    assert asked == [machine.execve, machine.execveat]
    assert decide(program, machine.execve, audit=machine.audit) == ASKED


def test_a_processor_without_a_table_is_refused() -> None:
    with pytest.raises(SandboxError, match="riscv64"):
        seccomp.machine("riscv64")


@pytest.mark.parametrize(
    ("stderr", "facts", "cause", "cure"),
    [
        (
            "bwrap: Creating new namespace failed: nesting depth or /proc/sys/user/max_*_namespaces exceeded (ENOSPC)",
            Facts(max_user_namespaces=0),
            "switched off",
            "sysctl user.max_user_namespaces",
        ),
        (
            "bwrap: Creating new namespace failed: nesting depth or /proc/sys/user/max_*_namespaces exceeded (ENOSPC)",
            Facts(max_user_namespaces=15),
            "are in use",
            "sysctl user.max_user_namespaces",
        ),
        (
            "bwrap: No permissions to create new namespace, likely because the kernel does not allow non-privileged user"
            " namespaces. On e.g. debian this can be enabled with 'sysctl kernel.unprivileged_userns_clone=1'.",
            Facts(unprivileged_userns_clone=0),
            "reserved for root",
            "kernel.unprivileged_userns_clone=1",
        ),
        (
            "bwrap: No permissions to create new namespace, likely because the kernel does not allow non-privileged user"
            " namespaces.",
            Facts(container=True, unprivileged_userns_clone=1),
            "container",
            "--security-opt seccomp=",
        ),
        (
            "bwrap: Can't mount proc on /newroot/proc: Operation not permitted",
            Facts(container=True),
            "/proc masked",
            "systempaths=unconfined",
        ),
        (
            "bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted",
            Facts(apparmor_restricts=1, bwrap="/usr/bin/bwrap"),
            "AppArmor",
            "profile bwrap /usr/bin/bwrap flags=(unconfined) {\n  userns,\n}",
        ),
        (
            "bwrap: setting up uid map: Permission denied",
            Facts(apparmor_restricts=1),
            "AppArmor",
            "/etc/apparmor.d/bwrap",
        ),
        (
            "bwrap: setting up uid map: Permission denied",
            Facts(apparmor_restricts=0),
            "this account",
            "security module",
        ),
        ("bwrap: Unknown option --bind-fd", Facts(), "too old", "taskyard[sandbox]"),
        (
            "bwrap: Can't find source path /proc/self/fd/9: Permission denied",
            Facts(),
            "cannot reach a folder",
            "chmod o+x",
        ),
        (
            "bwrap: Unexpected capabilities but not setuid, old file caps config?",
            Facts(),
            "capabilities",
            "AmbientCapabilities",
        ),
        ("bwrap: --disable-userns is not supported in setuid mode", Facts(), "set-user-id", "chmod u-s"),
        ("something else", Facts(), "something else", ""),
        ("", Facts(), "nothing", ""),
    ],
)
def test_what_bwrap_says_is_told_with_its_cause_and_its_cure(stderr: str, facts: Facts, cause: str, cure: str) -> None:
    told = diagnose(stderr, facts)
    assert cause in told[0]
    assert cure in told[1]
    assert "\n" not in told[0]


def test_the_last_of_bwraps_own_words_counts() -> None:
    told = diagnose("bwrap: Can't mount proc on /newroot/proc\nnoise of another program", Facts())
    assert "/proc masked" in told[0]


@pytest.mark.parametrize(
    ("facts", "cure"),
    [
        (Facts(system="Darwin"), "Linux"),
        (Facts(system="Windows"), "WSL2"),
        (Facts(release="4.4.0-19041-Microsoft"), "set-version"),
    ],
)
def test_systems_without_namespaces_are_told_apart(facts: Facts, cure: str) -> None:
    known = impossible(facts)
    assert known is not None and cure in known[1]
    assert diagnose("anything", facts) == known


def test_wsl2_is_a_linux_as_others() -> None:
    assert impossible(Facts(release="5.15.90.1-microsoft-standard-WSL2")) is None
