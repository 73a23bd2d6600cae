"""Write the listener's totals for people: as text, or as one HTML page that needs no other file.

Pure: what the listener knows in, text out. Every text from a file is escaped in the page and shown without control
characters in the terminal. The page has no script, loads nothing, and follows the reader's light or dark scheme.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from watcher.clock import rfc3339
from watcher.store.listener_state import ListenerView, Point
from watcher.store.outcome_totals import COUNTED, Sums, bucket_of, seconds_in

_DIMENSIONS = (("worker", "Workers"), ("provider", "Providers"), ("agent_id", "Agents"), ("batch_id", "Batches"))
_HEADER = ("", "tasks", "completed", "failed", "timeout", "cancelled", "refused", "success", "mean", "p50", "p95",
           "p99", "tokens in/out", "cost")  # fmt: skip
#: Rows of one table; a team has fewer workers, batches may be many.
MAX_ROWS = 30
_BINS = 48
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 220, 56, 28
#: A palette that the colour-blind can tell apart (Okabe and Ito, 2008), with enough contrast on white and on black.
_COLOURS = {"completed": "#009e73", "failed": "#d55e00", "timeout": "#e69f00", "cancelled": "#999999",
            "refused": "#cc79a7"}  # fmt: skip


# --- text


def report_text(view: ListenerView) -> str:
    """The tables, as wide as they need to be."""
    parts = [_headline(view), ""]
    for title, totals in (("All time", view.all_time), ("Last hour", view.last_hour)):
        parts.append(title)
        for dimension, name in (("all", "All"), *_DIMENSIONS):
            rows = _rows(totals.by_key.get(dimension, {}), name)
            if rows:
                parts += [*_table([(name if dimension != "all" else "", *_HEADER[1:]), *rows]), ""]
    peaks = ", ".join(f"{_plain(who) or 'all together'} {n}" for who, n in sorted(view.peak_concurrency.items()))
    active = sum(int(p.get("active_tasks") or 0) for p in view.processes)
    parts.append(f"At once: now {active}, at most {peaks or 'none'}")
    notices = ", ".join(f"{kind} {count}" for kind, count in sorted(view.notices.items()))
    parts.append(f"Notices: {notices or 'none'}")
    return "\n".join(parts)


def _headline(view: ListenerView) -> str:
    taken = str(view.status.get("taken_at") or "never")
    if view.is_running:
        unread = view.status.get("unread_files") or 0
        return f"As of {taken}; the listener runs" + (f" and has {unread} files still to read" if unread else "")
    return f"As of {taken}; the listener does not run: what came later is missing (python orchestrator_listener.py)"


def _rows(tallies: Mapping[str, Sums], name: str) -> list[tuple[str, ...]]:
    most = sorted(tallies.items(), key=lambda item: (-item[1].total, item[0]))
    rows = [_row(_plain(key) or name.lower(), tally) for key, tally in most[:MAX_ROWS]]
    if len(most) > MAX_ROWS:
        rest = Sums()
        for _, tally in most[MAX_ROWS:]:
            rest.merge(tally)
        rows.append(_row(f"({len(most) - MAX_ROWS} more)", rest))
    return rows


def _row(name: str, tally: Sums) -> tuple[str, ...]:
    facts = tally.as_json()
    rate = facts["success_rate"]
    times = [seconds_text(facts[key]) for key in ("mean_seconds", "p50_seconds", "p95_seconds", "p99_seconds")]
    return (
        name, str(facts["tasks"]), *(str(facts[status]) for status in COUNTED), "-" if rate is None else f"{rate:.1%}",
        *times, f"{facts['input_tokens']:,}/{facts['output_tokens']:,}", f"${facts['cost_usd']:,.4f}",
    )  # fmt: skip


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def seconds_text(seconds: float | None) -> str:
    """`0.12 s`, `3.4 s`, `5.1 min`, `2.0 h`; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:60]


# --- the page


def report_html(view: ListenerView, points: Sequence[Point], root: str) -> str:
    """One self-contained page: the figures, four plots, the tables. `points` are in order of time."""
    sections = [
        _figures(view),
        _section("Throughput", "Tasks ended, by time", _throughput(points)),
        _section("Durations", "How long the last attempt of a task ran", _durations(points)),
        _section("Outcomes by worker", "All time", _outcomes(view.all_time.by_key.get("worker", {}))),
        _section("Cost", "US dollars reported by the providers, summed up over time", _cost(points)),
    ]
    for title, totals in (("All time", view.all_time), ("Last hour", view.last_hour)):
        for dimension, name in _DIMENSIONS:
            rows = _rows(totals.by_key.get(dimension, {}), name)
            if rows:
                sections.append(_section(f"{name}, {title.lower()}", "", _html_table(name, rows)))
    head = f"<h1>Watcher report</h1><p>{html.escape(root)}. {html.escape(_headline(view))}</p>"
    # The body last: what is in it is not looked at for a placeholder.
    return _PAGE.replace("{title}", html.escape(f"Watcher report: {root}")).replace("{body}", head + "".join(sections))


def _figures(view: ListenerView) -> str:
    whole = view.all_time.whole
    facts = whole.as_json()
    hour = view.last_hour.whole.total
    rate = facts["success_rate"]
    cards = (
        ("tasks", f"{facts['tasks']:,}"), ("success", "-" if rate is None else f"{rate:.1%}"),
        ("last hour", f"{hour:,}"), ("median", seconds_text(facts["p50_seconds"])),
        ("p95", seconds_text(facts["p95_seconds"])), ("at once, most", str(view.peak_concurrency.get("", 0))),
        ("cost", f"${facts['cost_usd']:,.2f}"),
    )  # fmt: skip
    return '<div class="cards">' + "".join(f"<div><b>{v}</b><span>{k}</span></div>" for k, v in cards) + "</div>"


def _section(title: str, about: str, body: str) -> str:
    note = f"<p>{html.escape(about)}</p>" if about else ""
    return f"<section><h2>{html.escape(title)}</h2>{note}{body}</section>"


def _html_table(name: str, rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in (name, *_HEADER[1:]))
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _moment_text(wall_seconds: float, span_seconds: float) -> str:
    """A time on an axis, UTC: with seconds where the axis spans less than an hour, with the day where it is longer."""
    text = rfc3339(wall_seconds)
    return text[11:19] if span_seconds < 3600 else text[5:16].replace("T", " ")


def _throughput(points: Sequence[Point]) -> str:
    if not points:
        return _NOTHING
    first, last = points[0].finished_at, points[-1].finished_at
    step = max(1.0, (last - first) / _BINS)
    bins: list[Counter[str]] = [Counter() for _ in range(int((last - first) / step) + 1)]
    for point in points:
        bins[int((point.finished_at - first) / step)][point.status] += 1
    labels = [_moment_text(first + i * step, last - first) for i in range(len(bins))]
    return _stacked(bins, labels, f"tasks each {seconds_text(step)}")


def _durations(points: Sequence[Point]) -> str:
    widths: Counter[int] = Counter()
    for point in points:
        if point.duration_seconds is not None:
            widths[bucket_of(round(point.duration_seconds * 1e6)) // 7] += 1  # seven buckets of 5 % are about 40 %
    if not widths:
        return _NOTHING
    span = range(min(widths), max(widths) + 1)
    bins = [Counter({"completed": widths[i]}) for i in span]
    return _stacked(bins, [seconds_text(seconds_in(i * 7)) for i in span], "tasks", legend=False)


def _outcomes(tallies: Mapping[str, Sums]) -> str:
    most = sorted(tallies.items(), key=lambda item: (-item[1].total, item[0]))[:MAX_ROWS]
    if not most:
        return _NOTHING
    scale = (_WIDTH - 220) / max(tally.total for _, tally in most)
    rows = []
    for number, (worker, tally) in enumerate(most):
        top, left = number * 26 + 4, 150.0
        rows.append(f'<text x="142" y="{top + 14}" text-anchor="end">{html.escape(_plain(worker)[:20])}</text>')
        for status in COUNTED:
            count = tally.counts.get(status, 0)
            if count:
                rows.append(_bar(left, top, count * scale, 18, status, f"{worker}: {count} {status}"))
                left += count * scale
        rows.append(f'<text x="{left + 6:.1f}" y="{top + 14}">{tally.total:,}</text>')
    return _svg("".join(rows), len(most) * 26 + 8) + _legend()


def _cost(points: Sequence[Point]) -> str:
    total, line = 0.0, []
    for point in points:
        total += point.cost_usd
        line.append((point.finished_at, total))
    if total <= 0:
        return '<p class="nothing">No provider has reported a cost.</p>'
    first, last = line[0][0], line[-1][0]
    thin = [*line[:: max(1, len(line) // 400)], line[-1]]
    x, y = _scale(first, max(last, first + 1e-6), _LEFT, _WIDTH - 8), _scale(0, total, _HEIGHT - _BOTTOM, 8)
    path = " ".join(f"{x(t):.1f},{y(c):.1f}" for t, c in thin)
    ends = _x_label(_LEFT, _moment_text(first, last - first), "start")
    ends += _x_label(_WIDTH - 8, _moment_text(last, last - first), "end")
    axis = "".join(_y_tick(y(v), f"${v:.3g}") for v in (0.0, total / 2, total))
    return _svg(f'{axis}<polyline points="{path}" fill="none" stroke="#0072b2" stroke-width="2"/>{ends}', _HEIGHT)


def _stacked(bins: Sequence[Counter[str]], labels: Sequence[str], what: str, legend: bool = True) -> str:
    highest = max(sum(one.values()) for one in bins)
    y = _scale(0, highest, _HEIGHT - _BOTTOM, 18)
    width = (_WIDTH - _LEFT - 8) / len(bins)
    parts = [_y_tick(y(v), f"{v:,}") for v in sorted({0, highest // 2, highest})]
    parts.append(f'<text x="{_LEFT}" y="10">{html.escape(what)}</text>')
    for number, one in enumerate(bins):
        below = 0
        for status in COUNTED:
            count = one.get(status, 0)
            if count:
                top = y(below + count)
                title = f"{labels[number]}: {count} {status if legend else 'tasks'}"
                parts.append(_bar(_LEFT + number * width, top, max(1.0, width - 1), y(below) - top, status, title))
                below += count
    every = max(1, math.ceil(len(bins) / 6))
    for number in range(0, len(bins), every):
        parts.append(_x_label(_LEFT + (number + 0.5) * width, labels[number], "middle" if number else "start"))
    return _svg("".join(parts), _HEIGHT) + (_legend() if legend else "")


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / ((high - low) or 1.0) * (end - start)


def _bar(x: float, y: float, width: float, height: float, status: str, title: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{_COLOURS[status]}">'
        f"<title>{html.escape(title)}</title></rect>"
    )


def _y_tick(y: float, text: str) -> str:
    line = f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
    return f'{line}<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{html.escape(text)}</text>'


def _x_label(x: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(inside: str, height: int) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{inside}</svg>'


def _legend() -> str:
    items = "".join(f'<span><i style="background:{colour}"></i>{name}</span>' for name, colour in _COLOURS.items())
    return f'<div class="legend">{items}</div>'


_NOTHING = '<p class="nothing">No task has ended yet.</p>'
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root{color-scheme:light dark;--line:#8884;--soft:#8882}
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}
h1{margin:0;font-size:1.6rem}h2{margin:0 0 .2rem;font-size:1.1rem}p{margin:.1rem 0 .6rem;opacity:.75}
section{border:1px solid var(--line);border-radius:8px;padding:1rem;margin:1rem 0}
svg{width:100%;height:auto;font:12px system-ui,sans-serif}svg text{fill:currentColor}.grid{stroke:var(--line)}
.cards{display:flex;flex-wrap:wrap;gap:.6rem;margin:1rem 0}
.cards div{flex:1;min-width:5.5rem;background:var(--soft);border-radius:8px;padding:.6rem .8rem}
.cards b{display:block;font-size:1.3rem;white-space:nowrap}.cards span{opacity:.75;font-size:.85rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.8rem;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.25rem .4rem;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}.legend{display:flex;flex-wrap:wrap;gap:1rem;font-size:.85rem}
.legend i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em}
</style></head><body>{body}</body></html>
"""
