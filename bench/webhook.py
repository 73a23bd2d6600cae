"""What a durable post costs its sender: latency of POST /tasks with few and many senders, and a rate beyond what fits.

    python -m bench.webhook --posts 1000

Senders are plain sockets in another process, with one connection each and one post at a time. Closed: each sends its
next post when it has its answer. Open: posts are due at a fixed rate whatever the answers do, so waiting counts as
latency. Every acknowledged id must lie in the inbox exactly once, and nothing else may.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from bench import inbox
from bench.errors import BenchError
from bench.ours import Ours, ours
from bench.place import place
from bench.processes import Started
from bench.report import Report, arguments, run, table

_START_SECONDS = 30.0
_OPEN_SENDERS = 256


@dataclass
class Sent:
    """What came of a series: milliseconds of each acknowledged post, the statuses, the ids."""

    milliseconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def at(self, share: float) -> float:
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def start(worker: Ours, root: Path) -> tuple[Started, int]:
    """The endpoint on an empty root, and its port."""
    (root / "tasks" / inbox.WORKER).mkdir(parents=True)
    environment = {
        **worker.environment(root), "PYTHONPATH": str(worker.tree), "WEBHOOK_MAX_PENDING": "1000000",
        "LOG_LEVEL": "WARNING", **dict(worker.settings),
    }  # fmt: skip
    command = [worker.python, "-m", "watcher", "webhook", "--port", "0", "--port-file", str(root / "port")]
    endpoint = Started(command, environment, root, root / "webhook.log")
    endpoint.wait_until((root / "port").exists, "port", _START_SECONDS, 0.02)
    return endpoint, int((root / "port").read_text())


def post(number: int) -> bytes:
    body = json.dumps({"worker": inbox.WORKER, "description": inbox.DESCRIPTION, "metadata": {"n": number}}).encode()
    head = "POST /tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return status, await reader.readexactly(length)


async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, due: float, sent: Sent) -> None:
    writer.write(post(number))
    status, body = await _answer(reader)
    sent.statuses[status] += 1
    if status == 202:
        sent.milliseconds.append((time.perf_counter() - due) * 1e3)
        sent.ids.append(json.loads(body)["task_id"])


async def closed(port: int, senders: int, posts: int) -> Sent:
    """Each sender posts again as soon as it has its answer."""
    sent = Sent()
    numbers = iter(range(posts))

    async def sender() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            await _one(reader, writer, number, time.perf_counter(), sent)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(sender() for _ in range(senders)))
    sent.seconds = time.perf_counter() - began
    return sent


async def open_rate(port: int, per_second: int, posts: int) -> Sent:
    """Posts are due at a fixed rate; the next free connection takes the next one."""
    sent = Sent()
    due: asyncio.Queue[tuple[int, float] | None] = asyncio.Queue()

    async def sender() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (next_one := await due.get()) is not None:
            await _one(reader, writer, *next_one, sent)
        writer.close()

    senders = [asyncio.create_task(sender()) for _ in range(_OPEN_SENDERS)]
    began = time.perf_counter()
    for number in range(posts):
        at = began + number / per_second
        if at > time.perf_counter():
            await asyncio.sleep(at - time.perf_counter())
        due.put_nowait((number, at))
    for _ in senders:
        due.put_nowait(None)
    await asyncio.gather(*senders)
    sent.seconds = time.perf_counter() - began
    return sent


def raw(folder: Path, posts: int) -> Sent:
    """The anchor: the same bytes written, synced, renamed and the folder synced, by a loop with nothing around it."""
    folder.mkdir()
    sent = Sent()
    held = os.open(folder, os.O_RDONLY)
    began = time.perf_counter()
    for number in range(posts):
        due = time.perf_counter()
        hidden = f"{folder}/.{number}"
        fd = os.open(hidden, os.O_WRONLY | os.O_CREAT)
        os.write(fd, inbox.task_bytes(str(number)))
        os.fsync(fd)
        os.close(fd)
        os.rename(hidden, f"{folder}/{number}.json")
        os.fsync(held)
        sent.milliseconds.append((time.perf_counter() - due) * 1e3)
    sent.seconds = time.perf_counter() - began
    os.close(held)
    return sent


def check(root: Path, sent: Sent, before: int) -> None:
    """Whether just what was acknowledged is there."""
    there = [name for name in os.listdir(root / "tasks" / inbox.WORKER) if name.endswith(".json")]
    missing = {f"{task_id}.json" for task_id in sent.ids} - set(there)
    if missing or len(there) != before + len(sent.ids) or len(set(sent.ids)) != len(sent.ids):
        raise BenchError(f"{len(sent.ids)} acknowledged, {len(there) - before} there, {len(missing)} missing")


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--posts", type=int, default=1000, help="posts of each series (1000)")
    parser.add_argument("--rate", type=int, default=1000, help="posts a second of the open series (1000)")
    options = parser.parse_args()
    worker = ours(options.tree, options.python, options.set)
    with place(options.place, options.size, options.base) as at:
        report = Report("webhook", options, at)
        root = at.path / "webhook"
        endpoint, port = start(worker, root)
        rows = []
        total = 0

        def tell(name: str, sent: Sent, done: int) -> None:
            statuses = " ".join(f"{status}:{count}" for status, count in sorted(sent.statuses.items()))
            figures = [sent.at(share) for share in (0.5, 0.99, 1)]
            rows.append([name, *(f"{value:.1f}" for value in figures), f"{done / sent.seconds:.0f}", statuses])
            report.figures[name] = {
                "p50_ms": figures[0], "p99_ms": figures[1], "max_ms": figures[2],
                "accepted_per_second": done / sent.seconds, "statuses": dict(sent.statuses),
            }  # fmt: skip

        try:
            asyncio.run(closed(port, 4, 50))  # first use of everything
            total = inbox.count(inbox.inbox(root))
            series = [(f"closed, {n} senders", closed(port, n, options.posts)) for n in (1, 8, 64)]
            series.append((f"open, {options.rate}/s", open_rate(port, options.rate, options.rate * 5)))
            for name, work in series:
                sent = asyncio.run(work)
                check(root, sent, total)
                total += len(sent.ids)
                tell(name, sent, len(sent.ids))
                anchor = raw(at.path / f"raw-{len(rows)}", max(50, options.posts // 10))
                tell("  raw loop, right after", anchor, len(anchor.milliseconds))
        finally:
            code = endpoint.stop()
        if code != 0:
            raise BenchError(f"the endpoint ended with {code}:\n{(root / 'webhook.log').read_text()[-2000:]}")
        table(["POST /tasks", "p50 ms", "p99 ms", "max ms", "accepted/s", "answers"], rows)
        report.end()


if __name__ == "__main__":
    run(main)
