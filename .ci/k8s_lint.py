#!/usr/bin/env python3
"""What a schema cannot see in manifests: whether names, labels, ports, volumes, quantities and settings fit each other.

    kubectl kustomize k8s/ | .ci/k8s_lint.py            or            .ci/k8s_lint.py FILE ...

All documents together are taken as one installation. Prints one line for each fault, with the object and what to do.
Exit code 0: none; 1: some; 2: the input is no YAML.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from watcher.errors import SettingError
from watcher.settings.layers import ALL_SETTINGS, LISTENER_SETTINGS, SETTINGS
from watcher_config import OrchestratorConfig, WatcherConfig, read_layers

Doc = dict[str, Any]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_FACTORS = {
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    None: 1.0,
}
_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")
#: What no server takes any more; the schemas only warn.
_REMOVED = {
    ("extensions/v1beta1", "Deployment"): "apps/v1",
    ("apps/v1beta1", "Deployment"): "apps/v1",
    ("apps/v1beta2", "Deployment"): "apps/v1",
    ("policy/v1beta1", "PodDisruptionBudget"): "policy/v1",
    ("autoscaling/v2beta1", "HorizontalPodAutoscaler"): "autoscaling/v2",
    ("autoscaling/v2beta2", "HorizontalPodAutoscaler"): "autoscaling/v2",
    ("networking.k8s.io/v1beta1", "Ingress"): "networking.k8s.io/v1",
    ("batch/v1beta1", "CronJob"): "batch/v1",
}
#: What agents want in their environment; not settings of the suite.
_LOGINS = re.compile(
    r"ANTHROPIC_[A-Z_]+|CLAUDE_CODE_[A-Z_]+|GEMINI_[A-Z_]+|GOOGLE_[A-Z_]+|CURSOR_[A-Z_]+|OPENAI_[A-Z_]+|HTTPS?_PROXY|NO_PROXY|TZ"
)


def lint(docs: list[Doc]) -> list[str]:
    """One line for each fault of this installation."""
    return list(_Lint([doc for doc in docs if doc]).faults())


class _Lint:
    def __init__(self, docs: list[Doc]) -> None:
        self.docs = docs
        self.workloads = [doc for doc in docs if doc.get("kind") in _WORKLOADS]

    def faults(self) -> Iterator[str]:
        yield from self._names()
        for doc in self.workloads:
            for fault in self._workload(doc):
                yield f"{_title(doc)}: {fault}"
        for doc in self.docs:
            for fault in self._other(doc):
                yield f"{_title(doc)}: {fault}"
        yield from self._workers()

    # --- all objects

    def _names(self) -> Iterator[str]:
        seen: set[tuple[str, str, str]] = set()
        for doc in self.docs:
            name = str(doc.get("metadata", {}).get("name", ""))
            key = (str(doc.get("kind")), _namespace(doc), name)
            if key in seen:
                yield f"{_title(doc)}: is there twice"
            seen.add(key)
            if not _NAME.fullmatch(name):
                yield f"{_title(doc)}: the name must be lower-case letters, digits and dashes, at most 63"
            if _labels(doc).get("app") != "watcher":
                yield f"{_title(doc)}: has no label app=watcher"
            instead = _REMOVED.get((str(doc.get("apiVersion")), str(doc.get("kind"))))
            if instead:
                yield f"{_title(doc)}: {doc['apiVersion']} is removed; write {instead}"
            yield from (f"{_title(doc)}: {fault}" for fault in _quantities(doc.get("spec", {})))

    def _find(self, kind: str, name: str, namespace: str) -> Doc | None:
        wanted = (kind, name, namespace)
        return next((d for d in self.docs if (d.get("kind"), d["metadata"].get("name"), _namespace(d)) == wanted), None)

    def _selected(self, selector: dict[str, str], namespace: str) -> list[Doc]:
        return [
            doc
            for doc in self.workloads
            if _namespace(doc) == namespace and selector.items() <= _template_labels(doc).items()
        ]

    # --- pods

    def _workload(self, doc: Doc) -> Iterator[str]:
        wanted = doc["spec"].get("selector", {}).get("matchLabels", {})
        if not wanted or not wanted.items() <= _template_labels(doc).items():
            yield f"selector {wanted} does not select its own pods {_template_labels(doc)}"
        others = [_title(d) for d in self._selected(wanted, _namespace(doc)) if d is not doc]
        if wanted and others:
            yield f"its selector also selects the pods of {', '.join(others)}"
        pod = doc["spec"]["template"]["spec"]
        yield from _restricted(pod)
        yield from self._volumes(doc, pod)
        yield from _rollout(doc)
        for container in pod["containers"]:
            yield from _ports(container)
            yield from _resources(container)
            yield from self._settings(doc, pod, container)

    def _volumes(self, doc: Doc, pod: Doc) -> Iterator[str]:
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        mounted = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", [])}
        for name in sorted(mounted - volumes.keys()):
            yield f"mounts the volume {name!r}, which is not there"
        for name in sorted(volumes.keys() - mounted):
            yield f"has the volume {name!r}, which nothing mounts"
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and self._find("PersistentVolumeClaim", claim, _namespace(doc)) is None:
                yield f"volume {volume['name']!r}: there is no claim {claim!r}"
            if "hostPath" in volume:
                yield f"volume {volume['name']!r}: a hostPath is not allowed by the restricted profile"
        for container in pod["containers"]:
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            if len(paths) != len(set(paths)):
                yield f"mounts two volumes at one path: {paths}"
            if "/tmp" not in paths:
                yield "has no volume at /tmp, and its root cannot be written"

    # --- settings

    def _environment(self, doc: Doc, container: Doc) -> tuple[dict[str, str], list[str]]:
        values: dict[str, str] = {}
        faults = []
        for source in container.get("envFrom", []):
            for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                reference = source.get(key)
                if reference is None:
                    continue
                found = self._find(kind, reference["name"], _namespace(doc))
                if found is None and not reference.get("optional"):
                    faults.append(f"takes its settings from the {kind} {reference['name']!r}, which is not there")
                values |= {k: str(v) for k, v in ((found or {}).get("data") or {}).items() if kind == "ConfigMap"}
        for entry in container.get("env", []):
            values[entry["name"]] = str(entry.get("value", "from-a-field"))
        return values, faults

    def _settings(self, doc: Doc, pod: Doc, container: Doc) -> Iterator[str]:
        values, faults = self._environment(doc, container)
        yield from faults
        arguments = container.get("args", [])
        module = str(arguments[0]) if arguments else ""
        if module not in ("worker_watcher", "orchestrator_listener"):
            yield f"args {arguments}: must begin with worker_watcher or orchestrator_listener"
            return
        is_worker = module == "worker_watcher"
        known = SETTINGS if is_worker else LISTENER_SETTINGS
        for name in sorted(values):
            if name not in known and not _LOGINS.fullmatch(name):
                yield f"sets {name}, which is no setting of {module}"
        try:
            layers = read_layers(None, {k: v for k, v in values.items() if k in ALL_SETTINGS}, "/dev/null")
            config: WatcherConfig | OrchestratorConfig = (
                WatcherConfig(layers) if is_worker else OrchestratorConfig(layers)
            )
        except SettingError as error:
            yield f"{module} would refuse its settings: {error}"
            return
        yield from _fits(pod, container, config)

    # --- the rest

    def _other(self, doc: Doc) -> Iterator[str]:
        kind, spec = doc.get("kind"), doc.get("spec", {})
        if kind == "Service":
            yield from self._service(doc, spec)
        elif kind in ("PodDisruptionBudget", "NetworkPolicy"):
            selector = spec.get("selector" if kind == "PodDisruptionBudget" else "podSelector", {}).get(
                "matchLabels", {}
            )
            found = self._selected(selector, _namespace(doc))
            if not found:
                yield f"selects no pod: {selector}"
            ports = [p["port"] for rule in spec.get("ingress", []) for p in rule.get("ports", [])]
            yield from (f"port {p!r} is none of {_title(d)}" for p in ports for d in found if p not in _port_names(d))
        elif kind in ("HorizontalPodAutoscaler", "ScaledObject"):
            yield from self._scaler(doc, spec)
        elif kind == "ServiceMonitor":
            yield from self._monitor(doc, spec)
        elif kind == "ConfigMap":
            yield from (
                f"{k} must be text: put quotes around it"
                for k, v in doc.get("data", {}).items()
                if not isinstance(v, str)
            )

    def _service(self, doc: Doc, spec: Doc) -> Iterator[str]:
        found = self._selected(spec.get("selector", {}), _namespace(doc))
        if not found:
            yield f"selects no pod: {spec.get('selector')}"
        for port in spec.get("ports", []):
            target = port.get("targetPort", port["port"])
            for workload in found:
                numbers = [p["containerPort"] for c in _containers(workload) for p in c.get("ports", [])]
                if target not in _port_names(workload) and target not in numbers:
                    yield f"targetPort {target!r} is no port of {_title(workload)}"

    def _scaler(self, doc: Doc, spec: Doc) -> Iterator[str]:
        target = spec["scaleTargetRef"]
        found = self._find(target.get("kind", "Deployment"), target["name"], _namespace(doc))
        if found is None:
            yield f"scales {target['name']!r}, which is not there"
            return
        if "replicas" in found["spec"]:
            yield f"{_title(found)} sets replicas, so applying it again would undo the scaling"
        if not any(e["name"] == "WATCHER_INSTANCE" for c in _containers(found) for e in c.get("env", [])):
            yield f"{_title(found)} has no WATCHER_INSTANCE: its second pod would be refused"
        for volume in found["spec"]["template"]["spec"].get("volumes", []):
            name = volume.get("persistentVolumeClaim", {}).get("claimName", "")
            claim = self._find("PersistentVolumeClaim", name, _namespace(doc))
            if claim is not None and "ReadWriteMany" not in claim["spec"]["accessModes"]:
                yield f"{_title(found)} mounts {name!r}, which only one node can: its pods on others would not start"

    def _monitor(self, doc: Doc, spec: Doc) -> Iterator[str]:
        wanted = spec.get("selector", {}).get("matchLabels", {})
        services = [d for d in self.docs if d.get("kind") == "Service" and wanted.items() <= _labels(d).items()]
        if not services:
            yield f"selects no service: {wanted}"
        for endpoint in spec.get("endpoints", []):
            for service in services:
                if endpoint["port"] not in [port.get("name") for port in service["spec"]["ports"]]:
                    yield f"port {endpoint['port']!r} is none of {_title(service)}"

    def _workers(self) -> Iterator[str]:
        """One workload a worker, and without instances one pod a workload."""
        served: dict[str, str] = {}
        for doc in self.workloads:
            for container in _containers(doc):
                arguments = container.get("args", [])
                if len(arguments) < 2 or arguments[0] != "worker_watcher":
                    continue
                name = str(arguments[1])
                if name in served:
                    yield f"{_title(doc)}: {name!r} is served by {served[name]} already"
                served[name] = _title(doc)
                if _template_labels(doc).get("worker") != name:
                    label = _template_labels(doc).get("worker")
                    yield f"{_title(doc)}: serves {name!r} and has the label worker={label}"
                yield from self._one_pod(doc, container)

    def _one_pod(self, doc: Doc, container: Doc) -> Iterator[str]:
        if any(entry["name"] == "WATCHER_INSTANCE" for entry in container.get("env", [])):
            return
        spec = doc["spec"]
        if spec.get("replicas", 1) > 1:
            yield f"{_title(doc)}: has {spec['replicas']} replicas and no WATCHER_INSTANCE"
        if doc["kind"] == "Deployment" and spec.get("strategy", {}).get("type") != "Recreate":
            yield f"{_title(doc)}: without WATCHER_INSTANCE the strategy must be Recreate: a second pod is refused"


def _restricted(pod: Doc) -> Iterator[str]:
    """The restricted profile of Pod Security Standards, as far as it can concern us."""
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True:
        yield "securityContext.runAsNonRoot must be true"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "securityContext.seccompProfile must be RuntimeDefault"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield f"{key} is not allowed"
    if pod.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken must be false: no agent needs the cluster's API"
    for container in pod["containers"]:
        inner = container.get("securityContext", {})
        if inner.get("allowPrivilegeEscalation") is not False:
            yield f"container {container['name']}: allowPrivilegeEscalation must be false"
        if inner.get("capabilities", {}).get("drop") != ["ALL"] or inner.get("capabilities", {}).get("add"):
            yield f"container {container['name']}: capabilities must drop ALL and add none"
        if inner.get("readOnlyRootFilesystem") is not True:
            yield f"container {container['name']}: readOnlyRootFilesystem must be true"


def _ports(container: Doc) -> Iterator[str]:
    names = {port.get("name") for port in container.get("ports", [])}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if probe not in container:
            yield f"container {container['name']}: has no {probe}"
            continue
        http = container[probe].get("httpGet", {})
        if http and http.get("port") not in names:
            yield f"{probe} asks port {http.get('port')!r}, which the container does not name"
        if http and http.get("path") not in ("/healthz", "/readyz"):
            yield f"{probe} asks {http.get('path')}; there are /healthz and /readyz"


def _resources(container: Doc) -> Iterator[str]:
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for name in ("cpu", "memory"):
        if name not in requests:
            yield f"container {container['name']}: requests no {name}"
    if "memory" not in limits:
        yield f"container {container['name']}: has no limit of memory"
    for name in requests.keys() & limits.keys():
        low, high = _amount(requests[name]), _amount(limits[name])
        if low is not None and high is not None and low > high:
            yield f"container {container['name']}: requests {requests[name]} of {name}, limited to {limits[name]}"


def _fits(pod: Doc, container: Doc, config: WatcherConfig | OrchestratorConfig) -> Iterator[str]:
    if config.metrics_host in ("127.0.0.1", "localhost", "::1"):
        yield f"METRICS_HOST is {config.metrics_host}: probes and Prometheus come from outside; set 0.0.0.0"
    ports = [port["containerPort"] for port in container.get("ports", [])]
    if config.metrics_port not in ports:
        yield f"METRICS_PORT is {config.metrics_port}, containerPort is {ports}"
    paths = [mount["mountPath"].rstrip("/") for mount in container.get("volumeMounts", [])]
    places = [str(config.watcher_root), *([str(config.state_dir)] if isinstance(config, OrchestratorConfig) else [])]
    for place in places:
        if not any(place == path or place.startswith(path + "/") for path in paths):
            yield f"no volume is mounted at {place}"
    if isinstance(config, WatcherConfig):
        yield from _drains(pod, container, config)


def _drains(pod: Doc, container: Doc, config: WatcherConfig) -> Iterator[str]:
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    hook = [str(word) for word in hook]
    worker = str(container["args"][-1])
    if hook[:-1] != ["python", "-I", "-m", "watcher", "drain", worker, "--here", "--wait"]:
        yield f"preStop must be python -I -m watcher drain {worker} --here --wait SECONDS, not {hook}"
        return
    wait = float(hook[-1])
    if wait <= config.task_timeout + config.kill_grace:
        yield f"preStop waits {wait:g} s; a task may take TASK_TIMEOUT + KILL_GRACE, {config.task_timeout:g} s and more"
    grace, wanted = pod.get("terminationGracePeriodSeconds", 30), wait + config.shutdown_grace + config.kill_grace
    if grace <= wanted:
        yield f"terminationGracePeriodSeconds {grace} must be more than the hook's wait and both graces, {wanted:g}"


def _rollout(doc: Doc) -> Iterator[str]:
    """A rollout that waits for a drain has not failed."""
    grace = doc["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
    deadline = doc["spec"].get("progressDeadlineSeconds", 600)
    if doc["kind"] == "Deployment" and deadline <= grace:
        yield f"progressDeadlineSeconds {deadline} must be more than terminationGracePeriodSeconds, {grace}"


def _quantities(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if key in ("requests", "limits") or name == "sizeLimit":
                if _amount(inner) is None:
                    yield f"{inner!r} is no quantity ({name}): write 256Mi, 1Gi, 100m"
            else:
                yield from _quantities(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _quantities(inner, key)


def _amount(text: Any) -> float | None:
    matched = _QUANTITY.fullmatch(str(text))
    return float(matched[1]) * _FACTORS[matched[2]] if matched else None


def _title(doc: Doc) -> str:
    return f"{doc.get('kind')} {doc.get('metadata', {}).get('name')}"


def _namespace(doc: Doc) -> str:
    return str(doc.get("metadata", {}).get("namespace", "default"))


def _labels(doc: Doc) -> dict[str, str]:
    return doc.get("metadata", {}).get("labels") or {}


def _template_labels(doc: Doc) -> dict[str, str]:
    return _labels(doc["spec"]["template"])


def _containers(doc: Doc) -> list[Doc]:
    containers: list[Doc] = doc["spec"]["template"]["spec"]["containers"]
    return containers


def _port_names(doc: Doc) -> list[str]:
    return [port.get("name", "") for container in _containers(doc) for port in container.get("ports", [])]


def main() -> int:
    texts = [Path(name).read_text() for name in sys.argv[1:]] or [sys.stdin.read()]
    try:
        docs = [doc for text in texts for doc in yaml.safe_load_all(text)]
    except yaml.YAMLError as error:
        sys.stderr.write(f"k8s_lint: {error}\n")
        return 2
    faults = lint(docs)
    for fault in faults:
        sys.stderr.write(f"k8s_lint: {fault}\n")
    return 1 if faults or not docs else 0


if __name__ == "__main__":
    sys.exit(main())
