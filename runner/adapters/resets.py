"""When a limit ends, read from what a tool or a server says about it.

Understood: seconds since 1970; Retry-After, in seconds or as a date of HTTP (RFC 9110, section 10.2.3); durations such
as "in 2.5s", "in 6m0s" and "retry after 7s"; and the clock times that Codex ("try again at 8:35 PM", "at Mar 10th, 2026
3:39 AM") and Claude Code ("resets 2pm (Asia/Shanghai)", "resets Nov 27, 5:20pm (UTC)") print. Give it only what a tool
says itself: an agent's words may contain any of these.
"""

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from email.utils import parsedate_to_datetime
from zoneinfo import ZoneInfo

SKEW = timedelta(minutes=2)  # a time this much in the past means now: minutes are cut off, and clocks differ
FIRST_EPOCH = 1_000_000_000  # a bare number from here on is a point in time, below it a number of seconds

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}

_AMOUNT = r"\d+(?:\.\d+)?\s*(?:ms|s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:(?:ou)?rs?)?|d(?:ays?)?)(?![a-z])"
_JOINED = r"\d+(?:\.\d+)?(?:ms|[smhd])"  # 1h2m3.5s: no word ends between the amounts
_DURATION = re.compile(rf"\b(?:in|after)\s+((?:{_JOINED})*(?:{_AMOUNT})(?:[\s,]+(?:and\s+)?{_AMOUNT})*)", re.IGNORECASE)
_CLOCK = re.compile(
    r"\b(?:at|resets?)\s+(?:at\s+)?"
    r"(?:(?P<month>[a-z]{3})[a-z]*\.?\s+(?P<day>\d{1,2})(?:st|nd|rd|th)?,?\s+(?:(?P<year>\d{4}),?\s+)?(?:at\s+)?)?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s?(?P<half>[ap])\.?m\b\.?(?:\s*\((?P<zone>[^)]+)\))?",
    re.IGNORECASE,
)


def parse_reset(text: str, now: datetime, zone: tzinfo = UTC) -> datetime | None:
    """The time in UTC at which the limit that `text` speaks of ends; None where it says none, or none that makes sense.

    `zone` is that of the process that printed the text: it counts where the text names none.
    """
    try:
        return _number(text, now) or _http_date(text) or _clock(text, now, zone) or _duration(text, now)
    except (ValueError, OverflowError):
        return None


def after(seconds: float, now: datetime) -> datetime | None:
    """`now` plus a duration, in UTC; None where the calendar ends before."""
    try:
        return now.astimezone(UTC) + timedelta(seconds=seconds)
    except OverflowError:
        return None


def at_epoch(seconds: object) -> datetime | None:
    """A point in time given as seconds since 1970 in JSON; None for anything else."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _number(text: str, now: datetime) -> datetime | None:
    if not re.fullmatch(r"\d{1,15}(\.\d+)?", text.strip(), re.ASCII):
        return None
    seconds = float(text)
    return at_epoch(seconds) if seconds >= FIRST_EPOCH else after(seconds, now)


def _http_date(text: str) -> datetime | None:
    if not re.match(r"\s*[A-Z][a-z]+, \d", text):
        return None
    try:
        return parsedate_to_datetime(text.strip()).replace(tzinfo=UTC)  # always GMT, says RFC 9110
    except (TypeError, ValueError, IndexError):
        return None


def _duration(text: str, now: datetime) -> datetime | None:
    found = _DURATION.search(text)
    if not found:
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|[smhd])", found[1].lower())
    return after(sum(float(number) * UNITS[unit] for number, unit in parts), now)


def _clock(text: str, now: datetime, zone: tzinfo) -> datetime | None:
    found = _CLOCK.search(text)
    if not found:
        return None
    hour, minute = int(found["hour"]), int(found["minute"] or 0)
    if not 1 <= hour <= 12:
        return None
    clock = time(hour % 12 + (12 if found["half"].lower() == "p" else 0), minute)
    if found["zone"]:
        named = _zone(found["zone"])
        if named is None:
            return None
        zone = named
    if found["month"] is None:
        today = now.astimezone(zone).date()
        moments = _moments([today + timedelta(days=n) for n in (-1, 0, 1)], clock, zone)
        return next((max(moment, now.astimezone(UTC)) for moment in moments if moment >= now - SKEW), None)
    if found["month"].lower() not in MONTHS:
        return None
    month, day = MONTHS.index(found["month"].lower()) + 1, int(found["day"])
    if found["year"]:
        return next(iter(_moments([date(int(found["year"]), month, day)], clock, zone)), None)
    # Without a year the nearest one is meant: no window is longer than a month, so that a date of last week is past.
    near = _moments(_same_day(now.astimezone(zone).year, month, day), clock, zone)
    nearest = min(near, key=lambda moment: abs(moment - now), default=None)
    return nearest and max(nearest, now.astimezone(UTC))


def _same_day(year: int, month: int, day: int) -> Iterable[date]:
    """That day in the year, the one before and the one after; the 29th of February only where it exists."""
    for candidate in (year - 1, year, year + 1):
        try:
            yield date(candidate, month, day)
        except ValueError:
            continue


def _moments(days: Iterable[date], clock: time, zone: tzinfo) -> list[datetime]:
    """That time on these days, in UTC and in order; twice on a day when the clocks are put back."""
    return sorted(
        {datetime.combine(day, clock.replace(fold=fold), zone).astimezone(UTC) for day in days for fold in (0, 1)}
    )


def _zone(name: str) -> tzinfo | None:
    if name.strip().upper() in ("UTC", "GMT", "Z"):
        return UTC
    try:
        return ZoneInfo(name.strip())
    except (KeyError, ValueError, OSError):
        return None
