"""Starting an attempt's child confined as its claim says, with the servers that are its only way out.

policy() is the one place that turns a claim into what the kernel enforces.
"""

import asyncio
import contextlib
import logging
import os
import signal
import stat
from collections.abc import AsyncGenerator
from pathlib import Path

from ..adapters import CannotRun, Launch
from ..channel import PATH, TOKEN, URL, Address, client
from ..channel.server import Server
from ..postgres.account import Account
from ..sandbox import beneath
from ..sandbox.errors import SandboxError
from ..sandbox.gateway import Gateway
from ..sandbox.host import find_python
from ..sandbox.jail import Entered, Jail
from ..sandbox.levels import Confinement
from ..sandbox.network import Verdict
from ..sandbox.policy import CHANNEL_PORT, GATEWAY_PORT, HOME, PROXY_PORT, Limits, Mount, Policy
from ..sandbox.proxy import Proxy
from ..verbs import Claim
from .places import Rooms
from .process import Child, Reaper, clean_environment, spawn

log = logging.getLogger("taskyard.runner")

GATEWAY = f"http://127.0.0.1:{GATEWAY_PORT}"
PROXY = f"http://127.0.0.1:{PROXY_PORT}"
CHANNEL = f"http://127.0.0.1:{CHANNEL_PORT}{PATH}"

# The channel's client, below the child's home directory.
PROGRAMS = ".local/bin"
CLIENT = f"{PROGRAMS}/taskyard-agent"

# What tools outside of any jail would run or obey later: an agent that may write its workspace may not write these.
PROTECTED = (
    ".git/config",
    ".git/config.worktree",
    ".git/hooks",
    ".git/info/attributes",
    ".claude",
    ".codex",
    ".gemini",
    ".qwen",
    ".opencode",
    "opencode.json",
    ".mcp.json",
    ".vscode",
    ".idea",
    ".envrc",
)


def protected(workspace: Path) -> tuple[str, ...]:
    """Names below the workspace that stay as they are, where they exist."""
    # In a work tree of its own .git is a file that says where the repository is.
    return (".git", *PROTECTED) if (workspace / ".git").is_file() else PROTECTED


def put_aside(workspace: Path) -> bool:
    """Rename .git/commondir, asked after an attempt that could write; returns whether it was there.

    It leads git to another repository's configuration. No git makes it in a repository of its own, and in a work tree,
    whose .git is a file, it lies elsewhere.
    """
    git = workspace / ".git"
    if git.is_symlink() or not os.path.lexists(git / "commondir"):
        return False
    with contextlib.suppress(OSError):
        os.rename(git / "commondir", git / "commondir.put-aside")
    return True


def policy(claim: Claim, launch: Launch, rooms: Rooms, channel: bool = False) -> Policy:
    """What the kernel is to enforce for one attempt.

    Its own folders are writable in any case; the task's workspace and the scope's paths as the scope says. Raises
    CannotRun where the scope forbids what the task names.
    """
    reads, writes = "read" in claim.permissions, "read" in claim.permissions and "write" in claim.permissions
    if rooms.given and not reads:
        raise CannotRun(f"Scope {claim.scope} may not read, and the task names a workspace.")
    mounts = [
        Mount(rooms.workspace, writable=writes or not rooms.given),
        Mount(rooms.tool, writable=True),
        Mount(rooms.artifacts, writable=True),
        *(Mount(program) for program in launch.programs),
        *(Mount(shared, writable=True) for shared in launch.shared),
        *rooms.mounts,
    ]
    if reads:
        # A scope holds for many hosts: what is not on this one cannot be seen here.
        shown = {mount.source for mount in rooms.mounts}  # as they are shown, whatever the scope says of their place
        paths = [Path(path) for path in claim.allowed_paths or () if Path(path).is_dir() and Path(path) not in shown]
        mounts += [Mount(path, writable=writes) for path in paths if path != rooms.workspace]
    listeners = [CHANNEL_PORT] if channel else []
    if launch.upstream is not None:
        listeners.append(GATEWAY_PORT)
    if "network" in claim.permissions or launch.hosts:
        listeners.append(PROXY_PORT)
    return Policy(
        workspace=rooms.workspace,
        home=rooms.user,
        mounts=tuple(mounts),
        protected=_kept(rooms) if rooms.given and writes else (),
        execute="execute" in claim.permissions,
        listeners=tuple(listeners),
        limits=Limits(cpu_seconds=max(60, int(claim.timeout.total_seconds() * 2))),
    )


def _kept(rooms: Rooms) -> tuple[str, ...]:
    return protected(rooms.workspace) if rooms.protected is None else rooms.protected


def check_writable(workspace: Path, account: Account) -> None:
    """As root children run as an account of their own. Raises CannotRun where it may not write the task's directory."""
    found = workspace.stat()
    bit = stat.S_IWUSR if found.st_uid == account.uid else stat.S_IWGRP if found.st_gid == account.gid else stat.S_IWOTH
    if not found.st_mode & bit:
        raise CannotRun(
            f"The runner is root and its agents are {account.name}, who may not write {workspace}:"
            f" chown -R {account.name} it, or start the runner as its owner."
        )


def environment(
    claim: Claim, launch: Launch, rooms: Rooms, confinement: Confinement, channel: Address | None
) -> dict[str, str]:
    """The child's variables."""
    own = {
        "TASKYARD_TASK": str(claim.task_id),
        "TASKYARD_ATTEMPT": str(claim.number),
        "TASKYARD_ARTIFACTS": str(rooms.artifacts),
    }
    if confinement.level == "strict":
        # The user's own ~/.gitconfig is not there, and without a name nobody can commit.
        for who in ("AUTHOR", "COMMITTER"):
            own |= {f"GIT_{who}_NAME": "Taskyard", f"GIT_{who}_EMAIL": "taskyard@localhost"}
        if confinement.account is not None and confinement.account.switch:
            own |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
        if "network" in claim.permissions or launch.hosts:
            own |= {name: PROXY for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")}
            own |= {name: "localhost,127.0.0.1,::1" for name in ("NO_PROXY", "no_proxy")}
    if channel is None:
        return clean_environment({**own, **launch.env})
    programs = (HOME if confinement.level == "strict" else rooms.user) / PROGRAMS
    own |= {URL: channel.url, TOKEN: channel.token, "TASKYARD_AGENT": str(programs / "taskyard-agent")}
    env = clean_environment({**own, **launch.env})
    found = [env["PATH"], str(programs)]
    if confinement.level == "strict" and (prefix := find_python().prefix) is not None:
        found.append(str(prefix / "bin"))  # the jail's Python, where the distribution has none
    return env | {"PATH": ":".join(found)}


def install_client(rooms: Rooms, account: Account | None) -> None:
    """Put the channel's client where the child finds it, unless an agent before made that place unusable."""
    owner = (account.uid, account.gid) if account is not None and account.switch else None
    content = Path(client.__file__).read_bytes()
    try:
        beneath.write_bytes(rooms.user, CLIENT, content, 0o755, owner)
    except (OSError, beneath.Refused) as error:
        log.warning("%s cannot be put into %s: %s", CLIENT, rooms.user, error)


@contextlib.asynccontextmanager
async def started(
    claim: Claim,
    launch: Launch,
    rooms: Rooms,
    confinement: Confinement,
    reaper: Reaper,
    network: "Network",
    channel: Address | None = None,
) -> AsyncGenerator[Child]:
    """The attempt's child, started; nothing of a jailed one is left on leaving.

    Raises CannotRun where this host cannot keep the policy, SandboxError where the jail cannot be set up, OSError.
    """
    env = environment(claim, launch, rooms, confinement, channel)
    mark = str(claim.attempt_id)
    if confinement.level != "strict":
        yield await spawn(launch.argv, env, rooms.workspace, reaper, mark)
        return
    assert confinement.account is not None
    with contextlib.ExitStack() as open_jail:
        network.prepare(claim, launch)
        try:
            jail = open_jail.enter_context(
                Jail(policy(claim, launch, rooms, channel is not None), launch.argv, env, confinement.account)
            )
        except (ValueError, beneath.Refused, FileNotFoundError) as refused:
            raise CannotRun(f"The sandbox cannot show what the task needs: {refused}") from refused
        child = await spawn(jail.argv, jail.env, Path("/"), reaper, mark, jail.pass_fds)
        try:
            entered = await jail.entered()
        except BaseException as failed:
            said = await child.discard()
            if isinstance(failed, SandboxError):
                raise jail.explained(failed, said) from failed
            raise
        child.confined_by(entered)
        async with network.serving(entered):
            try:
                yield child
            finally:
                await entered.end()


class Network:
    """What a jailed child may reach, and what it did. `channel` is the attempt's way to the yard."""

    def __init__(self, channel: Server | None = None) -> None:
        self._refused: list[Verdict] = []
        self._told: set[tuple[str, int]] = set()
        self._used: dict[str, list[int]] = {}
        self._servers: dict[int, Gateway | Proxy | Server] = {}
        if channel is not None:
            self._servers[CHANNEL_PORT] = channel

    def note(self, verdict: Verdict) -> None:
        """A connection that was refused, came to nothing, or has ended."""
        if verdict.allowed and verdict.sent + verdict.received:
            where = f"{verdict.host}:{verdict.port}"
            used = self._used.setdefault(where if len(self._used) < 100 else "others", [0, 0, 0])
            used[0] += 1
            used[1] += verdict.sent
            used[2] += verdict.received
        elif (verdict.host, verdict.port) not in self._told and len(self._told) < 100:
            self._told.add((verdict.host, verdict.port))
            self._refused.append(verdict)

    def refusals(self) -> list[str]:
        """One line for each host that was refused since the last call."""
        refused, self._refused = self._refused, []
        return [f"Not reached: {verdict.host}:{verdict.port}, {verdict.reason}" for verdict in refused]

    def summary(self) -> tuple[str, dict[str, object]] | None:
        """What was reached, as a line and as {host: {connections, sent, received}}; None where nothing was."""
        if not self._used:
            return None
        lines = [f"{host} ({n}, {sent} bytes out, {received} in)" for host, (n, sent, received) in self._used.items()]
        data = {
            host: {"connections": n, "sent": sent, "received": received}
            for host, (n, sent, received) in self._used.items()
        }
        return f"Reached {', '.join(lines)}"[:2000], {"network": data}

    def prepare(self, claim: Claim, launch: Launch) -> None:
        """Build the servers that the child is to have. Raises SandboxError."""
        if launch.upstream is not None:
            self._servers[GATEWAY_PORT] = Gateway(launch.upstream, self.note)
        self._servers[PROXY_PORT] = Proxy(self._allowed(claim), launch.hosts, self.note)

    @contextlib.asynccontextmanager
    async def serving(self, entered: Entered) -> AsyncGenerator[None]:
        """Gateway and proxy, as far as the jail has a port for them. Should one end, so does the child."""

        def ended(server: asyncio.Task[None]) -> None:
            if not server.cancelled():
                log.error("a server of a sandbox ended: %s", server.exception())
                entered.signal(signal.SIGKILL)

        servers = [
            asyncio.create_task(self._servers[port].serve(listener)) for port, listener in entered.listeners.items()
        ]
        for server in servers:
            server.add_done_callback(ended)
        try:
            yield
        finally:
            for server in servers:
                server.cancel()
            await asyncio.gather(*servers, return_exceptions=True)

    @staticmethod
    def _allowed(claim: Claim) -> tuple[str, ...] | None:
        if "network" not in claim.permissions:
            return ()
        return None if claim.network_allow is None else tuple(claim.network_allow)
