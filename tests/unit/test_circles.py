"""Circles in graphs of any shape, against the plain definition; and how often an edge is asked for."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from watcher.policy.dependency_circles import circle, knots

GRAPHS = st.integers(1, 9).flatmap(
    lambda size: st.fixed_dictionaries(
        {str(node): st.lists(st.integers(0, size - 1).map(str), max_size=4) for node in range(size)}
    )
)


def reachable(graph: dict[str, list[str]], start: str) -> set[str]:
    found: set[str] = set()
    ahead = list(graph[start])
    while ahead:
        node = ahead.pop()
        if node not in found:
            found.add(node)
            ahead += graph[node]
    return found


@given(GRAPHS)
@settings(max_examples=300, deadline=None)
def test_knots_are_the_groups_of_nodes_that_lead_to_each_other(graph: dict[str, list[str]]) -> None:
    leads_to = {node: reachable(graph, node) for node in graph}
    expected = {
        frozenset(other for other in graph if other in leads_to[node] and node in leads_to[other])
        for node in graph
        if node in leads_to[node]
    }
    found = [frozenset(knot) for knot in knots(graph, graph.__getitem__) if knot is not None]
    assert Counter(found) == Counter(expected)


@given(GRAPHS)
@settings(max_examples=300, deadline=None)
def test_circle_is_a_way_back_if_there_is_one(graph: dict[str, list[str]]) -> None:
    for node in graph:
        found = circle(node, graph.__getitem__, 1000)
        assert (found is not None) == (node in reachable(graph, node))
        if found is not None:
            assert found[0] == found[-1] == node and len(set(found)) == len(found) - 1
            assert all(there in graph[here] for here, there in itertools.pairwise(found))


def test_each_node_is_asked_once_however_long_the_chain() -> None:
    asked: Counter[str] = Counter()

    def edges(node: str) -> list[str]:
        asked[node] += 1
        return [str(int(node) + 1)] if int(node) < 20_000 else ["19000"]

    found = [knot for knot in knots(map(str, range(20_000)), edges) if knot is not None]
    assert [len(knot) for knot in found] == [1001]
    assert max(asked.values()) == 1


def test_circle_is_not_looked_for_beyond_its_bound() -> None:
    assert circle("0", lambda node: [str((int(node) + 1) % 100)], 99) is None
    assert circle("0", lambda node: [str((int(node) + 1) % 100)], 100) is not None
