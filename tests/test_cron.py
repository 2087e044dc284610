"""When cron lines come round: the same list as croniter's, in time zones whose clocks jump and go back."""

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, column, value
from .yardwork import refusal

# A zone, and an evening (UTC) before its clocks change: by an hour, by half an hour, at midnight, in both directions.
CHANGES = [
    ("Europe/Berlin", datetime(2026, 3, 28, 12, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 24, 12, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 3, 7, 22, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 10, 31, 22, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 6, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 6, tzinfo=UTC)),
    ("America/Santiago", datetime(2026, 4, 4, 18, tzinfo=UTC)),
    ("America/Santiago", datetime(2026, 9, 5, 18, tzinfo=UTC)),
    ("Asia/Beirut", datetime(2026, 3, 28, 12, tzinfo=UTC)),
    ("Asia/Beirut", datetime(2026, 10, 24, 12, tzinfo=UTC)),
    ("Asia/Kolkata", datetime(2026, 12, 31, 12, tzinfo=UTC)),
    ("UTC", datetime(2028, 2, 28, 12, tzinfo=UTC)),
]
LINES = [
    "* * * * *",
    "*/15 * * * *",
    "45 * * * *",
    "30 2 * * *",
    "0 0 * * *",
    "30 0 * * *",
    "59 23 * * *",
    "15,45 1-2 * * *",
    "*/20 2 * * *",
    "10 2,3 * * *",
    "0 */2 * * *",
    "0 22-4 * * *",
    "5/15 0-3 * * *",
    "0 9 * * mon-fri",
    "0 12 * * 7",
    "0 12 * * 5-7",
    "0 12 13 * 5",
    "0 12 */5 * 5",
    "0 0 31 * *",
    "0 0 29 2 *",
    "0 0 1 jan,jul *",
    "30 2 28-31 3,10 0",
    "@hourly",
    "@daily",
    "@weekly",
    "@monthly",
    "@yearly",
]


@pytest.fixture
def sql(yard: Yard) -> Connection[DictRow]:
    return yard.connect("viewer")


def ours(sql: Connection[DictRow], line: str, zone: str, after: datetime, count: int) -> list[datetime]:
    found = column(sql, "select next_fires(%s, %s, %s, %s)", line, zone, after, count)
    return [at.astimezone(UTC) for at in found]


def theirs(line: str, zone: str, after: datetime, count: int) -> list[datetime]:
    walk = croniter(line, after.astimezone(ZoneInfo(zone)))
    return [walk.get_next(datetime).astimezone(UTC) for _ in range(count)]


@pytest.mark.parametrize(("zone", "after"), CHANGES, ids=lambda told: told if isinstance(told, str) else f"{told:%b}")
def test_every_line_comes_when_croniter_says(sql: Connection[DictRow], zone: str, after: datetime) -> None:
    for line in LINES:
        count = 1500 if line == "* * * * *" and zone == "Europe/Berlin" else 10
        assert ours(sql, line, zone, after, count) == theirs(line, zone, after, count), line


def any_field(chance: random.Random, low: int, high: int) -> str:
    def number() -> int:
        return chance.randint(low, high)

    kind = chance.randrange(6)
    if kind < 2:
        return "*"
    if kind == 2:
        return f"*/{chance.randint(2, max(2, high // 2))}"  # */1 is * for us, as it is for cron
    if kind == 3:
        begin = chance.randint(low, high - 1)  # croniter takes 5-5 for everything
        return f"{begin}-{chance.randint(begin + 1, high)}/{chance.randint(2, 5)}"
    return ",".join(str(number()) for _ in range(chance.randint(1, 4)))


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 40))])
def test_lines_at_random_come_when_croniter_says(sql: Connection[DictRow], seed: int) -> None:
    chance = random.Random(seed)
    compared = 0
    for _ in range(60):
        ranges = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]
        line = " ".join(any_field(chance, low, high) for low, high in ranges)
        zone, after = chance.choice(CHANGES)
        after += timedelta(minutes=chance.randrange(3000))
        try:
            expected = theirs(line, zone, after, 12)
        except ValueError:
            continue  # a day that never comes
        assert ours(sql, line, zone, after, 12) == expected, (line, zone, after)
        compared += 1
    assert compared > 40


@pytest.mark.parametrize(
    "line",
    [
        "",
        "x",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * 32 * *",
        "* * * 13 *",
        "* * * * 8",
        "*/0 * * * *",
        "0 0 30 2 *",
        "0 0 31 4,6 *",
        "1, * * * *",
        "-1 * * * *",
        "1-2-3 * * * *",
        "* * L * *",
        "* * * * 5#2",
        "@reboot",
        "* * * foo *",
    ],
)
def test_what_is_no_cron_line_is_refused_with_a_sentence(sql: Connection[DictRow], line: str) -> None:
    error = refusal(sql, "select next_fires(%s, 'UTC')", line)
    assert error is not None
    assert (error.sqlstate, bool(error.diag.message_hint)) == ("TY001", True)


def test_a_time_zone_is_told_by_its_name_in_any_case(sql: Connection[DictRow]) -> None:
    assert ours(sql, "0 9 * * *", "europe/berlin", datetime(2026, 7, 1, tzinfo=UTC), 1) == [
        datetime(2026, 7, 1, 7, tzinfo=UTC)
    ]
    error = refusal(sql, "select next_fires('0 9 * * *', 'Mars/Olympus')")
    assert error is not None and error.sqlstate == "TY001"
    sql.execute("set timezone = 'Asia/Tokyo'")
    assert value(sql, "select next_fires('0 9 * * *', null, '2026-07-01', 1)") == datetime(2026, 7, 1, 0, tzinfo=UTC)


def test_times_are_told_after_the_instant_and_not_at_it(sql: Connection[DictRow]) -> None:
    at = datetime(2026, 7, 1, 9, tzinfo=UTC)
    assert ours(sql, "0 9 * * *", "UTC", at, 1) == [at + timedelta(days=1)]
    assert ours(sql, "0 9 * * *", "UTC", at - timedelta(microseconds=1), 1) == [at]
