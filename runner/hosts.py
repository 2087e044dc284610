"""Other hosts of a yard: a login for each, and how such a host joins."""

import ipaddress
import secrets
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from .actions import make_login, set_password
from .connection import Yard, connect
from .errors import TaskyardError
from .health import roles
from .joined import forget, joined_dsn, keep, passfile
from .postgres import Cluster, default_home

LOGIN_TAKEN = psycopg.errors.DuplicateObject
# Tailscale's addresses: whatever goes there is encrypted already. https://tailscale.com/kb/1015/100.x-addresses
TAILSCALE = (ipaddress.ip_network("100.64.0.0/10"), ipaddress.ip_network("fd7a:115c:a1e0::/48"))


def invite(yard: Yard, name: str, scope: str | None, cluster: Cluster | None) -> str:
    """Make a login for another host; returns the connection string, with its password, that `join` there takes.

    The login runs tasks, and where a scope is named its people put tasks in there too. `yard` is an administrator's
    connection, `cluster` the embedded server if it leads there. Raises TaskyardError, psycopg.Error.
    """
    host, port = yard.info.host, yard.info.port
    if cluster is not None:
        status = cluster.status()
        if not status.addresses:
            raise TaskyardError(
                "The embedded server listens on this machine only, so no other host can join.",
                "Let a range of addresses in first, like: taskyard up --lan 192.168.1.0/24",
            )
        host = status.addresses[0]
    password = _make(yard, name, scope)
    given = {"host": host, "port": str(port), "user": name, "dbname": yard.info.dbname, "password": password}
    return _url(given)


def join(dsn: str, name: str, keep_password: bool, home: Path | None = None) -> str:
    """Make this host one of a yard: see to a login, keep its connection string and password; returns the string.

    A login of taskyard_runner is used as it is, and gets a new password, so that the one that was pasted here is worth
    nothing any more; with `keep_password` it does not. A login of taskyard_admin makes one for this host, `name`.
    Raises TaskyardError, psycopg.Error, OSError.
    """
    home = home or default_home()
    if (already := joined_dsn(home)) is not None:
        raise TaskyardError(f"This host has joined a yard already ({already}).", "Leave that first: taskyard leave")
    given = {key: str(told) for key, told in conninfo_to_dict(dsn).items() if told is not None}
    with connect(dsn) as yard:
        held = roles(yard)
        user, password = yard.info.user, yard.info.password
        if "taskyard_admin" in held:
            user, password = name, _make(yard, name, None)
        elif "taskyard_runner" not in held:
            raise TaskyardError(
                f"The login {user} may not run tasks.", "An administrator makes one that may: taskyard invite NAME"
            )
        elif password and not keep_password:
            password = secrets.token_urlsafe(24)
        kept = {**given, "user": user, "dbname": yard.info.dbname}
        kept.pop("password", None)
        kept |= _protection(yard, {**kept, "password": yard.info.password, "user": yard.info.user}, given)
        if password:
            kept["passfile"] = str(passfile(home))
        told = make_conninfo("", **kept)
        # All is kept before the password changes: whoever is cut off in between can still get in with one of the two.
        keep(home, told, kept, password)
        try:
            if password and user == yard.info.user and password != yard.info.password:
                set_password(yard, user, password)
            connect(told).close()
        except BaseException:
            forget(home)
            raise
    return told


def is_encrypted(yard: Yard) -> bool:
    """Whether what goes over this connection is hidden from the network between, or never leaves the machine."""
    if yard.pgconn.ssl_in_use or yard.info.host.startswith(("/", "@")):
        return True
    try:
        address = ipaddress.ip_address(yard.info.hostaddr)
    except ValueError:
        return False
    return address.is_loopback or any(address in network for network in TAILSCALE)


def _make(yard: Yard, name: str, scope: str | None) -> str:
    password = secrets.token_urlsafe(24)
    try:
        make_login(yard, name, password, "taskyard_runner", *(["taskyard_submitter"] if scope else []), scope=scope)
    except LOGIN_TAKEN as error:
        raise TaskyardError(
            f"There is a login {name} already.",
            f"Take another name, or remove that one first: drop owned by {name}; drop role {name};",
        ) from error
    return password


def _protection(yard: Yard, reached_by: dict[str, str], given: dict[str, str]) -> dict[str, str]:
    """What keeps the way encrypted from now on, where it is today; nothing where the string says so itself.

    Channel binding proves by the password that nobody sits between; poolers and old servers cannot do it.
    """
    if not yard.pgconn.ssl_in_use or given.get("sslmode") in ("verify-ca", "verify-full"):
        return {}
    bound = {"sslmode": "require", "channel_binding": "require"}
    try:
        connect(make_conninfo("", **{**reached_by, **bound})).close()
        return bound
    except TaskyardError:
        return {"sslmode": "require"}


def _url(parts: dict[str, str]) -> str:
    """A URL that a shell takes without quotes: nothing in it but what URLs hold."""
    host = f"[{parts['host']}]" if ":" in parts["host"] else parts["host"]
    user, password, database = (quote(parts[key], safe="") for key in ("user", "password", "dbname"))
    return f"postgresql://{user}:{password}@{host}:{parts['port']}/{database}"
