"""What an adapter does for a child in a jail (Run.gateway is set).

A key stays out of the jail: the child gets a placeholder, and the gateway puts the key in (Launch.upstream).
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ..postgres import default_home
from ..sandbox import beneath, logins
from ..sandbox.account import agent_account
from ..sandbox.errors import SandboxError
from ..sandbox.logins import LoginFile
from .base import CannotRun, Run

log = logging.getLogger("taskyard.runner")

PLACEHOLDER = "sk-taskyard-placeholder"


def bearer(key: str | None) -> dict[str, str]:
    """Upstream.headers for a key as most servers want it; empty without one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def shared_login(run: Run, source: Path, files: Sequence[LoginFile]) -> Path:
    """A folder with copies of a login's files for all jails of this host, brought up to date. Raises CannotRun."""
    named = run.environ.get("TASKYARD_HOME")
    try:
        account = agent_account()
        owner = (account.uid, account.gid) if account.switch else None
        return logins.share(source, files, Path(named) if named else default_home(), owner)
    except SandboxError as error:
        raise CannotRun(str(error)) from None
    except (OSError, beneath.Refused) as error:
        raise CannotRun(f"The login in {source} cannot be shared with a sandbox: {error}") from None


def settled(run: Run, bring: Callable[[], object]) -> None:
    """For Adapter.settle(): `bring` the shared login up to date if there is a jail; a failure is only logged."""
    if run.gateway is None:
        return
    try:
        bring()
    except Exception as error:  # the work is done, or goes on
        log.warning("task %s: the login could not be kept up to date: %s", run.claim.task_id, error)
