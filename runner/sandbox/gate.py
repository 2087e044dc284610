"""The runner's side of the exec gate: a child that may not execute starts exactly one program, its own.

Its filter (seccomp.gate) asks here about every execve. The first is let through, then the listener is closed: from then
on the kernel answers each with ENOSYS, also an interpreter's or a loader's. Structures and numbers: linux/seccomp.h.
"""

import asyncio
import errno
import fcntl
import select
import struct

NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif: id, pid, flags, then seccomp_data
RESPONSE = struct.Struct("=QqiI")  # struct seccomp_notif_resp: id, val, error, flags
RECEIVE = 0xC0002100 | NOTIFICATION.size << 16  # SECCOMP_IOCTL_NOTIF_RECV
SEND = 0xC0002101 | RESPONSE.size << 16  # SECCOMP_IOCTL_NOTIF_SEND
CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE


async def admit_once(listener: int) -> None:
    """Let the next execve through, or see the child end without one.

    The caller then closes `listener`, the only descriptor of its filter that is left.
    """
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        asked.clear()
        loop.add_reader(listener, asked.set)
        try:
            await asked.wait()
        finally:
            loop.remove_reader(listener)
        # Receiving from a dead child would block on older kernels, so only when there is something to receive.
        events = dict(poll.poll(0)).get(listener, 0)
        if events & select.POLLIN:
            if _admit(listener):
                return
        elif events:
            return


def _admit(listener: int) -> bool:
    """Whether a call was waiting, and goes on now; a signal may have interrupted it, then it comes again."""
    buffer = bytearray(NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, RECEIVE, buffer, True)
        (identity, *_) = NOTIFICATION.unpack(buffer)
        fcntl.ioctl(listener, SEND, RESPONSE.pack(identity, 0, 0, CONTINUE))
    except OSError as failed:
        if failed.errno in (errno.ENOENT, errno.EINTR):
            return False
        raise
    return True
