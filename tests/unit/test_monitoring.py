"""Rules, dashboard and image belong to the code as it is: metrics that exist, a case and a section for each alert."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from watcher.settings.layers import ALL_SETTINGS
from watcher.telemetry.disk_space import DiskSpace
from watcher.telemetry.listener_metrics import ListenerMetrics
from watcher.telemetry.worker_metrics import WorkerMetrics

REPO = Path(__file__).resolve().parents[2]
RULES = [
    rule
    for path in sorted((REPO / "monitoring" / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
CASES = yaml.safe_load((REPO / "monitoring" / "tests" / "alerts.yml").read_text())["tests"]


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, REPO / ".ci" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _known_series(tmp_path: Path) -> set[str]:
    """Every series that a worker or the listener can expose."""
    worker = WorkerMetrics("marie", providers=("claude",))
    worker.read_at_scrape(last_scan_age_seconds=lambda: 0.0, heartbeat_age_seconds=lambda: 0.0)
    worker.registry.register(DiskSpace({"tasks": tmp_path}))
    listener = ListenerMetrics(lambda: 0.0, lambda: 0.0, lambda: 0.0)
    names: set[str] = set()
    for registry in (worker.registry, listener.registry):
        for family in registry.collect():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}
            names |= {family.name + suffix for suffix in suffixes.get(family.type, ("",))}
    return names | {rule["record"] for rule in RULES if "record" in rule} | {"up"}


def _series_in(expression: str) -> set[str]:
    without_strings = re.sub(r'"[^"]*"', '""', expression)
    words = set(re.findall(r"[a-zA-Z_][a-zA-Z0-9_:]*", without_strings))
    return {w for w in words if w.startswith(("watcher_", "worker:", "provider:", "process_")) or w == "up"}


def test_every_rule_and_panel_asks_for_series_that_exist(tmp_path: Path) -> None:
    known = _known_series(tmp_path)
    asked = {series for rule in RULES for series in _series_in(rule["expr"])}
    for _, expression in _load("dashboard").queries_of(REPO / "monitoring" / "grafana" / "watcher.json"):
        asked |= _series_in(expression)
    assert len(asked) > 25
    assert asked - known == set()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule["alert"])
def test_alert_has_a_case_that_fires_and_one_that_does_not_and_a_section_to_read(alert: dict[str, Any]) -> None:
    fires = [
        bool(case["exp_alerts"])
        for test in CASES
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == alert["alert"]
    ]
    assert {True, False} <= set(fires)
    file, _, section = alert["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (REPO / file).read_text(), re.M)
    assert section in {heading.lower().replace(" ", "-") for heading in headings}
    assert alert["labels"]["severity"] in ("page", "ticket")


def test_rules_of_the_operator_are_those_of_the_files() -> None:
    made = _load("prometheus_rule").manifest()
    there = yaml.safe_load((REPO / "k8s-components" / "monitoring" / "rules.yaml").read_text())
    assert there == made, "run .ci/prometheus_rule.py"


def test_dashboard_has_a_place_for_each_panel() -> None:
    panels = json.loads((REPO / "monitoring" / "grafana" / "watcher.json").read_text())["panels"]
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_image_pins_every_dependency_and_says_our_version() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (REPO / "docker" / "requirements.txt").read_text(), re.M))
    wanted = {re.split(r"[^a-z0-9-]", text)[0] for text in project["dependencies"]}
    assert wanted <= pinned.keys()
    assert f"ARG VERSION={project['version']}\n" in (REPO / "Dockerfile").read_text()


def test_compose_file_sets_only_settings_there_are_and_outlasts_the_drain() -> None:
    compose = yaml.safe_load((REPO / "docker-compose.watcher.yml").read_text())
    logins = re.compile(r"ANTHROPIC_|CLAUDE_CODE_|GEMINI_|CURSOR_API")
    for name in ("marie", "anga", "fabien", "listener"):
        service = compose["services"][name]
        unknown = [key for key in service["environment"] if key not in ALL_SETTINGS and not logins.match(key)]
        assert unknown == []
        assert (
            service["cap_drop"] == ["ALL"] and service["read_only"] and service["mem_limit"] and service["pids_limit"]
        )
        if name != "listener":
            grace = float(re.findall(r":-(\d+)", service["environment"]["SHUTDOWN_GRACE"])[0])
            assert float(service["stop_grace_period"].rstrip("s")) > grace + float(service["environment"]["KILL_GRACE"])
            assert service["command"][1] == service["healthcheck"]["test"][-1] == name
