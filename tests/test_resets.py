"""What a tool says about the end of a limit is understood, whatever the zone, the year and the clocks do."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskyard.runner.adapters.resets import at_epoch, parse_reset

NOW = datetime(2026, 11, 22, 20, 34, 30, tzinfo=UTC)
ZONES = ["UTC", "Asia/Shanghai", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu"]

times = st.datetimes(datetime(2024, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))
zones = st.sampled_from(ZONES).map(ZoneInfo)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("1795400000", "2026-11-23T02:13:20"),
        ("1795400000.5", "2026-11-23T02:13:20.5"),
        ("90", "2026-11-22T20:36:00"),
        ("0", "2026-11-22T20:34:30"),
        ("Mon, 23 Nov 2026 02:13:20 GMT", "2026-11-23T02:13:20"),
        ("or try again at 8:35 PM.", "2026-11-22T20:35:00"),
        ("or try again at 8:30 PM.", "2026-11-23T20:30:00"),
        ("or try again at Mar 10th, 2027 3:39 AM.", "2027-03-10T03:39:00"),
        ("You've hit your session limit · resets 2pm (Asia/Shanghai)", "2026-11-23T06:00:00"),
        ("You've hit your 5-hour limit · resets 2:13am (UTC)", "2026-11-23T02:13:00"),
        ("You've hit your weekly limit · resets Nov 27, 5:20pm (UTC)", "2026-11-27T17:20:00"),
        ("resets Nov 27 at 5:20pm (America/New_York)", "2026-11-27T22:20:00"),
        ("resets 12am (UTC)", "2026-11-23T00:00:00"),
        ("resets 12:30pm (UTC)", "2026-11-23T12:30:00"),
        ("Please try again in 2.5s. Visit https://example.org/429", "2026-11-22T20:34:32.5"),
        ("Please try again in 20ms.", "2026-11-22T20:34:30.02"),
        ("Please try again in 6m0s.", "2026-11-22T20:40:30"),
        ("try again in 1h2m3.5s", "2026-11-22T21:36:33.5"),
        ("try again in 3 days 4 hours and 2 minutes", "2026-11-26T00:36:30"),
        ("Suggested retry after 7s.", "2026-11-22T20:34:37"),
    ],
)
def test_every_way_of_the_tools_to_tell_a_reset_is_understood(text: str, end: str) -> None:
    assert parse_reset(text, NOW) == datetime.fromisoformat(end).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "try again later",
        "resets 14pm (UTC)",
        "resets 0am (UTC)",
        "resets 2:75pm (UTC)",
        "resets 2pm (Mars/Olympus)",
        "resets 2pm (America)",
        "resets 2pm (../../etc/passwd)",
        "at Foo 10th, 2026 3:39 AM",
        "at Feb 30th, 2026 3:39 AM",
        "resets Feb 29, 3am (UTC)",
        "in 5 apples",
        "in 99999999999999999 days",
        "999999999999999",
        "Mon, 99 Nov 2026 02:13:20 GMT",
        "sleep for 30s",
        "٣٠",
    ],
)
def test_what_makes_no_sense_is_no_reset(text: str) -> None:
    assert parse_reset(text, NOW) is None


def test_a_date_without_a_year_is_the_nearest_one() -> None:
    eve = datetime(2026, 12, 30, 12, tzinfo=UTC)
    assert parse_reset("resets Jan 2, 5pm (UTC)", eve) == datetime(2027, 1, 2, 17, tzinfo=UTC)
    assert parse_reset("resets Dec 31, 5pm (UTC)", eve) == datetime(2026, 12, 31, 17, tzinfo=UTC)
    new_year = datetime(2027, 1, 1, 0, 1, tzinfo=UTC)
    assert parse_reset("resets Dec 31, 11:59pm (UTC)", new_year) == new_year  # past, not in a year from now


def test_a_time_that_just_passed_means_now() -> None:
    midnight = datetime(2026, 11, 23, 0, 0, 30, tzinfo=UTC)
    assert parse_reset("try again at 11:59 PM", midnight) == midnight
    assert parse_reset("try again at 11:58 PM", midnight) == datetime(2026, 11, 23, 23, 58, tzinfo=UTC)


def test_a_time_without_a_zone_is_that_of_the_process() -> None:
    assert parse_reset("try again at 9:13 PM", NOW, ZoneInfo("America/New_York")) == datetime(
        2026, 11, 23, 2, 13, tzinfo=UTC
    )


def test_a_time_that_the_clocks_skip_or_repeat_is_some_time() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    before_gap = datetime(2027, 3, 28, 0, 50, tzinfo=UTC)  # 1:50; at 2:00 it is 3:00
    assert parse_reset("try again at 2:30 AM", before_gap, berlin) in (
        datetime(2027, 3, 28, 0, 30, tzinfo=UTC) + timedelta(hours=1),
        datetime(2027, 3, 28, 1, 30, tzinfo=UTC),
    )
    second_half = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)  # 2:10 for the second time
    assert parse_reset("try again at 2:30 AM", second_half, berlin) == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


@given(now=times, ahead=st.timedeltas(timedelta(minutes=3), timedelta(hours=20)), zone=zones)
def test_a_clock_time_within_the_day_comes_back_to_the_minute(now: datetime, ahead: timedelta, zone: ZoneInfo) -> None:
    end = (now + ahead).replace(second=0, microsecond=0)
    local = end.astimezone(zone)
    found = parse_reset(f"resets {local:%I:%M%p} ({zone.key})".lower().replace(zone.key.lower(), zone.key), now)
    assert found is not None
    # Where the clocks are put back an hour is there twice, and the text cannot say which one is meant.
    assert found == end or (found < end and found.astimezone(zone).replace(tzinfo=None) == local.replace(tzinfo=None))
    assert found >= now


@given(now=times, ahead=st.timedeltas(timedelta(0), timedelta(days=28)), zone=zones, named=st.booleans())
def test_a_date_comes_back_to_the_minute(now: datetime, ahead: timedelta, zone: ZoneInfo, named: bool) -> None:
    end = (now + ahead).replace(second=0, microsecond=0)
    local = end.astimezone(zone)
    year = f", {local.year}" if named else ","
    found = parse_reset(f"try again at {local:%b} {local.day}th{year} {local:%I:%M %p}", now, zone)
    assert found is not None
    assert found in (end, now) or found.astimezone(zone).replace(tzinfo=None) == local.replace(tzinfo=None)


@given(now=times, seconds=st.integers(0, 10**8))
def test_seconds_come_back_exactly(now: datetime, seconds: int) -> None:
    end = now + timedelta(seconds=seconds)
    assert parse_reset(str(seconds), now) == end
    assert parse_reset(f"Please try again in {seconds}s.", now) == end
    whole = end.replace(microsecond=0)
    assert parse_reset(str(int(whole.timestamp())), now) == whole == at_epoch(int(whole.timestamp()))
    assert parse_reset(f"{whole:%a, %d %b %Y %H:%M:%S} GMT", now) == whole


@given(
    text=st.text(max_size=60) | st.from_regex(r"(resets|try again (at|in)) [\w ,:.()/]{0,40}"), now=times, zone=zones
)
def test_no_text_breaks_it(text: str, now: datetime, zone: ZoneInfo) -> None:
    found = parse_reset(text, now, zone)
    assert found is None or found.tzinfo is UTC


@given(text=st.from_regex(r"\Aresets ([1-9]|1[0-2])(:[0-5][0-9])?(am|pm)\Z"), now=times, zone=zones)
def test_a_clock_time_is_never_past_and_never_further_than_a_day(text: str, now: datetime, zone: ZoneInfo) -> None:
    found = parse_reset(text, now, zone)
    assert found is not None
    assert now <= found <= now + timedelta(hours=25)  # the longest day, when the clocks are put back
