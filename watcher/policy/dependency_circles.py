"""Find tasks that wait for each other in a circle, in one walk over the graph, whatever its shape.

A node is `worker/id`; `edges` gives the nodes that it waits for, none for one that will run. One task of a knot (the
nodes that all lead to each other) is enough to end it: when that one fails, the others fail with it. Pure; a walk
yields now and then, so that whoever walks may do something else between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator

Edges = Callable[[str], Iterable[str]]

#: A graph larger than this is not walked to its end: a circle in the rest of it is not named.
MAX_NODES = 200_000
#: Edges between two yields.
_STRIDE = 500
#: Names of a circle that are told.
_TOLD = 20


def knots(starts: Iterable[str], edges: Edges) -> Iterator[list[str] | None]:
    """Every knot that can be reached from these nodes, each once; None now and then.

    Tarjan's algorithm (Depth-first search and linear graph algorithms, 1972) without recursion: each edge is followed
    once.
    """
    walk = _Walk(edges)
    steps = 0
    for start in starts:
        if start in walk.number or walk.is_full():
            continue
        path = [(start, walk.enter(start))]
        while path:
            node, rest = path[-1]
            for target in rest:
                steps += 1
                if steps % _STRIDE == 0:
                    yield None
                if target == node:
                    walk.need_themselves.add(node)
                elif target not in walk.number:
                    if not walk.is_full():
                        path.append((target, walk.enter(target)))
                        break
                elif target in walk.is_open:
                    walk.low[node] = min(walk.low[node], walk.number[target])
            else:
                path.pop()
                if path:
                    walk.low[path[-1][0]] = min(walk.low[path[-1][0]], walk.low[node])
                if walk.low[node] == walk.number[node]:
                    yield walk.leave(node)
        yield None


class _Walk:
    """What Tarjan's algorithm remembers: the order of the nodes, and which of them may still be in one knot."""

    def __init__(self, edges: Edges) -> None:
        self._edges = edges
        self.number: dict[str, int] = {}
        self.low: dict[str, int] = {}
        self.need_themselves: set[str] = set()
        self._open: list[str] = []
        self.is_open: set[str] = set()

    def is_full(self) -> bool:
        return len(self.number) >= MAX_NODES

    def enter(self, node: str) -> Iterator[str]:
        self.number[node] = self.low[node] = len(self.number)
        self._open.append(node)
        self.is_open.add(node)
        return iter(self._edges(node))

    def leave(self, root: str) -> list[str] | None:
        """Take a finished group off the stack; None for a node alone that does not need itself."""
        group: list[str] = []
        while not group or group[-1] != root:
            group.append(self._open.pop())
            self.is_open.discard(group[-1])
        return group if len(group) > 1 or root in self.need_themselves else None


def circle(node: str, edges: Edges, at_most: int) -> list[str] | None:
    """The shortest way from a node back to itself, its name at both ends; None when no more than `at_most` edges lead
    to none."""
    return next(filter(None, ways_back(node, edges, at_most)), None)


def ways_back(
    node: str, edges: Edges, at_most: int | None = None, within: Collection[str] | None = None
) -> Iterator[list[str] | None]:
    """The same over the nodes of `within`, yielding None now and then, and the way at the end if there is one."""
    came_from: dict[str, str] = {}
    ahead = deque([node])
    followed = 0
    while ahead:
        here = ahead.popleft()
        for target in edges(here):
            followed += 1
            if target == node:
                yield _way(node, here, came_from)
                return
            if target not in came_from and (within is None or target in within):
                came_from[target] = here
                ahead.append(target)
            if followed % _STRIDE == 0:
                yield None
            if followed == at_most:
                return


def words_of(way: list[str]) -> str:
    """A circle for people: a -> b -> a, the middle of a long one left out."""
    told = way if len(way) <= _TOLD else [*way[: _TOLD - 2], f"... ({len(way) - _TOLD + 1} more)", way[-1]]
    return " -> ".join(told)


def _way(node: str, last: str, came_from: dict[str, str]) -> list[str]:
    way = [node]
    while last != node:
        way.append(last)
        last = came_from[last]
    return [node, *reversed(way)]
