"""Which account a confined child runs as.

Never root: the kernel lets uid 0 write some of /proc/sys even without a single capability, from within any namespace.
"""

import os

from ..postgres.account import Account, NoAccount, account_of, system_account
from .errors import SandboxError

ACCOUNT_NAME = "taskyard-agent"


def agent_account() -> Account:
    """Our own account, or as root the system account `taskyard-agent`, made if missing.

    Raises SandboxError if it cannot be made.
    """
    if os.geteuid() != 0:
        return account_of(os.geteuid(), os.getegid())
    try:
        return system_account(ACCOUNT_NAME)
    except NoAccount as missing:
        raise SandboxError(
            f"Agents do not run as root, and there is no system account '{ACCOUNT_NAME}' for them. {missing}".strip(),
            f"Make one (useradd --system {ACCOUNT_NAME}), or run taskyard as an ordinary user.",
        ) from missing
