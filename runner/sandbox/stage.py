"""The step before bwrap where the runner is root: what only root can reach comes into reach of the agents' account.

bwrap mounts a descriptor by the path that /proc shows for it, and walks that path as the account it runs as. So each is
mounted again below /run/taskyard, in a mount namespace of this process alone, and the descriptor is replaced by one of
the same file there. Then this process becomes the account, and bwrap. Runs by itself with the standard library:

    python -I -S stage.py UID GID DESCRIPTOR,DESCRIPTOR,... BWRAP ARGUMENT...

Where the kernel does not let root do this (in a container, say) bwrap starts all the same, and fails by itself if a
path is out of reach. Numbers: linux/mount.h, linux/sched.h, linux/fcntl.h; system calls have theirs on every machine.
"""

import ctypes
import os
import stat
import sys

PLACE = "/run/taskyard"
OPEN_TREE, MOVE_MOUNT = 428, 429
OPEN_TREE_CLONE, AT_EMPTY_PATH, AT_RECURSIVE, MOVE_MOUNT_F_EMPTY_PATH = 0x1, 0x1000, 0x8000, 0x4
AT_FDCWD = -100
CLONE_NEWNS = 0x00020000
MS_REC, MS_PRIVATE = 0x4000, 0x40000

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    uid, gid, descriptors, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    stage([int(number) for number in descriptors.split(",")])
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    os.execv(command[0], command)


def stage(descriptors: list[int]) -> None:
    """Replace each by one that is reached below PLACE; all stay as they are if that is not allowed."""
    try:
        # From the namespace that they were opened in: another's mounts cannot be cloned.
        clones = [clone(descriptor) for descriptor in descriptors]
        os.makedirs(PLACE, mode=0o755, exist_ok=True)
        checked(libc.unshare(CLONE_NEWNS))
        checked(libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))
        checked(libc.mount(b"taskyard", PLACE.encode(), b"tmpfs", ctypes.c_ulong(0), b"mode=0755"))
    except OSError:
        return
    for descriptor, clone_of in zip(descriptors, clones, strict=True):
        path = f"{PLACE}/{descriptor}"
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.mkdir(path)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        moved = libc.syscall(
            ctypes.c_long(MOVE_MOUNT),
            ctypes.c_int(clone_of),
            b"",
            ctypes.c_int(AT_FDCWD),
            path.encode(),
            ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH),
        )
        checked(moved)
        os.close(clone_of)
        reached = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        os.dup2(reached, descriptor, inheritable=True)
        os.close(reached)


def clone(descriptor: int) -> int:
    """A mount of what is open there, and of what is mounted below it, that is in no namespace yet."""
    flags = OPEN_TREE_CLONE | AT_EMPTY_PATH | AT_RECURSIVE | os.O_CLOEXEC
    return checked(libc.syscall(ctypes.c_long(OPEN_TREE), ctypes.c_int(descriptor), b"", ctypes.c_uint(flags)))


def checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


main()
