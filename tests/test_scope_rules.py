"""What a scope's rules mean for tasks that are put in, for those that run when it is narrowed, and for which hosts get them."""

from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, column, rows, value
from .yardwork import claim, end, explained, insert, refusal, register


@pytest.fixture
def home(db: Connection[DictRow]) -> Connection[DictRow]:
    db.execute(
        "insert into scopes (name, parent) values ('home', 'default'), ('home/kid', 'home'), ('zebra', 'default')"
    )
    return db


def set_scope(db: Connection[DictRow], scope: str, **changes: Any) -> None:
    assigned = ", ".join(f"{name} = %s" for name in changes)
    db.execute(f"update scopes set {assigned} where name = %s".encode(), [*changes.values(), scope])


def refused(db: Connection[DictRow], code: str, **columns: Any) -> str:
    """The sentence by which a task is refused."""
    columns = {"prompt": "x", "agent": "shell", "scope": "home/kid", **columns}
    marks = ", ".join(["%s"] * len(columns))
    error = refusal(db, f"insert into tasks ({', '.join(columns)}) values ({marks})", *columns.values())
    assert error is not None, columns
    assert error.sqlstate == code
    assert error.diag.message_hint
    return error.diag.message_primary or ""


def test_agents_and_providers_that_are_not_allowed_are_refused_at_the_door(home: Connection[DictRow]) -> None:
    set_scope(home, "home", allowed_agents=["shell", "codex"], allowed_providers=["command"])
    set_scope(home, "home/kid", allowed_agents=["shell", "claude"])
    assert refused(home, "TY006", agent="claude") == "Scope home/kid does not allow agent claude."
    assert refused(home, "TY006", agent="codex") == "Scope home/kid does not allow agent codex."
    assert refused(home, "TY006", provider="codex") == "Scope home/kid does not allow provider codex."
    insert(home, scope="home/kid", provider="command")
    task = insert(home, scope="home/kid")
    for change in ("agent = 'claude'", "provider = 'codex'"):
        error = refusal(home, f"update tasks set {change} where id = {task}")
        assert error is not None
        assert error.sqlstate == "TY006"
    set_scope(home, "home/kid", allowed_agents=[])
    assert refused(home, "TY006") == "Scope home/kid does not allow agent shell."


@pytest.mark.parametrize(
    ("allowed", "workspace", "fine"),
    [
        (None, "/anywhere", True),
        (None, "/any/../where", False),
        (["/srv"], "/srv", True),
        (["/srv"], "/srv/", True),
        (["/srv"], "/srv/a/b", True),
        (["/srv"], "/srvx", False),
        (["/srv"], "/srv/../etc", False),
        (["/srv"], "/srv/./a", False),
        (["/srv/a", "/srv/b"], "/srv", False),
        (["/srv"], "srv", False),
        ([], "/srv", False),
    ],
)  # fmt: skip
def test_a_workspace_lies_in_one_of_the_paths(
    home: Connection[DictRow], allowed: list[str] | None, workspace: str, fine: bool
) -> None:
    set_scope(home, "home", allowed_paths=allowed)
    if fine:
        insert(home, scope="home/kid", workspace=workspace)
    else:
        assert (
            refused(home, "TY006", workspace=workspace)
            == f"The workspace {workspace} is not among the paths of scope home/kid."
        )
    insert(home, scope="home/kid")


def test_a_scope_that_may_not_read_has_no_workspace(home: Connection[DictRow]) -> None:
    set_scope(home, "home", may_read=False)
    assert (
        refused(home, "TY006", workspace="/srv")
        == "Tasks of scope home/kid may not read files, so they have no workspace."
    )


def test_children_are_allowed_by_the_scope_of_the_parent_and_lie_below_it(home: Connection[DictRow]) -> None:
    parent = insert(home, scope="home")
    for scope in ("home", "home/kid"):
        insert(home, scope=scope, parent_id=parent)
    for scope in ("zebra", "default"):
        assert (
            refused(home, "TY006", scope=scope, parent_id=parent)
            == f"Scope {scope} does not lie below home, the scope of the parent task."
        )
    set_scope(home, "home", may_create_child=False)
    assert refused(home, "TY006", parent_id=parent) == "Tasks of scope home may not have children."


def test_how_deep_and_how_many(home: Connection[DictRow]) -> None:
    set_scope(home, "home", max_depth=2, max_children=3)
    above = [insert(home, scope="home")]
    for _ in range(2):
        above.append(insert(home, scope="home", parent_id=above[-1]))
    assert refused(home, "TY006", parent_id=above[-1]) == "Tasks of scope home/kid may lie 2 deep at most."
    for _ in range(2):
        insert(home, scope="home/kid", parent_id=above[0])
    assert (
        refused(home, "TY006", parent_id=above[0])
        == f"Task {above[0]} has 3 children already, as many as scope home allows."
    )


def test_two_children_at_once_do_not_both_take_the_last_place(yard: Yard, home: Connection[DictRow]) -> None:
    set_scope(home, "home", max_children=1)
    parent = insert(home, scope="home")
    two = yard.connect()
    two.execute("set lock_timeout = '200ms'")
    home.execute("begin")
    insert(home, scope="home", parent_id=parent)
    error = refusal(two, f"insert into tasks (prompt, agent, scope, parent_id) values ('x', 'shell', 'home', {parent})")
    assert error is not None
    assert error.sqlstate == "55P03", "it waits for the first"
    home.execute("commit")
    assert "has 1 children already" in refused(two, "TY006", scope="home", parent_id=parent)


def test_a_child_that_is_moved_still_does_no_more_than_its_parent(home: Connection[DictRow]) -> None:
    set_scope(home, "home/kid", may_network=False)
    parent = insert(home, scope="home/kid")
    child = insert(home, scope="home/kid", parent_id=parent)
    error = refusal(home, f"update tasks set scope = 'home' where id = {child}")
    assert error is not None
    assert error.sqlstate == "TY006"


DIRECTIVES = "select attempt_id, directive, detail from heartbeat(%s, %s) where attempt_id is not null order by 1"


@pytest.mark.parametrize(
    ("changes", "released"),
    [
        ({"may_network": False}, ["home", "home/kid"]),
        ({"allowed_paths": ["/srv"]}, ["home", "home/kid"]),
        ({"network_allow": ["example.com"]}, ["home", "home/kid"]),
        ({"allowed_agents": ["claude"]}, ["home", "home/kid"]),
        ({"allowed_providers": ["claude"]}, ["home", "home/kid"]),
        ({"allowed_agents": ["shell"]}, []),
        ({"weight": 5}, []),
        ({"max_concurrency": 1}, []),
        ({"paused_at": "2027-01-01"}, []),
        ({"may_network": True}, []),
    ],
)
def test_those_who_were_given_more_than_now_holds_are_released(
    home: Connection[DictRow], changes: dict[str, Any], released: list[str]
) -> None:
    runner = register(home, slots=9)
    for scope in ("home", "home/kid", "zebra"):
        insert(home, scope=scope)
    attempts = {row["scope"]: row["attempt_id"] for row in claim(home, runner, 3)}
    assert set(attempts) == {"home", "home/kid", "zebra"}
    set_scope(home, "home", **changes)
    assert rows(home, DIRECTIVES, runner, list(attempts.values())) == [
        {"attempt_id": attempt, "directive": "release", "detail": f"scope {scope} was narrowed"}
        for scope, attempt in sorted(attempts.items(), key=lambda item: item[1])
        if scope in released
    ]
    if released:
        for scope in released:
            home.execute("select release_task(%s, 'narrowed')", [attempts[scope]])
        set_scope(home, "home", allowed_agents=None, allowed_providers=None)
        again = claim(home, runner, 3)
        assert sorted(row["scope"] for row in again) == released
        assert rows(home, DIRECTIVES, runner, [row["attempt_id"] for row in again]) == []
        for row in again:
            assert ("network" in row["permissions"]) == (changes != {"may_network": False})
            assert row["allowed_paths"] == changes.get("allowed_paths")
            assert (row["network_allow"] or None) == changes.get("network_allow")


def test_what_is_widened_and_narrowed_again_is_narrowed_for_those_in_between(home: Connection[DictRow]) -> None:
    runner = register(home)
    set_scope(home, "home", may_network=False)
    insert(home, scope="home")
    insert(home, scope="home")
    before = claim(home, runner)[0]["attempt_id"]
    set_scope(home, "home", may_network=None)
    between = claim(home, runner)[0]["attempt_id"]
    assert rows(home, DIRECTIVES, runner, [before, between]) == []
    set_scope(home, "home", may_network=False)
    found = rows(home, DIRECTIVES, runner, [before, between])
    assert {"attempt_id": between, "directive": "release", "detail": "scope home was narrowed"} in found


def test_a_scope_that_is_moved_below_a_narrower_one_is_narrowed(home: Connection[DictRow]) -> None:
    runner = register(home)
    set_scope(home, "zebra", may_execute=False)
    insert(home, scope="home/kid")
    attempt = claim(home, runner)[0]["attempt_id"]
    set_scope(home, "home", parent="zebra")
    assert [row["directive"] for row in rows(home, DIRECTIVES, runner, [attempt])] == ["release"]


def sandboxed(db: Connection[DictRow], name: str, **sandbox: str) -> int:
    return value(db, "select register_runner(%s, 4, p_sandbox => %s)", name, Jsonb(sandbox))


def test_a_runner_whose_sandbox_cannot_be_set_up_gets_nothing(home: Connection[DictRow]) -> None:
    runner = sandboxed(home, "mill", level="strict", trouble="bwrap: not found")
    task = insert(home, scope="home")
    assert claim(home, runner) == []
    assert explained(home, task)[1:] == ["mill has no usable sandbox: bwrap: not found"]
    home.execute("select report_sandbox(%s, null)", [runner])
    (row,) = claim(home, runner)
    assert value(home, "select sandbox from attempts where id = %s", row["attempt_id"]) == "strict"
    home.execute("select report_sandbox(%s, 'broken again')", [runner])
    insert(home)
    assert claim(home, runner) == []


@pytest.mark.parametrize(("level", "many"), [("none", False), ("none", True), ("container", False)])
@pytest.mark.parametrize(
    "confinement",
    [{"may_write": False}, {"may_network": False}, {"allowed_paths": []}, {"network_allow": ["a.example.com"]}],
)
def test_a_runner_without_a_sandbox_gets_nothing_of_a_confined_scope(
    home: Connection[DictRow], confinement: dict[str, Any], level: str, many: bool
) -> None:
    bare = sandboxed(home, "bare", level=level)
    set_scope(home, "home", **confinement)
    confined, free = insert(home, scope="home/kid"), insert(home, scope="zebra")
    if many:
        for scope in ("home", "zebra"):
            insert(home, scope=scope, priority=5)
    found = claim(home, bare, 8)
    assert {row["scope"] for row in found} == {"zebra"}
    assert free in [row["task_id"] for row in found]
    assert explained(home, confined)[1:] == [
        "Scope home/kid is confined, and no runner has a sandbox that can do that."
    ]
    assert confined in [row["task_id"] for row in claim(home, sandboxed(home, "jail", level="strict"), 8)]
    assert set(column(home, "select sandbox from attempts")) == {level, "strict"}


def test_create_child_alone_needs_no_sandbox(home: Connection[DictRow]) -> None:
    set_scope(home, "home", may_create_child=False)
    task = insert(home, scope="home")
    assert [row["task_id"] for row in claim(home, sandboxed(home, "bare", level="none"))] == [task]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("p_protocol => 1", "TY009"), ("p_protocol => 3", "TY009"), ("p_protocol => 5", "TY009"),
        ("""p_sandbox => '{"level": "loose"}'""", "TY001"), ("p_sandbox => '{}'", "TY001"), ("p_sandbox => null", "TY001"),
        ("""p_sandbox => '{"trouble": "x"}'""", "TY001"), ("""p_sandbox => '"strict"'""", "TY001"),
    ],
)  # fmt: skip
def test_a_runner_says_how_it_confines(home: Connection[DictRow], arguments: str, code: str) -> None:
    error = refusal(home, f"select register_runner('r', {arguments})")
    assert error is not None
    assert error.sqlstate == code
    assert value(home, "select count(*) from runners") == 0


def test_a_scope_is_asked_what_it_allows(home: Connection[DictRow]) -> None:
    set_scope(
        home,
        "home",
        may_execute=False,
        allowed_paths=["/srv"],
        network_allow=["*.example.com"],
        allowed_agents=["shell"],
    )
    for what, thing, allowed in (
        ("read", "/srv/x", True), ("read", "/srvx", False), ("write", "/srv/../etc", False), ("read", None, True),
        ("network", "a.Example.com", True), ("network", "example.com", False), ("execute", None, False),
        ("agent", "shell", True), ("agent", "claude", False), ("provider", "claude", True), ("create_child", None, True),
    ):  # fmt: skip
        assert value(home, "select scope_allows('home/kid', %s, %s)", what, thing) is allowed, (what, thing)
    for call, code in (("'home', 'fly'", "TY001"), ("'home', null", "TY001"), ("'nowhere', 'read'", "TY002")):
        error = refusal(home, f"select scope_allows({call})")
        assert error is not None
        assert error.sqlstate == code


@pytest.mark.parametrize(
    "change",
    [
        "allowed_paths = '{srv}'", "allowed_paths = '{/}'", "allowed_paths = '{/a//b}'", "allowed_paths = '{/a/./b}'",
        "allowed_paths = array[E'/a\\nb']", "allowed_paths = '{null}'", "network_allow = '{http://a.com}'",
        "network_allow = '{127.0.0.1}'", "network_allow = '{*}'", "network_allow = '{a.*.com}'", "network_allow = '{localhost}'",
        "network_allow = '{::1}'", "network_allow = '{null}'", "allowed_agents = '{null}'", "allowed_providers = '{null}'",
    ],
)  # fmt: skip
def test_a_list_that_says_nothing_is_refused(home: Connection[DictRow], change: str) -> None:
    before = rows(home, "select * from scopes order by name")
    error = refusal(home, f"update scopes set {change} where name = 'home'")
    assert error is not None
    assert error.sqlstate == "TY001"
    assert rows(home, "select * from scopes order by name") == before


def test_lists_are_kept_tidy(home: Connection[DictRow]) -> None:
    set_scope(home, "home", allowed_paths=["/srv/", "/srv/a"], network_allow=["Example.COM.", "*.example.com"])
    (row,) = rows(home, "select allowed_paths, network_allow from effective_scope('home')")
    assert row == {"allowed_paths": ["/srv"], "network_allow": ["*.example.com", "example.com"]}


def test_an_attempt_keeps_the_scope_it_began_in_for_what_it_costs(home: Connection[DictRow]) -> None:
    home.execute(
        "insert into budgets (scope, measure, period, amount) values ('home', 'usd', 'day', 9), ('zebra', 'usd', 'day', 9)"
    )
    runner, task = register(home), insert(home, scope="home")
    end(home, claim(home, runner)[0]["attempt_id"], "failed", usage=Jsonb({"cost_usd": 2}))
    home.execute("update tasks set scope = 'zebra' where id = %s", [task])
    home.execute("select retry_task(%s)", [task])
    end(home, claim(home, runner)[0]["attempt_id"], usage=Jsonb({"cost_usd": 3}))
    assert rows(home, "select scope, used from _budgets_in_reach() order by 1") == [
        {"scope": "home", "used": 2},
        {"scope": "zebra", "used": 3},
    ]
