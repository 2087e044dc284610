"""Random trees of scopes against an oracle that knows only what each flag, path and host pattern admits."""

import functools
import random
import statistics
import time
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, column, rows, value
from .fleet import until
from .yardwork import in_background, refusal, waits_for_a_lock

FLAGS = ("read", "write", "execute", "network", "create_child")
PATHS = ("/p", "/p/src", "/p/src/a", "/p/src/b", "/pq", "/pq/src", "/p/srcs", "/q", "/q/r")
# What a list of paths may or may not admit; the last one nothing but "any path" does.
PLACES = (*PATHS, "/p/x", "/p/src/x", "/p/src/a/x", "/pq/x", "/q/r/s/t", "/qr", "/elsewhere")
PATTERNS = (
    "a.com",
    "*.a.com",
    "b.a.com",
    "*.b.a.com",
    "c.b.a.com",
    "*.c.b.a.com",
    "ba.com",
    "*.ba.com",
    "x.org",
    "*.x.org",
)
HOSTS = (
    "a.com",
    "b.a.com",
    "d.a.com",
    "c.b.a.com",
    "d.c.b.a.com",
    "ba.com",
    "x.ba.com",
    "x.org",
    "y.x.org",
    "z.com",
    "else.net",
)
AGENTS = ("claude", "codex", "gemini", "shell")
PROVIDERS = ("command", "claude", "codex")
NUMBERS = ("max_concurrency", "max_depth", "max_children", "max_spawns_per_minute")
ROOT: dict[str, int | None] = {**dict.fromkeys(NUMBERS), "max_depth": 10, "max_spawns_per_minute": 60}  # of default


@dataclass(frozen=True)
class Node:
    name: str
    parent: str
    may: dict[str, bool | None]
    lists: dict[str, list[str] | None]
    numbers: dict[str, int | None]
    paused: bool = False
    weight: int = 1


@dataclass
class Holds:
    """What holds in a scope; sets of places, hosts and names stand for the lists that admit them."""

    path: list[str] = field(default_factory=lambda: ["default"])
    permissions: set[str] = field(default_factory=lambda: set(FLAGS))
    places: frozenset[str] = frozenset(PLACES)
    hosts: frozenset[str] = frozenset(HOSTS)
    agents: frozenset[str] = frozenset((*AGENTS, "any other"))
    providers: frozenset[str] = frozenset((*PROVIDERS, "any other"))
    numbers: dict[str, int | None] = field(default_factory=lambda: dict(ROOT))
    limited: list[str] = field(default_factory=list[str])
    paused: str | None = None
    confined: bool = False


@functools.cache
def admits_place(entry: str, place: str) -> bool:
    wanted, there = entry.split("/"), place.split("/")
    return there[: len(wanted)] == wanted


@functools.cache
def admits_host(pattern: str, host: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*") else host == pattern


def places(entries: list[str] | None) -> frozenset[str]:
    return frozenset(p for p in PLACES if entries is None or any(admits_place(e, p) for e in entries))


def hosts(patterns: list[str] | None) -> frozenset[str]:
    return frozenset(h for h in HOSTS if patterns is None or any(admits_host(p, h) for p in patterns))


def names(listed: list[str] | None, known: tuple[str, ...]) -> frozenset[str]:
    return frozenset((*known, "any other") if listed is None else listed)


def smaller(*numbers: int | None) -> int | None:
    return min((n for n in numbers if n is not None), default=None)


def expected(nodes: dict[str, Node]) -> dict[str, Holds]:
    """The intersection along each path, worked out from the rows alone."""
    found = {"default": Holds()}

    def work_out(name: str) -> Holds:
        if name not in found:
            node = nodes[name]
            up = work_out(node.parent)
            found[name] = Holds(
                path=[*up.path, name],
                permissions={flag for flag in up.permissions if node.may[flag] is not False},
                places=up.places & places(node.lists["allowed_paths"]),
                hosts=up.hosts & hosts(node.lists["network_allow"]),
                agents=up.agents & names(node.lists["allowed_agents"], AGENTS),
                providers=up.providers & names(node.lists["allowed_providers"], PROVIDERS),
                numbers={n: smaller(up.numbers[n], node.numbers[n]) for n in NUMBERS},
                limited=up.limited + ([name] if node.numbers["max_concurrency"] else []),
                paused=up.paused or (name if node.paused else None),
                confined=up.confined
                or any(node.may[flag] is False for flag in FLAGS[:4])
                or node.lists["allowed_paths"] is not None
                or node.lists["network_allow"] is not None,
            )
        return found[name]

    for name in nodes:
        work_out(name)
    return found


def as_told(row: DictRow) -> Holds:
    return Holds(
        path=row["path"],
        permissions=set(row["permissions"]),
        places=places(row["allowed_paths"]),
        hosts=hosts(row["network_allow"]),
        agents=names(row["allowed_agents"], AGENTS),
        providers=names(row["allowed_providers"], PROVIDERS),
        numbers={n: row[n] for n in NUMBERS},
        limited=row["limited"] or [],
        paused=row["paused"],
        confined=row["confined"],
    )


def some(chance: random.Random, entries: tuple[str, ...]) -> list[str] | None:
    return None if chance.random() < 0.55 else chance.sample(entries, chance.randint(0, 4 if len(entries) > 4 else 3))


def node(chance: random.Random, name: str, parent: str) -> Node:
    return Node(
        name, parent,
        {flag: chance.choice((None, None, None, True, False)) for flag in FLAGS},
        {
            "allowed_paths": some(chance, PATHS), "network_allow": some(chance, PATTERNS),
            "allowed_agents": some(chance, AGENTS), "allowed_providers": some(chance, PROVIDERS),
        },
        {n: chance.choice((None, None, 1, 2, 7, 80)) for n in NUMBERS},
        chance.random() < 0.1, chance.choice((1, 1, 5)),
    )  # fmt: skip


def trees(chance: random.Random, count: int) -> dict[str, Node]:
    """So many trees of 1 to 8 scopes below default."""
    found: dict[str, Node] = {}
    for tree in range(count):
        own = ["default"]
        for n in range(chance.randint(1, 8)):
            new = node(chance, f"t{tree}/{n}", chance.choice(own[-3:] if n else own))
            found[new.name] = new
            own = [*own, new.name] if n else [new.name]
    return found


def columns(of: Node) -> dict[str, Any]:
    may = {f"may_{flag}": said for flag, said in of.may.items()}
    paused = "2027-01-01" if of.paused else None
    return {
        "name": of.name,
        "parent": of.parent,
        "weight": of.weight,
        "paused_at": paused,
        **may,
        **of.lists,
        **of.numbers,
    }


def write(db: Connection[DictRow], new: dict[str, Node]) -> None:
    """Insert them all in one statement, in no particular order."""
    described = [columns(of) for of in new.values()]
    random.Random(len(described)).shuffle(described)
    listed = ", ".join(described[0])
    db.execute(
        f"insert into scopes ({listed}) select {listed} from jsonb_populate_recordset(null::scopes, %s)".encode(),
        [Jsonb(described)],
    )


def check(db: Connection[DictRow], nodes: dict[str, Node]) -> dict[str, DictRow]:
    """All that is told is what the oracle says, in its shortest form, and never more than the parent has."""
    told = {row["name"]: row for row in rows(db, "select * from effective_scopes")}
    holds = expected(nodes)
    assert set(told) == set(holds)
    for name, of in nodes.items():
        row = told[name]
        mine, up = as_told(row), as_told(told[of.parent])
        assert mine == holds[name], name
        assert mine.permissions <= up.permissions, name
        assert mine.places <= up.places, name
        assert mine.hosts <= up.hosts, name
        assert mine.agents <= up.agents, name
        assert mine.providers <= up.providers, name
        for n in NUMBERS:
            assert smaller(mine.numbers[n], up.numbers[n]) == mine.numbers[n], name
        assert row["permissions"] == [flag for flag in FLAGS if flag in row["permissions"]]
        assert row["weight"] == of.weight
        for listed in ("allowed_paths", "network_allow"):
            assert row[listed] is None or row[listed] == sorted(set(row[listed])), name
        shortest: list[str] = row["allowed_paths"] or []
        assert not any(a != b and admits_place(a, b) for a in shortest for b in shortest), name
    return told


def trees_hold(db: Connection[DictRow], batches: int, seed: int) -> None:
    for batch in range(batches):
        chance = random.Random(seed * 1000 + batch)
        nodes = trees(chance, 100)
        write(db, nodes)
        check(db, nodes)
        db.execute("delete from scopes where name <> 'default'")


def test_hundreds_of_trees_are_what_the_oracle_says(db: Connection[DictRow]) -> None:
    trees_hold(db, 4, seed=1)


@pytest.mark.slow
def test_ten_thousand_trees_are_what_the_oracle_says(db: Connection[DictRow]) -> None:
    trees_hold(db, 100, seed=2)


def edited(chance: random.Random, nodes: dict[str, Node]) -> tuple[str, Node | None]:
    """A random edit: the scope, and what becomes of it; None: it is deleted."""
    name = chance.choice(list(nodes))
    old = nodes[name]
    kind = chance.choice(("flag", "list", "number", "pause", "move", "delete"))
    if kind == "flag":
        return name, replace(old, may={**old.may, chance.choice(FLAGS): chance.choice((None, True, False))})
    if kind == "list":
        listed, entries = chance.choice(
            (
                ("allowed_paths", PATHS),
                ("network_allow", PATTERNS),
                ("allowed_agents", AGENTS),
                ("allowed_providers", PROVIDERS),
            )
        )
        return name, replace(old, lists={**old.lists, listed: some(chance, entries)})
    if kind == "number":
        return name, replace(old, numbers={**old.numbers, chance.choice(NUMBERS): chance.choice((None, 1, 3))})
    if kind == "pause":
        return name, replace(old, paused=not old.paused)
    if kind == "move":
        above = [
            other for other in (*nodes, "default") if other == "default" or name not in expected(nodes)[other].path
        ]
        return name, replace(old, parent=chance.choice(above))
    return name, None if all(of.parent != name for of in nodes.values()) else replace(old, weight=chance.randint(1, 9))


@pytest.mark.parametrize("seed", range(6))
def test_after_any_edits_in_any_order_only_the_final_rows_count(db: Connection[DictRow], seed: int) -> None:
    chance = random.Random(seed)
    nodes = trees(chance, 4)
    write(db, nodes)
    told = check(db, nodes)
    for _ in range(40):
        name, new = edited(chance, nodes)
        if new is None:
            db.execute("delete from scopes where name = %s", [name])
            del nodes[name]
        else:
            assigned = {key: said for key, said in columns(new).items() if key != "name"}
            db.execute(
                f"update scopes set ({', '.join(assigned)}) = (select {', '.join(assigned)} from jsonb_populate_record(null::scopes, %s)) where name = %s".encode(),
                [Jsonb(assigned), name],
            )
            nodes[name] = new
        before, told = told, check(db, nodes)
        for scope in nodes:
            was, now = as_told(before[scope]), as_told(told[scope])
            fewer = not (was.permissions <= now.permissions and was.places <= now.places and was.hosts <= now.hosts)
            assert (told[scope]["narrowed_at"] > before[scope]["narrowed_at"]) == fewer, scope
            told_same = {k: v for k, v in told[scope].items() if k not in ("version", "narrowed_at")} == {
                k: v for k, v in before[scope].items() if k not in ("version", "narrowed_at")
            }
            assert (told[scope]["version"] == before[scope]["version"]) == told_same, scope


@pytest.mark.timed
def test_what_holds_twenty_levels_down_is_told_within_a_millisecond(db: Connection[DictRow]) -> None:
    parent = "default"
    for level in range(1, 21):
        db.execute(
            "insert into scopes (name, parent, may_network, allowed_paths) values (%s, %s, %s, %s)",
            [f"level{level}", parent, level < 15, ["/p" + "/x" * level]],
        )
        parent = f"level{level}"
    times: list[float] = []
    row: DictRow = {}
    for _ in range(300):
        began = time.perf_counter()
        (row,) = rows(db, "select * from effective_scope('level20')")
        times.append(time.perf_counter() - began)
    assert len(row["path"]) == 21
    assert (row["allowed_paths"], "network" in row["permissions"]) == (["/p" + "/x" * 20], False)
    assert statistics.median(times) < 0.001


@pytest.mark.parametrize("first", ["narrowing", "child"])
def test_a_child_added_while_its_parent_is_narrowed_never_ends_wider(yard: Yard, first: str) -> None:
    db, one, two = yard.connect(), yard.connect(), yard.connect()
    db.execute("insert into scopes (name, parent) values ('a', 'default')")
    statements = {
        "narrowing": "update scopes set may_network = false, allowed_paths = '{/p}', max_concurrency = 2 where name = 'default'",
        "child": "insert into scopes (name, parent, may_network, allowed_paths) values ('a/b', 'a', true, '{/p/src,/q}')",
    }
    one.execute("begin")
    one.execute(statements.pop(first).encode())
    following = in_background(lambda: two.execute(statements.popitem()[1].encode()))
    until(lambda: waits_for_a_lock(db, two))
    one.execute("commit")
    following.join(10)
    (row,) = rows(
        db, "select permissions, allowed_paths, max_concurrency, limited from effective_scopes where name = 'a/b'"
    )
    assert row == {
        "permissions": ["read", "write", "execute", "create_child"], "allowed_paths": ["/p/src"], "max_concurrency": 2, "limited": ["default"],
    }  # fmt: skip


def test_two_scopes_moved_below_each_other_at_once_make_no_circle(yard: Yard) -> None:
    db, one, two = yard.connect(), yard.connect(), yard.connect()
    db.execute("insert into scopes (name, parent) values ('a', 'default'), ('b', 'default')")
    one.execute("begin")
    one.execute("update scopes set parent = 'b' where name = 'a'")
    refused: list[str | None] = []

    def follow() -> None:
        error = refusal(two, "update scopes set parent = 'a' where name = 'b'")
        refused.append(error.sqlstate if error else None)

    following = in_background(follow)
    until(lambda: waits_for_a_lock(db, two))
    one.execute("commit")
    following.join(10)
    assert refused == ["TY003"]
    assert column(db, "select array_to_string(path, '>') from effective_scopes order by 1") == [
        "default",
        "default>b",
        "default>b>a",
    ]


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
@pytest.mark.parametrize(
    "statement",
    [
        "insert into scopes (name, parent) values ('a', 'default')",
        "update scopes set may_network = false",
        "select pause_scope('default')",
    ],
)
def test_scopes_are_edited_in_read_committed_transactions_only(
    db: Connection[DictRow], isolation: str, statement: str
) -> None:
    db.execute(f"begin isolation level {isolation}".encode())
    error = refusal(db, statement)
    db.execute("rollback")
    assert error is not None
    assert error.sqlstate == "TY010"
    assert value(db, "select count(*) from scopes") == 1


def test_a_circle_through_new_scopes_is_refused(db: Connection[DictRow]) -> None:
    for statement in (
        "insert into scopes (name, parent) values ('a', 'b'), ('b', 'a')",
        "insert into scopes (name, parent) values ('a', 'b'), ('b', 'c'), ('c', 'b')",
    ):
        error = refusal(db, statement)
        assert error is not None
        assert error.sqlstate == "TY003"
    with pytest.raises(psycopg.errors.CheckViolation):
        db.execute("insert into scopes (name, parent) values ('a', 'a')")
    assert value(db, "select count(*) from effective_scopes") == 1
