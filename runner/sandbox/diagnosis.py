"""Why bwrap could not set up a sandbox, from what it printed and a few facts about the host. Pure but for facts().

The messages are bwrap's own (bubblewrap.c); the restrictions are those of distributions and container runtimes.
"""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

APPARMOR_PROFILE = """\
abi <abi/4.0>,
include <tunables/global>
profile bwrap {bwrap} flags=(unconfined) {{
  userns,
}}
"""
APPARMOR_PLACE = "/etc/apparmor.d/bwrap"
CONTAINER_CURE = (
    "Start the container with --security-opt systempaths=unconfined --security-opt seccomp=PROFILE, where PROFILE"
    " allows clone, unshare, mount, umount2, pivot_root and setns (podman: --security-opt unmask=ALL; Kubernetes:"
    " hostUsers: false and procMount: Unmasked); or run the runner on the host itself."
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides where user namespaces are to be had. None where the kernel does not have such a switch.

    `apparmor_restricts` is Ubuntu's kernel.apparmor_restrict_unprivileged_userns.
    """

    system: str = "Linux"
    release: str = ""
    bwrap: str = "/usr/bin/bwrap"
    container: bool = False
    max_user_namespaces: int | None = None
    unprivileged_userns_clone: int | None = None
    apparmor_restricts: int | None = None


def facts(bwrap: str = "/usr/bin/bwrap") -> Facts:
    """Those of this host."""
    return Facts(
        system=platform.system(),
        release=platform.release(),
        bwrap=bwrap,
        container=_in_container(),
        max_user_namespaces=_number("/proc/sys/user/max_user_namespaces"),
        unprivileged_userns_clone=_number("/proc/sys/kernel/unprivileged_userns_clone"),
        apparmor_restricts=_number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
    )


def impossible(host: Facts) -> tuple[str, str] | None:
    """Cause and cure where no sandbox can work at all, whatever is installed; None where one may."""
    if host.system != "Linux":
        cure = "Use WSL2." if host.system == "Windows" else "Run the runner in a Linux virtual machine or on a server."
        return f"Agents are confined with means of the Linux kernel, and this is {host.system}.", cure
    # WSL1 calls itself 4.4.0-19041-Microsoft, WSL2 5.15.90.1-microsoft-standard-WSL2.
    if host.release.endswith("Microsoft"):
        return "WSL1 has no namespaces to confine agents in.", "Convert it: wsl --set-version DISTRIBUTION 2"
    return None


def diagnose(stderr: str, host: Facts) -> tuple[str, str]:
    """Cause and cure, each a sentence or two, for a bwrap that failed with this on its standard error."""
    known = impossible(host)
    if known:
        return known
    said = next((line for line in reversed(stderr.strip().splitlines()) if line.startswith("bwrap: ")), "")
    told = f' (bwrap says: "{said.removeprefix("bwrap: ")}")' if said else ""
    if "Unknown option" in said:
        return f"{host.bwrap} is too old{told}.", "Install bubblewrap 0.11, or: pip install 'taskyard[sandbox]'"
    if "Can't mount proc" in said:
        return f"This looks like a container with parts of /proc masked{told}.", CONTAINER_CURE
    if "Can't find source path /proc/self/fd/" in said and "Permission denied" in said:
        return (
            f"The account that agents run as cannot reach a folder that this one needs{told}.",
            "Make the folders above it passable for that account (chmod o+x), or keep it elsewhere.",
        )
    if "Unexpected capabilities" in said:
        return (
            f"The runner has capabilities that bwrap does not want to pass on{told}.",
            "Start it without them (systemd: no AmbientCapabilities).",
        )
    if "setuid" in said:
        return (
            f"{host.bwrap} has the set-user-id bit, with which it cannot shut off user namespaces{told}.",
            f"Remove it (chmod u-s {host.bwrap}), or: pip install 'taskyard[sandbox]'",
        )
    refused = _no_namespaces(said, told, host)
    if refused:
        return refused
    last = (stderr.strip().splitlines() or ["nothing"])[-1]
    return f"bwrap could not set up the sandbox; the last it printed: {last}", ""


def _no_namespaces(said: str, told: str, host: Facts) -> tuple[str, str] | None:
    """Where user namespaces are what is missing: which of the switches it is."""
    signs = ("namespace", "uid map", "gid map", "RTM_NEWADDR", "userns")
    if not any(sign in said for sign in signs):
        return None
    if host.max_user_namespaces == 0 or "ENOSPC" in said or "No space left" in said:
        if host.max_user_namespaces == 0:
            cause = f"User namespaces are switched off here: user.max_user_namespaces is 0{told}."
        else:
            cause = f"All user namespaces that the kernel allows are in use{told}."
        return cause, "Raise it: sysctl user.max_user_namespaces=15000, and the same line in /etc/sysctl.d/."
    if host.unprivileged_userns_clone == 0:
        return (
            f"User namespaces are reserved for root here: kernel.unprivileged_userns_clone is 0{told}.",
            "Allow them: sysctl kernel.unprivileged_userns_clone=1, and the same line in /etc/sysctl.d/.",
        )
    if host.apparmor_restricts:
        profile = APPARMOR_PROFILE.format(bwrap=host.bwrap)
        return (
            f"AppArmor keeps bwrap from using user namespaces, as on Ubuntu since 23.10{told}.",
            f"Write this to {APPARMOR_PLACE}, then run: apparmor_parser -r {APPARMOR_PLACE}\n{profile}",
        )
    if host.container or "No permissions to create" in said:
        return f"This looks like a container that allows no user namespaces{told}.", CONTAINER_CURE
    return (
        f"The kernel refuses user namespaces to this account{told}.",
        "Look for what forbids them: a security module, a seccomp filter, or sysctl user.max_user_namespaces.",
    )


def _in_container() -> bool:
    if any(os.path.exists(sign) for sign in ("/.dockerenv", "/run/.containerenv")):
        return True
    return "KUBERNETES_SERVICE_HOST" in os.environ


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None
