"""When a usage limit ends, from the words in which a CLI tells it.

Only epoch seconds are exact. A clock time without a date is its next occurrence, in the zone that stands behind it,
else in the local one: commands see the worker's TZ. What cannot be understood is None; nothing raises.
"""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo

_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
#: `12:15am (UTC)`, `Nov 25, 5:13am (Europe/Paris)`, `Nov 25th, 2026 5:13 AM`, `3pm`.
_CLOCK = re.compile(
    r"(?:(?P<month>[A-Za-z]{3})[a-z]* (?P<day>\d{1,2})(?:st|nd|rd|th)?,?(?: (?P<year>\d{4}),?)?(?: at)? )?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))? ?(?P<half>[AaPp])\.?[Mm]\b(?: \((?P<zone>[\w/+-]+)\))?"
)


def told_time(words: re.Match[str], now: float) -> float | None:
    """Wall seconds, from one of the groups `epoch` (seconds or milliseconds), `after` (`8h44m7s`) and `at`."""
    groups = words.groupdict()
    if groups.get("epoch"):
        told = float(groups["epoch"])
        return told / 1000 if told > 1e11 else told
    if groups.get("after"):
        parts = re.findall(r"(\d+(?:\.\d+)?) ?([dhms])", groups["after"])
        return now + sum(float(number) * _UNITS[unit] for number, unit in parts)
    return _clock_time(groups["at"], now) if groups.get("at") else None


def _clock_time(text: str, now: float) -> float | None:
    found = _CLOCK.match(text.strip())
    if found is None:
        return None
    try:
        zone = _zone(found["zone"])
        today = dt.datetime.fromtimestamp(now, zone)
        hour = _hour(int(found["hour"]), found["half"])
        at = today.replace(hour=hour, minute=int(found["minute"] or 0), second=0, microsecond=0, fold=0)
        if found["month"] is None:
            return _next(at, now)
        month = _MONTHS.index(found["month"].lower()) + 1
        at = at.replace(year=int(found["year"] or today.year), month=month, day=int(found["day"]))
        if found["year"] is None and at.timestamp() < now - _UNITS["d"]:
            at = at.replace(year=at.year + 1)
    except (ValueError, OverflowError, OSError, zoneinfo.ZoneInfoNotFoundError):
        return None
    return at.timestamp()


def _hour(hour: int, half: str) -> int:
    if not 1 <= hour <= 12:
        raise ValueError(hour)
    return hour % 12 + (12 if half in "Pp" else 0)


def _next(at: dt.datetime, now: float) -> float:
    """The minute that runs now is not over: a limit that ends in it ends now."""
    seconds = at.timestamp()
    return seconds if seconds > now - 60 else (at + dt.timedelta(days=1)).timestamp()


def _zone(name: str | None) -> dt.tzinfo | None:
    """None is the local zone, whose offset may differ between two dates; a name needs the system's zone data."""
    if name is None:
        return None
    return dt.UTC if name.upper() in ("UTC", "GMT", "Z") else zoneinfo.ZoneInfo(name)
