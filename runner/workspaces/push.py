"""Pushing a branch to a remote of the user's repository, without running or obeying anything of that repository.

Its configuration tells the remote's address, and no more: an agent may have made that repository in an earlier task,
and core.sshCommand, credential.helper and hooks of its would run with the user's rights. What is pushed is the commit,
from an empty repository of ours that borrows the objects. A remote on this host is pushed to in a jail, since its hooks
run here; any other one as the user of the runner, who has the keys: ~/.ssh and ~/.gitconfig hold, and nobody is asked
for anything.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..sandbox.policy import Mount
from ..worker.process import clean_environment
from .git import LONG, OVERRIDES, Git, GitError, bare, overriding
from .repository import Repository, check_account, locate

# ext:: and other remote helpers run what the address says (gitremote-helpers(7)).
_ELSEWHERE = re.compile(r"(https?|ssh|git)://[^-]|[A-Za-z0-9_.@][A-Za-z0-9_.@-]*:(?!:)")
_HERE = re.compile(r"(file://)?/|\.\.?(/|$)")

# What git and ssh need of the runner's environment to show who the user is, and where a proxy is.
_PASSED_ON = (
    *("SSH_AUTH_SOCK", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_ASKPASS", "GIT_CONFIG_GLOBAL", "XDG_CONFIG_HOME"),
    *("GIT_SSL_CAINFO", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *(name for proxy in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY") for name in (proxy, proxy.lower())),
)
_OUTSIDE = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "push.recurseSubmodules": "no",
    "push.gpgSign": "false",
    "protocol.allow": "never",
    **{f"protocol.{name}.allow": "always" for name in ("https", "http", "ssh", "git")},
}

# $1 folder for a repository of ours, $2 address, $3 commit, $4 branch, $5 object format
PUSH = """
set -eu
git init --quiet --bare --template= --object-format="$5" "$1"
mkdir -p "$1/objects/info"
printf '%s\\n' "$ALTERNATES" >"$1/objects/info/alternates"
GIT_DIR="$1" exec git push --quiet --no-verify "$2" "$3:refs/heads/$4"
"""
# receive-pack takes neither variables nor options for what it trusts.
TRUSTING = 'printf "[safe]\\n\\tdirectory = *\\n" >"$HOME/.gitconfig"\n'


async def push(repository: Repository, url: str, branch: str, commit: str, git: Git) -> str | None:
    """Push; returns why it was refused, in the words of git and of the remote's hooks.

    `url` is the remote's address as the repository has it. Raises what Git.run() and locate() raise.
    """
    env = {"ALTERNATES": "\n".join(str(path) for path in repository.objects)}
    form = "sha256" if len(commit) == 64 else "sha1"
    if _HERE.match(url):
        return await _to_this_host(repository, url, (commit, branch, form), env, git)
    if not _ELSEWHERE.match(url):
        return "its address is none that Taskyard pushes to (https, ssh, git, or a directory of this host)."
    with tempfile.TemporaryDirectory(prefix="taskyard-push-") as folder:
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        told = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", **overriding(_OUTSIDE)}
        environment = clean_environment({**passed, **told, **env})
        argv = ["sh", "-c", PUSH, "sh", f"{folder}/from", url, commit, branch, form]
        done = await bare(argv, environment, Path(folder), timeout=LONG)
    return None if done.code == 0 else reason(done.stderr.decode(errors="replace"))


def reason(stderr: str) -> str:
    """Why git could not push, from what it printed: what the remote said, then git's own words."""
    remote = [line.removeprefix("remote:").strip() for line in stderr.splitlines() if line.startswith("remote:")]
    verdict = re.search(r"! \[[a-z ]*rejected\].*\((.+)\)", stderr)
    own = verdict[1] if verdict else GitError(stderr, 1).said
    said = f"{own} ({' '.join(filter(None, remote))})" if any(remote) else own
    # Never the user and password that an address may hold.
    return re.sub(r"//[^/@\s]+@", "//", said)[:500]


async def _to_this_host(
    repository: Repository, url: str, what: tuple[str, str, str], env: Mapping[str, str], git: Git
) -> str | None:
    place = os.path.normpath(repository.path / url.removeprefix("file://"))
    remote = locate(place, None, alternates=False)
    account = git.confinement.account
    if account is not None and account.switch:
        check_account(remote, account)
    options = overriding({**OVERRIDES, "protocol.file.allow": "always"})
    async with git.home() as home:
        seen = "/home/agent" if git.jailed else str(home)
        try:
            await git.run(
                TRUSTING + PUSH,
                f"{seen}/from",
                str(remote.common),
                *what,
                workspace=remote.common,
                mounts=(
                    Mount(remote.common, writable=True),
                    *(Mount(path) for path in (*repository.objects, *remote.borrowed)),
                ),
                env={**options, **env, "GIT_CONFIG_GLOBAL": f"{seen}/.gitconfig"},
                home=home,
                timeout=LONG,
            )
        except GitError as error:
            return reason(error.stderr)
    return None
