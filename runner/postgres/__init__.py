"""An embedded PostgreSQL server: found or copied binaries, a cluster in the user's data folder, no set-up."""

from .account import Account, server_account
from .binaries import Binaries, find_binaries, find_psql
from .cluster import Cluster, Status
from .errors import PostgresError
from .places import default_home

__all__ = [
    "Account",
    "Binaries",
    "Cluster",
    "PostgresError",
    "Status",
    "default_home",
    "find_binaries",
    "find_psql",
    "server_account",
]
