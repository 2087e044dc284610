"""Tasks that come by themselves: at the right time, once, whoever ticks, whatever was missed, however long the last one takes."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from psycopg import Connection, sql
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

from .conftest import Yard, column, rows, value
from .yardwork import advance, claim, end, now, refusal, register, set_clock, status, stop_clock

NOON = datetime(2027, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def db(yard: Yard) -> Connection[DictRow]:
    """An administrator's connection, whose clock stands at noon."""
    made = yard.connect()
    made.execute("set timezone = 'UTC'")
    stop_clock(made)
    set_clock(made, NOON)
    return made


def add(db: Connection[DictRow], name: str = "nightly", prompt: str = "tidy up", **columns: Any) -> None:
    columns = {"name": name, "task": {"prompt": prompt, "agent": "shell"}} | columns
    told = {key: Jsonb(told) if isinstance(told, dict) else told for key, told in columns.items()}
    db.execute(
        sql.SQL("insert into schedules ({}) values ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, told)), sql.SQL(", ").join(map(sql.Placeholder, told))
        ),
        told,
    )


def tick(db: Connection[DictRow]) -> None:
    db.execute("select tick()")


def fired(db: Connection[DictRow]) -> list[str]:
    """The times of all tasks that schedules created, as their keys tell them."""
    return column(
        db, "select split_part(dedupe_key, ' at ', 2) from tasks where dedupe_key like 'schedule %%' order by id"
    )


def schedule(db: Connection[DictRow], name: str = "nightly") -> DictRow:
    (found,) = rows(db, "select * from schedules where name = %s", name)
    return found


def test_a_cron_line_creates_its_task_at_its_time_and_not_before(db: Connection[DictRow]) -> None:
    add(db, cron="30 14 * * *", timezone="Europe/Berlin")
    assert schedule(db)["next_at"] == NOON + timedelta(minutes=30)
    advance(db, minutes=29)
    tick(db)
    assert fired(db) == []
    advance(db, minutes=1)
    tick(db)
    tick(db)
    assert fired(db) == ["2027-06-01T12:30:00Z"]
    (task,) = rows(db, "select prompt, agent, scope, created_by from tasks")
    assert task == {"prompt": "tidy up", "agent": "shell", "scope": "default", "created_by": "schedule nightly"}
    found = schedule(db)
    assert (found["last_at"], found["next_at"]) == (NOON + timedelta(minutes=30), NOON + timedelta(days=1, minutes=30))


def test_once_and_never_again(db: Connection[DictRow]) -> None:
    add(db, at=NOON + timedelta(hours=1))
    for _ in range(3):
        advance(db, hours=1)
        tick(db)
    assert fired(db) == ["2027-06-01T13:00:00Z"]
    assert rows(db, "select schedule, next from timetable") == [{"schedule": "nightly", "next": "over"}]


def test_an_interval_counts_from_its_first_time(db: Connection[DictRow]) -> None:
    add(db, "plain", every=timedelta(minutes=90), overlap="allow")
    add(db, "first", every=timedelta(hours=5), at=NOON + timedelta(minutes=7), overlap="allow")
    for _ in range(24):
        advance(db, minutes=15)
        tick(db)
    assert sorted(fired(db)) == [
        f"2027-06-01T{time}:00Z" for time in ("12:07", "13:30", "15:00", "16:30", "17:07", "18:00")
    ]


def test_months_and_days_are_those_of_the_time_zone(db: Connection[DictRow]) -> None:
    db.execute(
        "insert into schedules (name, every, at, timezone, task, overlap) values"
        " ('monthly', '1 month', '2027-01-31 08:00 Europe/Berlin', 'Europe/Berlin', '{\"prompt\": \"x\", \"agent\": \"shell\"}', 'allow')"
    )
    nexts = list[datetime]()
    for day in ("2027-01-31 07:00", "2027-02-28 06:59", "2027-02-28 07:00", "2027-03-31 06:00"):
        nexts.append(value(db, "select _next_fire(s, %s) at time zone 'UTC' from schedules s", f"{day}+00"))
    assert [f"{at:%m-%d %H:%M}" for at in nexts] == ["02-28 07:00", "02-28 07:00", "03-31 06:00", "04-30 06:00"]


@pytest.mark.parametrize(
    ("missed", "expected"),
    [("once", ["16:00"]), ("all", ["13:00", "14:00", "15:00", "16:00"]), ("skip", [])],
)
def test_what_was_missed(db: Connection[DictRow], missed: str, expected: list[str]) -> None:
    add(db, cron="0 * * * *", missed=missed, overlap="allow")
    advance(db, hours=4, minutes=10)
    tick(db)
    tick(db)
    assert fired(db) == [f"2027-06-01T{time}:00Z" for time in expected]
    note = schedule(db)["last_note"]
    assert note == ("2027-06-01 16:00 was missed: nobody was there." if missed == "skip" else None)
    advance(db, minutes=50, seconds=5)  # a little late is not missed
    tick(db)
    assert fired(db)[-1] == "2027-06-01T17:00:00Z"


def test_years_that_were_missed_cost_no_time(db: Connection[DictRow]) -> None:
    for missed in ("once", "skip", "all"):
        add(db, missed, cron="* * * * *", missed=missed, overlap="allow")
    add(db, "yearly", cron="0 0 1 1 *", overlap="allow")
    add(db, "often", every=timedelta(minutes=1), overlap="allow")
    add(db, "daily", every=timedelta(days=1), overlap="allow")
    advance(db, days=365 * 3)
    db.execute("set statement_timeout = '5s'")
    tick(db)
    count = "select split_part(dedupe_key, ' ', 2) as name, count(*) as times, max(split_part(dedupe_key, ' at ', 2)) as last from tasks group by 1 order by 1"
    last = "2030-05-31T12:00:00Z"
    assert rows(db, count) == [
        {"name": "all", "times": 100, "last": "2027-06-01T13:40:00Z"},  # the others follow with the next ticks
        {"name": "daily", "times": 1, "last": last},
        {"name": "often", "times": 1, "last": last},
        {"name": "once", "times": 1, "last": last},
        {"name": "skip", "times": 1, "last": last},  # this very minute was not missed
        {"name": "yearly", "times": 1, "last": "2030-01-01T00:00:00Z"},
    ]
    tick(db)
    assert rows(db, count)[0]["times"] == 200


@pytest.mark.parametrize("overlap", ["skip", "replace", "allow"])
@pytest.mark.parametrize("running", [False, True])
def test_when_the_last_task_is_not_over(db: Connection[DictRow], overlap: str, running: bool) -> None:
    add(db, cron="0 * * * *", overlap=overlap)
    advance(db, hours=1)
    tick(db)
    (first,) = column(db, "select id from tasks")
    runner = register(db)
    attempt = claim(db, runner)[0]["attempt_id"] if running else None
    advance(db, hours=1)
    db.execute("select heartbeat(%s, %s)", [runner, [attempt] if attempt else []])
    tick(db)
    if overlap == "skip":
        assert fired(db) == ["2027-06-01T13:00:00Z"]
        assert schedule(db)["last_note"] == f"2027-06-01 14:00 was left out: task {first} was not over."
        assert value(db, "select last from timetable").startswith("! 2027")
    else:
        assert fired(db) == ["2027-06-01T13:00:00Z", "2027-06-01T14:00:00Z"]
    if overlap == "replace":
        assert (
            value(db, "select coalesce(cancel_reason, error) from tasks where id = %s", first)
            == "replaced by the next one of schedule nightly"
        )
    else:
        assert status(db, first) == ("running" if running else "queued")
    if attempt:
        end(db, attempt, "cancelled" if overlap == "replace" else "completed")
    else:
        db.execute("update tasks set status = 'cancelled' where id = %s and status = 'queued'", [first])
    advance(db, hours=1)
    tick(db)
    assert fired(db)[-1] == "2027-06-01T15:00:00Z"


def test_a_template_is_filled_with_what_the_schedule_knows(db: Connection[DictRow]) -> None:
    task = {"prompt": "{{greeting}}, it is {{date}} {{time}} ({{schedule}})", "agent": "shell", "priority": 3}
    db.execute("insert into templates (name, task) values ('report', %s)", [Jsonb(task)])
    add(
        db,
        cron="0 15 * * *",
        timezone="Asia/Tokyo",
        template="report",
        variables={"greeting": "{{date}}"},
        task={"priority": 7},
    )
    set_clock(db, datetime(2027, 6, 2, 6, tzinfo=UTC))
    tick(db)
    assert rows(db, "select prompt, priority from tasks") == [
        {"prompt": "{{date}}, it is 2027-06-02 15:00 (nightly)", "priority": 7}
    ]


def test_without_a_template_too(db: Connection[DictRow]) -> None:
    add(db, prompt="on {{date}} {{who}} and {{nobody}}", cron="0 15 * * *", variables={"who": "Ann"})
    advance(db, hours=3)
    tick(db)
    assert column(db, "select prompt from tasks") == ["on 2027-06-01 Ann and {{nobody}}"]


def test_one_that_fails_is_told_and_holds_up_no_other(db: Connection[DictRow]) -> None:
    db.execute('insert into templates (name, task) values (\'report\', \'{"prompt": "x", "agent": "shell"}\')')
    add(db, "bad", cron="0 * * * *", template="report", task={})
    add(db, "good", cron="0 * * * *")
    db.execute('update templates set task = \'{"prompt": "for {{whom}}", "agent": "shell"}\'')
    advance(db, hours=1)
    tick(db)
    assert column(db, "select created_by from tasks") == ["schedule good"]
    assert schedule(db, "bad")["last_note"] == "Template report wants a value for whom."
    db.execute("update schedules set variables = '{\"whom\": \"Ann\"}' where name = 'bad'")
    advance(db, hours=1)
    db.execute("update tasks set status = 'cancelled'")
    tick(db)
    assert column(db, "select prompt from tasks order by id desc limit 2") in (
        ["for Ann", "tidy up"],
        ["tidy up", "for Ann"],
    )
    assert schedule(db, "bad")["last_note"] is None


def test_disabled_and_enabled_again_it_begins_with_the_next_time(db: Connection[DictRow]) -> None:
    add(db, cron="0 * * * *", missed="all")
    db.execute("update schedules set enabled = false")
    advance(db, hours=5, minutes=1)
    tick(db)
    db.execute("update schedules set enabled = true")
    tick(db)
    assert fired(db) == []
    assert schedule(db)["next_at"] == NOON + timedelta(hours=6)


def test_out_of_turn_by_hand(db: Connection[DictRow]) -> None:
    add(db, cron="0 15 * * *")
    task = value(db, "select run_schedule('nightly')")
    assert rows(db, "select id, prompt, created_by from tasks") == [
        {"id": task, "prompt": "tidy up", "created_by": "yard"}
    ]
    assert schedule(db)["next_at"] == NOON + timedelta(hours=3)
    error = refusal(db, "select run_schedule('weekly')")
    assert error is not None and error.sqlstate == "TY002"


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({}, "needs a cron line, or an interval"),
        ({"cron": "0 * * * *", "every": timedelta(hours=1)}, "needs a cron line, or an interval"),
        ({"cron": "0 * * * *", "at": NOON}, "needs a cron line, or an interval"),
        ({"every": timedelta(seconds=59)}, "more often than once a minute"),
        ({"every": timedelta(hours=-1)}, "more often than once a minute"),
        ({"cron": "0 25 * * *"}, "is no hour of a cron line"),
        ({"cron": "0 * * * *", "timezone": "Mars/Olympus"}, "no time zone"),
        ({"at": "infinity"}, "at is an instant"),
        ({"cron": "0 * * * *", "task": {}}, "has no prompt"),
        ({"cron": "0 * * * *", "task": {"prompt": "x", "scope": "other"}}, "says itself when and where"),
        ({"cron": "0 * * * *", "task": {"prompt": "x", "wings": 2}}, "A task has no wings"),
        ({"cron": "0 * * * *", "scope": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(
    db: Connection[DictRow], columns: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(Exception, match=complaint) as refused:
        add(db, **columns)
    assert getattr(refused.value, "sqlstate", "")[:2] == "TY"


def test_a_submitter_schedules_in_its_own_scopes_and_sees_no_others(yard: Yard, db: Connection[DictRow]) -> None:
    db.execute("insert into scopes (name, parent) values ('ours', 'default'), ('theirs', 'default')")
    add(db, "secret", cron="0 * * * *", scope="theirs")
    db.execute('insert into templates (name, task) values (\'secret\', \'{"prompt": "x", "scope": "theirs"}\')')
    with Connection[DictRow].connect(
        yard.login("ann", "submitter", "ours"), autocommit=True, row_factory=dict_row
    ) as ann:
        add(ann, "mine", cron="0 * * * *")
        assert rows(ann, "select name, scope from schedules") == [{"name": "mine", "scope": "ours"}]
        for query in (
            "insert into schedules (name, cron, scope, task) values ('x', '0 * * * *', 'theirs', '{\"prompt\": \"x\"}')",
            "update schedules set scope = 'theirs'",
            "update schedules set template = 'secret'",
            "update schedules set template = 'nothing'",
            "select run_schedule('secret')",
        ):
            error = refusal(ann, query)
            assert error is not None and error.sqlstate == "TY002", query
        assert ann.execute("update schedules set enabled = false where name = 'secret'").rowcount == 0
        assert ann.execute("delete from schedules where name = 'secret'").rowcount == 0
        assert refusal(ann, "update schedules set created_by = 'yard'") is not None
        assert (
            refusal(ann, "insert into tasks (prompt, dedupe_key) values ('x', 'schedule mine at 2027-06-01T13:00:00Z')")
            is not None
        )
        task = value(ann, "select run_schedule('mine')")
        assert value(ann, "select prompt from tasks where id = %s", task) == "tidy up"


def test_who_lost_his_scope_lost_his_schedules_with_it(yard: Yard, db: Connection[DictRow]) -> None:
    db.execute("insert into scopes (name, parent) values ('ours', 'default')")
    dsn = yard.login("ann", "submitter", "ours")
    with Connection[DictRow].connect(dsn, autocommit=True, row_factory=dict_row) as ann:
        ann.execute("set timezone = 'UTC'")
        set_clock(ann, NOON)
        add(ann, cron="0 * * * *")
        login = value(ann, "select session_user::text")
    advance(db, hours=1)
    tick(db)
    assert len(fired(db)) == 1
    db.execute("update tasks set status = 'cancelled'")
    db.execute("delete from scope_grants where login = %s", [login])
    advance(db, hours=1)
    tick(db)
    assert len(fired(db)) == 1
    assert schedule(db)["last_note"] == f"{login} may not submit tasks in scope ours any more."
    db.execute("update schedules set enabled = true, missed = 'all'")  # an administrator takes it over
    advance(db, hours=1)
    tick(db)
    assert len(fired(db)) == 2


def test_a_day_on_which_the_clocks_change_with_five_who_tick(yard: Yard, db: Connection[DictRow]) -> None:
    """24 simulated hours: each time of croniter's list once, none besides, however many call tick() at once."""
    begins, zone = datetime(2027, 10, 30, 18, 0, 30, tzinfo=UTC), "Europe/Berlin"
    set_clock(db, begins)
    lines = {
        "minutes": "*/15 * * * *",
        "night": "30 2 * * *",
        "office": "0 9-17 * * sat,sun",
        "twos": "10 2,3 * * *",
        "hours": "0 */2 * * *",
    }
    for name, line in lines.items():
        add(db, name, cron=line, timezone=zone, overlap="allow")
    others = [yard.connect() for _ in range(5)]
    runners = [register(other, f"host{n}") for n, other in enumerate(others)]
    for minute in range(0, 24 * 60, 3):
        at = begins + timedelta(minutes=minute)
        for other in others:
            set_clock(other, at)
        together = [
            threading.Thread(target=other.execute, args=("select tick(%s)", [runner]))
            for other, runner in zip(others, runners, strict=True)
        ]
        for one in together:
            one.start()
        for one in together:
            one.join()
    ends = begins + timedelta(minutes=24 * 60 - 3)
    for name, line in lines.items():
        walk, expected = croniter(line, begins.astimezone(ZoneInfo(zone))), list[str]()
        while (at := walk.get_next(datetime).astimezone(UTC)) <= ends:
            expected.append(f"{at:%Y-%m-%dT%H:%M:%SZ}")
        found = column(
            db,
            "select split_part(dedupe_key, ' at ', 2) from tasks where created_by = %s order by 1",
            f"schedule {name}",
        )
        assert found == expected, name
        assert expected
    assert now(others[0]) == ends
