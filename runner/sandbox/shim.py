"""The first process inside a jail: the last preparations, then it becomes the program.

Runs by itself with any Python since 3.9 and its standard library: python -I -S shim.py CONTROL CONFIG, two descriptors.
CONTROL is a socket to the runner: one message goes out, {} with the listeners (and the exec gate's) as SCM_RIGHTS, or
{"error": reason}; one byte comes back as the leave to go on. CONFIG is a file with jail.py's configuration.

Exit codes: 125 if anything is not as it should be, and the program never started; 127 and 126 as in shells.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import sys

GO = b"\x01"
FAILED, CANNOT_RUN, NOT_FOUND = 125, 126, 127
SET_MODE_FILTER, NEW_LISTENER = 1, 8  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER (linux/seccomp.h)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        with open(int(sys.argv[2]), "rb") as file:
            config = json.load(file)
        check_mounts(config["mounts"])
        listeners = [listen(port) for port in config["listeners"]]
        limit(config["limits"])
        descriptors = [listener.fileno() for listener in listeners]
        if config["gate"]:
            descriptors.append(install_gate(**config["gate"]))
        socket.send_fds(control, [b"{}"], descriptors)
        if control.recv(1) != GO:
            os._exit(FAILED)  # the runner is gone
        # What Python ignores, the program would inherit ignored.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        close_all()
    except BaseException as failed:
        control.send(json.dumps({"error": f"{type(failed).__name__}: {failed}"[:1000]}).encode())
        os._exit(FAILED)
    become(config["argv"], config["env"])


def check_mounts(mounts: list[tuple[str, int, int, bool]]) -> None:
    """What bwrap mounted must be what the runner opened: [path, device, inode, writable] each.

    bwrap mounts by path, below folders that hostile code of an earlier run may be renaming at this moment.
    """
    for path, device, inode, writable in mounts:
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) != (device, inode):
            raise RuntimeError(f"{path} was replaced while it was being mounted")
        if not writable and not os.statvfs(path).f_flag & os.ST_RDONLY:
            raise RuntimeError(f"{path} is writable but should not be")


def listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    return listener


def limit(limits: dict[str, int]) -> None:
    """Set resource limits by name (bytes, seconds, counts), soft and hard; be the first to go when memory is short."""
    for name, wanted in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        ceiling = resource.getrlimit(kind)[1]
        value = wanted if ceiling == resource.RLIM_INFINITY else min(wanted, ceiling)
        resource.setrlimit(kind, (value, value))
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def install_gate(program: str, number: int) -> int:
    """Install a filter (hexadecimal), by the system call `number`; returns the descriptor that is asked."""
    import ctypes  # 10 ms that only this needs

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]  # struct sock_fprog

    code = bytes.fromhex(program)
    whole = Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    listener = libc.syscall(
        ctypes.c_long(number), ctypes.c_ulong(SET_MODE_FILTER), ctypes.c_ulong(NEW_LISTENER), ctypes.byref(whole)
    )
    if listener < 0:
        raise OSError(ctypes.get_errno(), "the exec gate cannot be installed")
    return listener


def close_all() -> None:
    """Nothing but standard input, output and error reaches the program."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the one that listed them is closed
                os.close(int(name))


def become(argv: list[str], env: dict[str, str]) -> None:
    """Replace this process, by one execve alone: the gate lets no second one through."""
    program = find(argv[0], env.get("PATH", os.defpath))
    code = NOT_FOUND
    try:
        if program is None:
            raise FileNotFoundError("not found in PATH")
        os.execve(program, argv, env)
    except FileNotFoundError as failed:
        reason = failed.strerror or failed
    except OSError as failed:
        code, reason = CANNOT_RUN, failed.strerror
    os.write(2, f"{argv[0]}: {reason}\n".encode(errors="replace"))
    os._exit(code)


def find(name: str, path: str):  # str | None is not an annotation before 3.10
    """The program a shell would run by this name; None if there is none."""
    if "/" in name:
        return name
    for folder in path.split(":"):
        candidate = os.path.join(folder or ".", name)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


main()
