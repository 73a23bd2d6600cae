"""Times as text: what is written is what was meant, to the microsecond, however often it is read and written again."""

from __future__ import annotations

import pytest

from watcher.clock import parse_rfc3339, rfc3339


def test_a_time_that_was_read_is_written_as_it_was() -> None:
    texts = [f"2026-11-22T10:58:06.{micros:06d}Z" for micros in range(0, 1_000_000, 997)]
    assert [rfc3339(parse_rfc3339(text)) for text in texts] == texts


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (1_795_219_199.9999999, "2026-11-21T00:00:00.000000Z"),
        (1_795_219_199.9999990, "2026-11-20T23:59:59.999999Z"),
        (-0.25, "1969-12-31T23:59:59.750000Z"),
    ],
)
def test_a_time_is_written_to_the_nearest_microsecond(seconds: float, text: str) -> None:
    assert rfc3339(seconds) == text
