"""The system-call filter of a confined child, as a classic BPF program (linux/filter.h, linux/seccomp.h).

Everything is allowed but what follows: system calls that reach into other processes, that widen what the kernel exposes
(bpf, io_uring, keyrings, namespaces, mounts), and socket families that no network namespace confines. Numbers are those
of asm/unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64).
"""

import errno
import platform
import struct
from dataclasses import dataclass

from .errors import SandboxError

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]. Both machines are little-endian.
NUMBER, ARCHITECTURE = 0, 4


def argument(index: int) -> int:
    """Offset of the low 32 bits of an argument: all that the kernel looks at in those compared here."""
    return 16 + 8 * index


LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
EQUAL, GREATER, ANY_BIT = 0x15, 0x25, 0x45  # BPF_JMP | BPF_K with BPF_JEQ, BPF_JGT, BPF_JSET
RETURN = 0x06  # BPF_RET | BPF_K

ALLOW, KILL, NOTIFY = 0x7FFF0000, 0x80000000, 0x7FC00000


def refuse(error: int) -> int:
    """The return value that makes a system call fail with this errno."""
    return 0x00050000 | error


@dataclass(frozen=True, slots=True)
class Machine:
    """What differs between processors: AUDIT_ARCH_* and the numbers of system calls."""

    name: str
    audit: int
    clone: int
    clone3: int
    ioctl: int
    socket: int
    socketpair: int
    execve: int
    execveat: int
    seccomp: int
    refused: dict[str, int]
    x32: bool = False


# The same numbers everywhere: system calls since Linux 5.1.
COMMON = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "open_tree_attr": 467,
}
# file_setattr of Linux 6.17. What is newer than this table does not exist for a child.
NEWEST = 469

MACHINES = {
    "x86_64": Machine(
        name="x86_64",
        audit=0xC000003E,
        clone=56,
        clone3=435,
        ioctl=16,
        socket=41,
        socketpair=53,
        execve=59,
        execveat=322,
        seccomp=317,
        x32=True,
        refused=COMMON
        | {
            "ptrace": 101,
            "syslog": 103,
            "uselib": 134,
            "pivot_root": 155,
            "chroot": 161,
            "acct": 163,
            "mount": 165,
            "umount2": 166,
            "swapon": 167,
            "swapoff": 168,
            "reboot": 169,
            "iopl": 172,
            "ioperm": 173,
            "create_module": 174,
            "init_module": 175,
            "delete_module": 176,
            "quotactl": 179,
            "nfsservctl": 180,
            "lookup_dcookie": 212,
            "kexec_load": 246,
            "add_key": 248,
            "request_key": 249,
            "keyctl": 250,
            "unshare": 272,
            "perf_event_open": 298,
            "fanotify_init": 300,
            "name_to_handle_at": 303,
            "open_by_handle_at": 304,
            "setns": 308,
            "process_vm_readv": 310,
            "process_vm_writev": 311,
            "kcmp": 312,
            "finit_module": 313,
            "kexec_file_load": 320,
            "bpf": 321,
            "userfaultfd": 323,
        },
    ),
    "aarch64": Machine(
        name="aarch64",
        audit=0xC00000B7,
        clone=220,
        clone3=435,
        ioctl=29,
        socket=198,
        socketpair=199,
        execve=221,
        execveat=281,
        seccomp=277,
        refused=COMMON
        | {
            "lookup_dcookie": 18,
            "umount2": 39,
            "mount": 40,
            "pivot_root": 41,
            "nfsservctl": 42,
            "chroot": 51,
            "quotactl": 60,
            "acct": 89,
            "unshare": 97,
            "kexec_load": 104,
            "init_module": 105,
            "delete_module": 106,
            "syslog": 116,
            "ptrace": 117,
            "reboot": 142,
            "add_key": 217,
            "request_key": 218,
            "keyctl": 219,
            "swapon": 224,
            "swapoff": 225,
            "perf_event_open": 241,
            "fanotify_init": 262,
            "name_to_handle_at": 264,
            "open_by_handle_at": 265,
            "setns": 268,
            "process_vm_readv": 270,
            "process_vm_writev": 271,
            "kcmp": 272,
            "finit_module": 273,
            "bpf": 280,
            "userfaultfd": 282,
            "kexec_file_load": 294,
        },
    ),
}

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (linux/sched.h)
NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
X32_BIT, NO_CALL = 0x40000000, 0xFFFFFFFF
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
# AF_UNIX, AF_INET, AF_INET6, AF_NETLINK (bits/socket.h); AF_VSOCK, say, would reach the hypervisor.
FAMILIES = (1, 2, 10, 16)


def machine(name: str | None = None) -> Machine:
    """The table for a processor, ours unless named. Raises SandboxError where there is none."""
    name = name or platform.machine()
    try:
        return MACHINES[name]
    except KeyError:
        raise SandboxError(
            f"Taskyard has no system-call filter for this processor ({name}).",
            f"Run agents on one of: {', '.join(MACHINES)}.",
        ) from None


def program(on: Machine) -> bytes:
    """The filter, as an array of struct sock_filter: what bwrap --seccomp reads.

    clone3 hides its flags behind a pointer, which a filter cannot follow: it does not exist for a child (ENOSYS), and
    C libraries go on with clone.
    """
    code = [*_foreign(on)]
    if on.x32:
        code += _when(EQUAL, NO_CALL, refuse(errno.ENOSYS))  # has that bit too
        code += _when(ANY_BIT, X32_BIT, KILL)
    code += _when(GREATER, NEWEST, refuse(errno.ENOSYS))
    for number in sorted(on.refused.values()):
        code += _when(EQUAL, number, refuse(errno.EPERM))
    code += _when(EQUAL, on.clone3, refuse(errno.ENOSYS))
    code += _call(on.clone, argument(0), _when(ANY_BIT, NEW_NAMESPACES, refuse(errno.EPERM)))
    code += _call(
        on.ioctl,
        argument(1),
        [*_when(EQUAL, TIOCSTI, refuse(errno.EPERM)), *_when(EQUAL, TIOCLINUX, refuse(errno.EPERM))],
    )
    families = [step for family in FAMILIES for step in _when(EQUAL, family, ALLOW)]
    for number in (on.socket, on.socketpair):
        code += _call(number, argument(0), [*families, _return(refuse(errno.EAFNOSUPPORT))])
    return b"".join([*code, _return(ALLOW)])


def gate(on: Machine) -> bytes:
    """The filter that asks the runner about every execve and execveat."""
    code = [*_foreign(on), *_when(EQUAL, on.execve, NOTIFY), *_when(EQUAL, on.execveat, NOTIFY), _return(ALLOW)]
    return b"".join(code)


def _foreign(on: Machine) -> list[bytes]:
    """Kill calls by another architecture's numbers; leaves the call's number loaded."""
    return [
        _step(LOAD, ARCHITECTURE),
        _step(EQUAL, on.audit, true=1),
        _return(KILL),
        _step(LOAD, NUMBER),
    ]


def _when(test: int, operand: int, result: int) -> list[bytes]:
    return [_step(test, operand, false=1), _return(result)]


def _call(number: int, offset: int, body: list[bytes]) -> list[bytes]:
    """Run `body` on an argument of one system call, allowed at its end; others skip it, their number still loaded."""
    inner = [_step(LOAD, offset), *body, _return(ALLOW)]
    return [_step(EQUAL, number, false=len(inner)), *inner]


def _return(result: int) -> bytes:
    return _step(RETURN, result)


def _step(code: int, operand: int, true: int = 0, false: int = 0) -> bytes:
    """struct sock_filter: u16 code; u8 jt; u8 jf; u32 k. Jumps are relative to the next step."""
    return struct.pack("=HBBI", code, true, false, operand)
