"""What a scope's tasks may do: its own flags and those of all above it, after any edits."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, rows, value
from .yardwork import claim, insert, refusal, register

FLAGS = ("read", "write", "execute", "network", "create_child")
NAMES = ("default", "a", "b", "c", "d")
Tree = dict[str, tuple[str | None, dict[str, bool | None]]]  # by scope: its parent, and its own flags


def expected(tree: Tree, scope: str) -> list[str]:
    """What the tree says: a flag holds unless it is false somewhere on the way to the root."""
    path = [scope]
    while (parent := tree[path[-1]][0]) is not None:
        path.append(parent)
    return [flag for flag in FLAGS if all(tree[name][1].get(flag) is not False for name in path)]


def below(tree: Tree, scope: str) -> Iterator[str]:
    """The scope and all under it."""
    yield scope
    for name, (parent, _) in tree.items():
        if parent == scope:
            yield from below(tree, name)


def test_permissions_are_what_the_tree_says_after_any_edits(db: Connection[DictRow]) -> None:
    own = st.dictionaries(st.sampled_from(FLAGS), st.sampled_from([True, False, None]), max_size=3)
    edits = st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "flags", "move", "delete"]),
            st.sampled_from(NAMES),
            st.sampled_from(NAMES),
            own,
        ),
        min_size=3,
        max_size=15,
    )

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(edits)
    def check(edits: list[tuple[str, str, str, dict[str, bool | None]]]) -> None:
        db.execute("delete from scopes where name <> 'default'")
        db.execute("update scopes set " + ", ".join(f"may_{flag} = true" for flag in FLAGS))  # type: ignore[arg-type]
        tree: Tree = {"default": (None, {})}
        for kind, scope, other, flags in edits:
            if kind == "add" and scope not in tree and other in tree:
                names = "".join(f", may_{flag}" for flag in flags)
                db.execute(
                    f"insert into scopes (name, parent{names}) values (%s, %s{', %s' * len(flags)})".encode(),
                    [scope, other, *flags.values()],
                )
                tree[scope] = (other, dict(flags))
            elif kind == "flags" and scope in tree and flags:
                assigned = ", ".join(f"may_{flag} = %s" for flag in flags)
                db.execute(f"update scopes set {assigned} where name = %s".encode(), [*flags.values(), scope])
                tree[scope][1].update(flags)
            elif (
                kind == "move" and scope in tree and scope != "default" and other in set(tree) - set(below(tree, scope))
            ):
                db.execute("update scopes set parent = %s where name = %s", [other, scope])
                tree[scope] = (other, tree[scope][1])
            elif kind == "delete" and scope in tree and scope != "default" and list(below(tree, scope)) == [scope]:
                db.execute("delete from scopes where name = %s", [scope])
                del tree[scope]
            assert {row["name"]: row["permissions"] for row in rows(db, "select * from effective_scopes")} == {
                name: expected(tree, name) for name in tree
            }, (kind, scope)

    check()


def test_nobody_writes_by_hand_what_holds_in_a_scope(yard: Yard) -> None:
    admin = yard.connect("admin")
    for statement in (
        "update effective_scopes set permissions = '{read,network}'",
        "insert into effective_scopes select * from effective_scopes",
        "delete from effective_scopes",
    ):
        error = refusal(admin, statement)
        assert error is not None
        assert error.sqlstate == "42501", statement


def test_many_scopes_edited_in_one_statement_are_all_right(db: Connection[DictRow]) -> None:
    db.execute(
        "insert into scopes (name, parent, may_network) values ('a', 'default', null), ('b', 'a', true), ('c', 'b', null), ('d', 'default', false)"
    )
    db.execute("update scopes set parent = 'd', may_write = false where name in ('a')")
    db.execute("update scopes set may_read = (name <> 'b')")
    assert {row["name"]: row["permissions"] for row in rows(db, "select * from effective_scopes")} == {
        "default": list(FLAGS),
        "a": ["read", "execute", "create_child"],
        "b": ["execute", "create_child"],
        "c": ["execute", "create_child"],
        "d": ["read", "write", "execute", "create_child"],
    }


def test_a_claim_hands_out_what_the_scope_may_do_now(db: Connection[DictRow]) -> None:
    db.execute("insert into scopes (name, parent, may_execute) values ('a', 'default', false)")
    runner = register(db)
    for _ in range(2):
        insert(db, scope="a")
    assert claim(db, runner)[0]["permissions"] == ["read", "write", "network", "create_child"]
    db.execute("update scopes set may_network = false where name = 'default'")
    assert claim(db, runner)[0]["permissions"] == ["read", "write", "create_child"]


@pytest.mark.parametrize("length", [2, 3])
def test_a_circle_of_scopes_is_refused(db: Connection[DictRow], length: int) -> None:
    """It would hang from no root: nothing narrowed above it would reach it."""
    db.execute("insert into scopes (name, parent) values ('s1', 'default'), ('s2', 's1'), ('s3', 's2')")
    error = refusal(db, "update scopes set parent = %s where name = 's1'", f"s{length}")
    assert error is not None
    assert error.sqlstate == "TY003"
    assert value(db, "select parent from scopes where name = 's1'") == "default"
