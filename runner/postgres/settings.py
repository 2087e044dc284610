"""The text of the server's configuration files."""

import sys
from collections.abc import Sequence
from pathlib import Path

from .account import Account
from .files import read_file, write_file
from .places import Address, loopback_addresses

SETTINGS_FILE = "taskyard.conf"
INCLUDE = f"""
# Taskyard's settings, which win over those above. The file is rewritten whenever taskyard starts the server.
include_if_exists = '{SETTINGS_FILE}'
"""
HBA = """\
# Written by taskyard. Passwords only, and only from this machine.
# TYPE  DATABASE  USER  ADDRESS       METHOD
local   all       all                 scram-sha-256
host    all       all   127.0.0.1/32  scram-sha-256
host    all       all   ::1/128       scram-sha-256
"""


def settings_text(address: Address, others: Sequence[str], log_folder: Path, *, ordinary_user: bool) -> str:
    """The content of taskyard.conf. `others` are addresses beside loopback to listen on.

    Durability settings are left at PostgreSQL's safe defaults.
    """
    settings = {
        "listen_addresses": ",".join([*loopback_addresses(), *others]),
        "port": str(address.port),
        # A list: double quotes keep a comma or a space in the path from splitting it.
        "unix_socket_directories": f'"{address.socket_dir}"',
        "unix_socket_permissions": "0777",
        "password_encryption": "scram-sha-256",
        "max_connections": "200",
        "shared_buffers": "128MB",
        "wal_compression": "on",
        "random_page_cost": "1.1",
        "jit": "off",
        "autovacuum_naptime": "10s",
        "logging_collector": "on",
        "log_destination": "stderr",
        "log_directory": str(log_folder),
        "log_filename": "postgresql-%a.log",
        "log_rotation_age": "1d",
        "log_rotation_size": "0",
        "log_truncate_on_rotation": "on",
        "log_line_prefix": "%m [%p] ",
        "log_min_duration_statement": "-1",
        "log_statement": "none",
    }
    if address.tls:
        settings["ssl"] = "on"
        settings["ssl_min_protocol_version"] = "TLSv1.2"
    if ordinary_user and sys.platform == "linux":
        # systemd's RemoveIPC deletes an ordinary user's /dev/shm segments at logout, under a running server:
        # https://www.postgresql.org/docs/current/kernel-resources.html#SYSTEMD-REMOVEIPC
        settings["dynamic_shared_memory_type"] = "mmap"
    quoted = ((name, value.replace("'", "''")) for name, value in settings.items())
    return "".join(f"{name} = '{value}'\n" for name, value in quoted)


def write_settings(data: Path, text: str, account: Account) -> None:
    """Bring taskyard.conf in the data folder up to date."""
    write_file(data / SETTINGS_FILE, text, account)


def write_access_rules(data: Path, account: Account) -> None:
    """Replace initdb's pg_hba.conf, and make postgresql.conf include taskyard.conf."""
    write_file(data / "pg_hba.conf", HBA, account)
    write_file(data / "postgresql.conf", read_file(data / "postgresql.conf") + INCLUDE, account)
