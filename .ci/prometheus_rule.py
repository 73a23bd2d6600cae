#!/usr/bin/env python3
"""Print the PrometheusRule of k8s-components/monitoring/rules.yaml, made of monitoring/rules: run it when they do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parent.parent
HEAD = "# Made of monitoring/rules by .ci/prometheus_rule.py.\n"


def manifest() -> dict[str, Any]:
    files = sorted((REPO / "monitoring" / "rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    metadata = {"name": "watcher", "namespace": "watcher", "labels": {"app": "watcher"}}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": metadata,
        "spec": {"groups": groups},
    }


if __name__ == "__main__":
    sys.stdout.write(HEAD + yaml.safe_dump(manifest(), sort_keys=False, width=120))
