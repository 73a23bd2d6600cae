"""Which names a server answers to."""

from __future__ import annotations

import pytest

from watcher.telemetry.allowed_hosts import Hosts

LOOPBACK = [
    ("localhost", True), ("localhost:9090", True), ("LOCALHOST:", True), ("localhost.", True), ("127.0.0.1:9090", True),
    ("127.9.9.9", True), ("[::1]", True), ("[::1]:9090", True), ("evil.example", False), ("evil.example:9090", False),
    ("", False), ("127.0.0.1.evil.example", False), ("localhost.evil.example", False), ("[::2]", False),
    (":9090", False), ("localhost:9090:1", False), ("localhost,evil.example", False), ("10.0.0.1", False),
    ("worker-marie:9090", False), ("localhost evil.example", False), ("user@localhost", False),
    ("[localhost]", False), ("0.0.0.0", False),
]  # fmt: skip


@pytest.mark.parametrize(("header", "expected"), LOOPBACK)
@pytest.mark.parametrize("bound", ["127.0.0.1", "::1", "localhost"])
def test_on_the_loopback_only_its_own_names_are_answered(bound: str, header: str, expected: bool) -> None:
    assert Hosts(bound).answers(header) is expected


def test_a_name_that_is_allowed_is_answered_too() -> None:
    hosts = Hosts("127.0.0.1", ("metrics.example.org",))
    assert hosts.answers("Metrics.Example.org:443") and hosts.answers("localhost")
    assert not hosts.answers("x.metrics.example.org") and not hosts.answers("10.0.0.1")


@pytest.mark.parametrize("header", ["worker-marie:9090", "10.0.0.1:9090", "[fd00::1]:9090", "localhost", "any.example"])
def test_elsewhere_every_name_is_answered(header: str) -> None:
    """Prometheus asks by the name of a service, a kubelet by the address of a pod."""
    assert Hosts("0.0.0.0").answers(header)


def test_elsewhere_names_that_are_allowed_shut_out_the_others_but_no_address() -> None:
    hosts = Hosts("0.0.0.0", ("worker-marie",))
    assert all(hosts.answers(header) for header in ("worker-marie:9090", "10.0.0.1:9090", "[fd00::1]", "localhost"))
    assert not hosts.answers("evil.example:9090") and not hosts.answers("worker-marie.evil.example")
