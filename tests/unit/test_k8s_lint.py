"""The lint of the Kubernetes manifests: it finds nothing in ours, and each fault that is put in."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
Doc = dict[str, Any]


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, REPO / ".ci" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


lint: Callable[[list[Doc]], list[str]] = _load("k8s_lint").lint
BASE: list[Doc] = [
    doc for path in sorted((REPO / "k8s").glob("*.yaml")) for doc in yaml.safe_load_all(path.read_text())
]
AUTOSCALER: Doc = yaml.safe_load((REPO / "k8s-components" / "scaled" / "autoscaler.yaml").read_text())
MONITOR: Doc = yaml.safe_load((REPO / "k8s-components" / "monitoring" / "servicemonitor.yaml").read_text())


class Manifests:
    """A copy of ours, to break."""

    def __init__(self) -> None:
        self.docs = copy.deepcopy(BASE)

    def get(self, kind: str, name: str) -> Doc:
        return next(doc for doc in self.docs if (doc["kind"], doc["metadata"]["name"]) == (kind, name))

    @property
    def marie(self) -> Doc:
        return self.get("Deployment", "watcher-marie")

    @property
    def pod(self) -> Doc:
        pod: Doc = self.marie["spec"]["template"]["spec"]
        return pod

    @property
    def container(self) -> Doc:
        container: Doc = self.pod["containers"][0]
        return container

    @property
    def settings(self) -> Doc:
        data: Doc = self.get("ConfigMap", "watcher-worker")["data"]
        return data


def test_our_manifests_have_no_fault() -> None:
    assert lint(copy.deepcopy(BASE)) == []


def test_the_examples_and_the_service_monitor_have_no_fault() -> None:
    login = yaml.safe_load((REPO / "k8s" / "examples" / "login.yaml").read_text())
    assert lint([*copy.deepcopy(BASE), login, MONITOR]) == []


def _put(*path: Any) -> Callable[[Manifests], None]:
    """Set the last of `path` at the place that the others lead to, from marie's container."""

    def change(m: Manifests) -> None:
        place: Any = m.container
        for step in path[:-2]:
            place = place[step]
        place[path[-2]] = path[-1]

    return change


def _drop(*path: Any) -> Callable[[Manifests], None]:
    def change(m: Manifests) -> None:
        place: Any = m.container
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return change


FAULTS: dict[str, tuple[Callable[[Manifests], Any], str]] = {
    "selector unlike labels": (
        lambda m: m.marie["spec"]["selector"]["matchLabels"].update(worker="mary"),
        "does not select its own pods",
    ),
    "selector of another workload's pods too": (
        lambda m: m.marie["spec"]["selector"]["matchLabels"].pop("worker"),
        "also selects the pods of",
    ),
    "no label app": (lambda m: m.marie["metadata"]["labels"].pop("app"), "no label app=watcher"),
    "mount of no volume": (_put("volumeMounts", 0, "name", "sharde"), "mounts the volume 'sharde'"),
    "volume that nothing mounts": (_drop("volumeMounts", 3), "which nothing mounts"),
    "claim that is not there": (
        lambda m: m.pod["volumes"][0]["persistentVolumeClaim"].update(claimName="nobodys"),
        "no claim 'nobodys'",
    ),
    "two volumes at one path": (_put("volumeMounts", 1, "mountPath", "/data"), "two volumes at one path"),
    "root folder on no volume": (
        lambda m: m.settings.update(WATCHER_ROOT="/elsewhere"),
        "no volume is mounted at /elsewhere",
    ),
    "host path": (lambda m: m.pod["volumes"][3].update(hostPath={"path": "/"}), "hostPath"),
    "probe of an unnamed port": (_put("livenessProbe", "httpGet", "port", "metric"), "asks port 'metric'"),
    "probe of no page of ours": (_put("livenessProbe", "httpGet", "path", "/health"), "there are /healthz and /readyz"),
    "no probe": (_drop("readinessProbe"), "has no readinessProbe"),
    "service of no pod": (
        lambda m: m.get("Service", "watcher-workers")["spec"]["selector"].update(component="wrker"),
        "selects no pod",
    ),
    "service to no port": (
        lambda m: m.get("Service", "watcher-workers")["spec"]["ports"][0].update(targetPort="http"),
        "no port of",
    ),
    "policy of no pod": (
        lambda m: m.get("NetworkPolicy", "watcher-agents")["spec"]["podSelector"]["matchLabels"].update(app="w"),
        "selects no pod",
    ),
    "policy for no port": (
        lambda m: m.get("NetworkPolicy", "watcher")["spec"]["ingress"][0]["ports"][0].update(port="metric"),
        "port 'metric' is none of",
    ),
    "budget of no pod": (
        lambda m: m.get("PodDisruptionBudget", "watcher-workers")["spec"]["selector"]["matchLabels"].update(app="w"),
        "selects no pod",
    ),
    "bad quantity": (_put("resources", "limits", "memory", "256Mb"), "'256Mb' is no quantity"),
    "more requested than allowed": (_put("resources", "requests", "memory", "4Gi"), "limited to 2Gi"),
    "no request": (_drop("resources", "requests", "cpu"), "requests no cpu"),
    "no memory limit": (_drop("resources", "limits", "memory"), "no limit of memory"),
    "setting that is none": (lambda m: m.settings.update(MAX_CONCURENT="3"), "MAX_CONCURENT, which is no setting"),
    "setting of the listener at a worker": (
        lambda m: m.settings.update(REASSIGN_AFTER="3"),
        "no setting of worker_watcher",
    ),
    "setting out of range": (lambda m: m.settings.update(TASK_TIMEOUT="-1"), "would refuse its settings"),
    "setting that is no text": (lambda m: m.settings.update(METRICS_PORT=9090), "put quotes around it"),
    "config map that is not there": (
        _put("envFrom", 0, "configMapRef", "name", "nobodys"),
        "'nobodys', which is not there",
    ),
    "secret that is not there": (
        _drop("envFrom", 1, "secretRef", "optional"),
        "'watcher-login-marie', which is not there",
    ),
    "metrics on loopback": (lambda m: m.settings.update(METRICS_HOST="127.0.0.1"), "set 0.0.0.0"),
    "another metrics port": (lambda m: m.settings.update(METRICS_PORT="9091"), "METRICS_PORT is 9091"),
    "grace shorter than the drain": (
        lambda m: m.pod.update(terminationGracePeriodSeconds=60),
        "terminationGracePeriodSeconds 60",
    ),
    "no drain": (_drop("lifecycle"), "preStop must be"),
    "drain of another worker": (_put("lifecycle", "preStop", "exec", "command", 5, "anga"), "preStop must be"),
    "drain shorter than a task": (_put("lifecycle", "preStop", "exec", "command", 8, "60"), "preStop waits 60 s"),
    "root user": (lambda m: m.pod["securityContext"].update(runAsNonRoot=False), "runAsNonRoot"),
    "no seccomp": (lambda m: m.pod["securityContext"].pop("seccompProfile"), "seccompProfile"),
    "host network": (lambda m: m.pod.update(hostNetwork=True), "hostNetwork is not allowed"),
    "token of the cluster": (lambda m: m.pod.pop("automountServiceAccountToken"), "automountServiceAccountToken"),
    "privilege escalation": (_put("securityContext", "allowPrivilegeEscalation", True), "allowPrivilegeEscalation"),
    "capability added": (_put("securityContext", "capabilities", "add", ["NET_ADMIN"]), "add none"),
    "root that can be written": (_drop("securityContext", "readOnlyRootFilesystem"), "readOnlyRootFilesystem"),
    "bad name": (lambda m: m.marie["metadata"].update(name="Watcher_Marie"), "lower-case"),
    "object twice": (lambda m: m.docs.append(copy.deepcopy(m.get("Namespace", "watcher"))), "is there twice"),
    "removed version": (
        lambda m: m.get("PodDisruptionBudget", "watcher-workers").update(apiVersion="policy/v1beta1"),
        "write policy/v1",
    ),
    "two workloads of one worker": (_put("args", 1, "anga"), "'anga' is served by"),
    "label unlike the worker": (_put("args", 1, "mary"), "has the label worker=marie"),
    "not our program": (_put("args", 0, "sh"), "must begin with worker_watcher"),
    "second pod without instance": (lambda m: m.marie["spec"].update(replicas=2), "2 replicas and no WATCHER_INSTANCE"),
    "overlapping pods without instance": (
        lambda m: m.marie["spec"].update(strategy={"type": "RollingUpdate"}),
        "must be Recreate",
    ),
    "autoscaler without instances": (lambda m: m.docs.append(copy.deepcopy(AUTOSCALER)), "has no WATCHER_INSTANCE"),
    "autoscaler of nothing": (
        lambda m: m.docs.append({**AUTOSCALER, "spec": {"scaleTargetRef": {"name": "nobody"}}}),
        "'nobody', which is not there",
    ),
    "a rollout that is called failed while it drains": (
        lambda m: m.marie["spec"].pop("progressDeadlineSeconds"),
        "progressDeadlineSeconds 600",
    ),
    "monitor of no port": (
        lambda m: m.docs.append({**MONITOR, "spec": {**MONITOR["spec"], "endpoints": [{"port": "web"}]}}),
        "port 'web' is none",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_lint_finds(name: str) -> None:
    change, said = FAULTS[name]
    manifests = Manifests()
    change(manifests)
    assert [fault for fault in lint(manifests.docs) if said in fault], lint(manifests.docs)


def test_replicas_beside_an_autoscaler_are_a_fault() -> None:
    manifests = Manifests()
    manifests.docs.append(copy.deepcopy(AUTOSCALER))
    manifests.marie["spec"]["replicas"] = 1
    assert any("would undo the scaling" in fault for fault in lint(manifests.docs))


def test_a_scaled_workload_with_a_claim_of_one_node_is_a_fault() -> None:
    manifests = Manifests()
    manifests.docs.append(copy.deepcopy(AUTOSCALER))
    manifests.get("PersistentVolumeClaim", "watcher-shared")["spec"]["accessModes"] = ["ReadWriteOnce"]
    assert any("which only one node can" in fault for fault in lint(manifests.docs))
