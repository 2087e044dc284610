"""What a jail shows its child, and the arguments of bwrap that make it so. Pure: nothing here touches the system.

An allow-list: the root is an empty tmpfs, and a path that nobody granted does not exist. Options are explained in
bwrap(1).
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .host import Python, System

HOME = Path("/home/agent")
GATEWAY_PORT = 3101
PROXY_PORT = 3128
CHANNEL_PORT = 3130
OWN = Path("/run/taskyard")
SHIM = OWN / "shim.py"
HOSTNAME = "taskyard"

# What programs of a distribution need of /etc: libraries, certificates, time zone. Never all of it.
ETC = (
    "ld.so.cache",
    "ssl",
    "ca-certificates",
    "pki/tls/certs",
    "pki/tls/cert.pem",
    "pki/ca-trust/extracted",
    "crypto-policies",
    "alternatives",
    "nsswitch.conf",
    "localtime",
    "mime.types",
    "protocols",
    "services",
)
# The kernel's and our own: no mount goes there, nor over them.
KEPT = (Path("/proc"), Path("/sys"), Path("/dev"), OWN)
# Never writable, whoever may write there on the host: the shim's interpreter comes from here.
SYSTEM = tuple(Path(name) for name in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc"))
BELOW_SYSTEM = (Path("/usr/local"), Path("/usr/src"))


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory or file of the host, at the same path inside unless `at` names another."""

    source: Path
    writable: bool = False
    at: Path | None = None

    @property
    def place(self) -> Path:
        return self.at or self.source


@dataclass(frozen=True, slots=True)
class Limits:
    """Per process (bytes, seconds of processor time, open files), but `processes`: of the whole jail.

    `tmp` and `shm` are the sizes of /tmp and /dev/shm in bytes. Data is limited rather than address space, of which
    JavaScript engines reserve more than they ever use.
    """

    processes: int = 512
    files: int = 4096
    data: int = 8 << 30
    file_size: int = 4 << 30
    cpu_seconds: int | None = None
    tmp: int = 256 << 20
    shm: int = 64 << 20

    def by_name(self) -> dict[str, int]:
        """By the names of RLIMIT_*."""
        limits = {
            "NPROC": self.processes,
            "NOFILE": self.files,
            "DATA": self.data,
            "FSIZE": self.file_size,
            "CORE": 0,
        }
        return limits if self.cpu_seconds is None else {**limits, "CPU": self.cpu_seconds}


@dataclass(frozen=True, slots=True)
class Policy:
    """What one child may see and do.

    `workspace` is its working directory, at or below one of `mounts`. `home` is a directory of the host, seen writable
    at /home/agent. `protected` are names below the workspace that stay as they are, where they exist. Without `execute`
    it starts no program but itself. `listeners` are ports on its loopback that the runner accepts connections from.
    """

    workspace: Path
    home: Path
    mounts: tuple[Mount, ...] = ()
    protected: tuple[str, ...] = ()
    execute: bool = True
    listeners: tuple[int, ...] = ()
    limits: Limits = field(default_factory=Limits)


def layout(policy: Policy, present: Callable[[Path], bool], more: Iterable[Mount] = ()) -> tuple[Mount, ...]:
    """All mounts in the order they are made: the shallow ones first.

    `present` tells whether a path of the host exists; `more` are mounts of our own. A read-only mount within a
    writable one gets the folders between them mounted onto themselves: a mount point cannot be renamed, so what is
    read-only cannot be moved out of the way either. Raises ValueError, in a sentence, for mounts that cannot be.
    """
    placed = {HOME: Mount(policy.home, writable=True, at=HOME)}
    for mount in (*policy.mounts, *more):
        _check(mount)
        before = placed.get(mount.place)
        if before is not None and before.source != mount.source:
            raise ValueError(f"Two different folders are to be seen at {mount.place}.")
        if before is None or mount.writable:
            placed[mount.place] = mount
    if _around(policy.workspace, placed) is None and policy.workspace not in placed:
        raise ValueError(f"The workspace {policy.workspace} is not among what the task may see.")
    for name in policy.protected:
        path = policy.workspace / name
        if path == policy.workspace or not path.is_relative_to(policy.workspace) or ".." in path.parts:
            raise ValueError(f"{name} is not a name in the workspace.")
        source = source_of(path, placed)
        if present(source):
            placed[path] = Mount(source, writable=False, at=path)
    for place in [place for place, mount in placed.items() if not mount.writable]:
        for between in place.parents:
            around = _around(between, placed)
            if between not in placed and around is not None and placed[around].writable:
                placed[between] = Mount(source_of(between, placed), writable=True, at=between)
    return tuple(replace(placed[place], at=place) for place in sorted(placed, key=lambda path: (len(path.parts), path)))


def source_of(path: Path, placed: Mapping[Path, Mount]) -> Path:
    """Which path of the host is seen at `path`, which is at or below one of the mounts."""
    around = path if path in placed else _around(path, placed)
    assert around is not None
    return placed[around].source / path.relative_to(around)


@dataclass(frozen=True, slots=True)
class Bind:
    """A mount whose source is open."""

    descriptor: int
    place: Path
    writable: bool


@dataclass(frozen=True, slots=True)
class Contents:
    """Descriptors of what is generated: three files of /etc, the shim, and the system-call filter."""

    passwd: int
    group: int
    hosts: int
    shim: int
    filter: int


def options(policy: Policy, binds: Sequence[Bind], contents: Contents, system: System) -> list[str]:
    """bwrap's options; they go into a file (--args), so that neither `ps` nor /proc/1/cmdline inside shows a path."""
    flags = (
        "--unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try"
        " --disable-userns --assert-userns-disabled --cap-drop ALL --new-session --die-with-parent"
    )
    said = [*flags.split(), "--hostname", HOSTNAME, "--perms", "0755", "--tmpfs", "/"]
    for folder in system.folders:
        said += ["--ro-bind", folder, folder]
    for link, target in system.links.items():
        said += ["--symlink", target, link]
    said += ["--perms", "0755", "--dir", "/etc"]
    for name in ETC:
        said += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for name, descriptor in (("passwd", contents.passwd), ("group", contents.group), ("hosts", contents.hosts)):
        said += ["--perms", "0444", "--ro-bind-data", str(descriptor), f"/etc/{name}"]
    said += ["--perms", "0444", "--ro-bind-data", str(contents.shim), str(SHIM)]
    said += ["--proc", "/proc", "--dev", "/dev"]
    for folder, size in (("/tmp", policy.limits.tmp), ("/dev/shm", policy.limits.shm)):
        said += ["--perms", "1777", "--size", str(size), "--tmpfs", folder]
    if not any(bind.place.is_relative_to("/var/tmp") for bind in binds):
        said += ["--symlink", "../tmp", "/var/tmp"]
    for bind in binds:
        said += ["--bind-fd" if bind.writable else "--ro-bind-fd", str(bind.descriptor), str(bind.place)]
    # /dev is a tmpfs too, without a size; its devices stay writable.
    said += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", str(policy.workspace)]
    return [*said, "--seccomp", str(contents.filter)]


def argv(bwrap: str, arguments: int, python: Python, control: int, config: int) -> list[str]:
    """The command to spawn: `arguments` is a file with options(), `control` and `config` are the shim's."""
    shim = [str(python.executable), "-I", "-S", str(SHIM), str(control), str(config)]
    return [bwrap, "--args", str(arguments), "--", *shim]


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The child's variables: as given, but for those that are the jail's own."""
    own = {"HOME": str(HOME), "USER": "agent", "LOGNAME": "agent", "TMPDIR": "/tmp"}
    kept = {name: text for name, text in given.items() if name != "XDG_RUNTIME_DIR"}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", **kept, **own}


def account_files(uid: int, gid: int) -> tuple[str, str, str]:
    """/etc/passwd, /etc/group and /etc/hosts: one user, and this machine."""
    users = [f"agent:x:{uid}:{gid}:agent:{HOME}:/bin/sh"]
    groups = [f"agent:x:{gid}:"]
    if uid != 65534:
        users.append("nobody:x:65534:65534:nobody:/nonexistent:/bin/false")
    if gid != 65534:
        groups.append("nogroup:x:65534:")
    hosts = [f"127.0.0.1 localhost {HOSTNAME}", f"::1 localhost {HOSTNAME}"]
    return "\n".join([*users, ""]), "\n".join([*groups, ""]), "\n".join([*hosts, ""])


def _around(path: Path, placed: Container[Path]) -> Path | None:
    """The innermost mount that `path` is strictly below of."""
    return next((parent for parent in path.parents if parent in placed), None)


def _check(mount: Mount) -> None:
    place = mount.place
    if not place.is_absolute() or ".." in place.parts or place.anchor != "/" or "\0" in str(place):
        raise ValueError(f"{place} is not an absolute path.")
    for kept in KEPT:
        if place.is_relative_to(kept) or kept.is_relative_to(place):
            raise ValueError(f"{place} cannot be shown to a child: {kept} is its own.")
    if HOME.is_relative_to(place):
        raise ValueError(f"{place} cannot be shown to a child: {HOME} is its own.")
    if mount.writable and not any(place.is_relative_to(below) for below in BELOW_SYSTEM):
        for system in SYSTEM:
            if place.is_relative_to(system):
                raise ValueError(f"{place} cannot be made writable: {system} is the system's.")
