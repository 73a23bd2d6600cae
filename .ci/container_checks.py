#!/usr/bin/env python3
"""Bring docker-compose.watcher.yml up for real and see that it keeps what the README promises.

Thirty tasks through three workers; every documented metric, dashboard query and target in Prometheus; a killed worker;
a stop while a task runs; a new container while tasks arrive; two containers that serve one worker; orphans, with no
shell in the image. Takes everything down again, also when a check fails. .ci/containers makes the images and calls it.

Usage: container_checks.py COMPOSE [--keep]      exit code 0: all held; 1: one did not
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable

from compose_site import REPO, Failed, Site, expect, run, wait_for
from dashboard import queries_of

WORKERS = ("marie", "anga", "fabien")
#: Each must have at least one series when tasks have run and one has failed.
METRICS = (
    'watcher_tasks_processed_total{status="completed"} > 0',
    'watcher_tasks_failed_total{reason="max_retries_exceeded"} > 0',
    "watcher_task_duration_seconds_bucket",
    "watcher_task_duration_seconds_sum > 0",
    "watcher_task_queue_size",
    "watcher_active_tasks",
    "watcher_circuit_breaker_state",
    "watcher_task_claim_latency_seconds_count > 0",
    "watcher_task_attempts_total > 0",
    "watcher_task_retries_total > 0",
    'watcher_dead_letters_total{reason="max_retries_exceeded"} > 0',
    "watcher_tasks_released_total or watcher_tasks_rescued_total",
    "watcher_output_bytes_total > 0",
    "watcher_oldest_pending_task_age_seconds",
    "watcher_last_scan_age_seconds",
    "watcher_trouble",
    "watcher_provider_circuit_breaker_state or watcher_circuit_breaker_state",
    "watcher_disk_free_bytes > 0",
    "watcher_build_info",
    'watcher_listener_workers{state="healthy"} == 3',
    "watcher_listener_tasks_total > 0",
    "watcher_listener_pending_tasks",
    'watcher_listener_notices_total{kind="task_done"} > 0',
    "watcher_listener_oldest_unread_result_age_seconds",
    "watcher_listener_last_scan_age_seconds",
    "process_resident_memory_bytes",
)


def comes_up(site: Site) -> None:
    began = time.monotonic()
    site.compose("up", "-d", "--wait", "--no-build")
    print(f"   all healthy after {time.monotonic() - began:.1f} s")
    for worker in WORKERS:
        container = site.container(worker)
        one = site.ask("processes", container=container)["1"]
        expect(one["CapEff"] == "0" * 16 and one["NoNewPrivs"] == "1", f"{worker} has capabilities: {one}")
        expect(one["Uid"].split()[0] == "10001", f"{worker} runs as {one['Uid']}")
        expect(site.inspect(container, ".HostConfig.ReadonlyRootfs"), f"{worker}'s root can be written")
        expect(site.inspect(container, ".HostConfig.Memory") > 0, f"{worker} has no memory limit")


def thirty_tasks(site: Site) -> None:
    for worker in WORKERS:
        site.submit(worker, {f"t{number:02d}": f"Task {number}" for number in range(10)})
    for worker in WORKERS:
        found = wait_for(f"10 results of {worker}", lambda w=worker: _when(site.results(w), lambda r: len(r) == 10))
        wrong = {stem: result["status"] for stem, result in found.items() if result["status"] != "completed"}
        expect(not wrong and worker in found["t00"]["stdout"], f"{worker}: {wrong} {found['t00']['stdout']!r}")
        beats = site.beats(worker)
        expect(list(beats) == [f"{worker}.json"], f"heartbeats of {worker}: {list(beats)}")
    wait_for("30 notices", lambda: len(site.names("triggers/orchestrator/*--t??.json")) == 30)
    site.submit("anga", {"tomorrow": "a task that waits"}, not_before=time.time() + 86_400)
    site.submit("fabien", {"bad": "[stderr no luck] [exit 3]"}, max_retries=1)
    expect(site.result("fabien", "bad")["exit_code"] == 3, "the failing task's exit code")
    wait_for("its dead letter", lambda: site.names("dlq/fabien/bad.json"))


def prometheus_sees_everything(site: Site) -> None:
    def all_up() -> bool:
        targets = site.prometheus("targets")["activeTargets"]
        jobs = sorted(target["labels"]["job"] for target in targets if target["health"] == "up")
        return jobs == ["prometheus", "watcher-listener", *["watcher-worker"] * 3]

    wait_for("every target to be up", all_up)
    for expression in METRICS:
        wait_for(f"data for {expression}", lambda e=expression: site.query(e))
    print(f"   {len(METRICS)} queries for the documented metrics have data")
    titles = queries_of(REPO / "monitoring" / "grafana" / "watcher.json")
    for title, expression in titles:
        try:
            wait_for(f"data for {expression}", lambda e=expression: site.query(e))
        except Failed as failed:
            raise Failed(f"dashboard panel {title!r}: {failed}") from None
    print(f"   {len(titles)} queries of the dashboard have data")
    groups = site.prometheus("rules")["groups"]
    sick = [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"]
    expect(groups and not sick, f"rules in error: {sick}")


def killed_worker_comes_back(site: Site) -> None:
    container = site.container("marie")
    site.submit("marie", {"survivor": "[sleep 4] [print survived]"})
    site.wait_until_running("marie", "survivor")
    os.kill(site.inspect(container, ".State.Pid"), signal.SIGKILL)
    result = site.result("marie", "survivor")
    expect(result["status"] == "completed" and result["stdout"].strip() == "survived", f"after the kill: {result}")
    expect(result["attempts"] == 2 and result["retry_count"] == 0, f"attempts after the kill: {result}")
    expect(site.inspect(container, ".RestartCount") >= 1, "the engine has not restarted it")


def stop_loses_nothing(site: Site) -> None:
    container = site.container("anga")
    site.submit("anga", {"short": "[sleep 2] [print ended in the drain]", "long": "[sleep 9] [print ended later]"})
    site.wait_until_running("anga", "short")
    site.wait_until_running("anga", "long")
    site.compose("stop", "anga")
    expect(site.inspect(container, ".State.ExitCode") == 0, "a stop that was asked for ends with exit code 0")
    expect(site.results("anga", "short"), "the task that ended within the grace has its result")
    expect(site.names("tasks/anga/long.json"), f"the long one is back in the inbox: {site.names('tasks/anga/**')}")
    left = site.names("tasks/anga/.claims/*/*")
    expect(not left, f"claims are left: {left}")
    site.compose("start", "anga")
    expect(site.result("anga", "long")["stdout"].strip() == "ended later", "the long one is done afterwards")


def hook_of_kubernetes_drains(site: Site) -> None:
    """What the preStop hook of k8s/worker-deployment.yaml does, in the container of a worker that runs a task."""
    container = site.container("fabien")
    site.submit("fabien", {"drained": "[sleep 7] [print ended in its own time]"})
    site.wait_until_running("fabien", "drained")
    hook = ["python", "-I", "-m", "watcher", "drain", "fabien", "--here", "--wait", "620"]
    # Its own container ends under it when the worker has ended: the exit code says nothing.
    run(["docker", "exec", container, *hook], check=False)
    result = site.result("fabien", "drained")
    expect(
        result["attempts"] == 1 and "own time" in result["stdout"], f"longer than SHUTDOWN_GRACE, and ended: {result}"
    )
    wait_for("the engine to start it again", lambda: site.inspect(container, ".RestartCount") >= 1)
    site.submit("fabien", {"after": "hello"})
    expect(site.result("fabien", "after")["status"] == "completed", "and the next process works")


def new_container_takes_over_under_load(site: Site) -> None:
    before = site.container("fabien")
    stems = [f"u{number:02d}" for number in range(40)]
    site.submit("fabien", dict.fromkeys(stems, "[sleep 0.3] [print ok]"))
    wait_for("the first of them", lambda: site.results("fabien", "u"))
    site.compose("up", "-d", "--wait", "--no-build", "--no-deps", "fabien", LOG_LEVEL="DEBUG")
    expect(site.container("fabien") != before, "a changed setting makes a new container")
    found = wait_for("40 results", lambda: _when(site.results("fabien", "u"), lambda r: len(r) == 40))
    again = {stem: result["attempts"] for stem, result in found.items() if result["attempts"] != 1}
    expect(not again, f"ran more than once: {again}")


def two_containers_serve_one_worker(site: Site) -> None:
    site.compose("up", "-d", "--wait", "--no-build", "--no-deps", "--scale", "marie=2", "marie",
                 WATCHER_INSTANCE="@hostname", MAX_CONCURRENT_TASKS="2")  # fmt: skip
    stems = [f"i{number:03d}" for number in range(200)]
    site.submit("marie", dict.fromkeys(stems, "[print ok]"))
    found = wait_for("200 results", lambda: _when(site.results("marie", "i"), lambda r: len(r) == 200))
    again = {stem: result["attempts"] for stem, result in found.items() if result["attempts"] != 1}
    expect(not again, f"ran more than once: {again}")
    receipts = site.ask("read", pattern="triggers/marie/i*.json")
    expect(len(receipts) == 200, f"{len(receipts)} receipts for 200 tasks")
    shares = {
        who: sum(r["incarnation"] == who for r in found.values()) for who in {r["incarnation"] for r in found.values()}
    }
    expect(len(shares) == 2, f"only one of them has worked: {shares}")
    beats = site.beats("marie")
    hosts = {container[:12] for container in site.containers("marie")}
    expect(set(beats) == {f"marie@{host}.json" for host in hosts}, f"heartbeats {list(beats)} of containers {hosts}")
    print(f"   200 tasks, each once: {sorted(shares.values())} of them by each; {', '.join(sorted(beats))}")
    count = 'sum(max_over_time(watcher_task_attempts_total{worker="marie",failure="none"}[2m]))'
    wait_for("both in Prometheus", lambda: len(site.query('watcher_active_tasks{worker="marie"}')) >= 2)
    wait_for("200 attempts counted by both", lambda: float(site.query(count)[0]["value"][1]) >= 200)


def nothing_is_left_and_no_shell_is_needed(site: Site) -> None:
    image = site.inspect(site.container("listener"), ".Config.Image")
    name, volume = f"{site.project}-orphans", f"{site.project}_orphans"
    shells = [f"{folder}/{shell}" for folder in ("/bin", "/usr/bin") for shell in ("dash", "bash", "sh")]
    no_shell = [word for path in shells for word in ("-v", f"/dev/null:{path}:ro")]
    try:
        run(["docker", "run", "-d", "--name", name, "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL",
             *no_shell, "-v", f"{volume}:/data", "-v", f"{REPO / '.ci' / 'agents'}:/agents:ro",
             "-e", "PROVIDER=command", "-e", "AGENT_COMMAND=python -I /agents/forks.py",
             image, "worker_watcher", "marie"])  # fmt: skip
        wait_for("its heartbeat", lambda: site.ask("list", container=name, pattern="heartbeats/marie.json"))
        shell = run(["docker", "exec", name, "sh", "-c", "echo there is a shell"], check=False)
        expect("there is a shell" not in shell, f"the shell was to be away here: {shell}")
        task = {"forker": {"description": "leave something behind"}}
        site.ask("submit", container=name, worker="marie", tasks=task)
        wait_for("its result", lambda: site.ask("list", container=name, pattern="results/marie/forker.json"))

        def alone() -> bool:
            others = {pid: p for pid, p in site.ask("processes", container=name).items() if pid != "1"}
            return not others

        wait_for("pid 1 to be alone: orphans ended and reaped", alone, 30)
        run(["docker", "exec", name, "python", "-I", "-m", "watcher", "health", "marie"])
        run(["docker", "stop", "-t", "30", name])
        expect(site.inspect(name, ".State.ExitCode") == 0, "pid 1 ends with 0 on TERM")
    finally:
        run(["docker", "rm", "-f", "-v", name], check=False)
        run(["docker", "volume", "rm", volume], check=False)


def figures(site: Site) -> None:
    print("   at rest:")
    for line in run(["docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}"]).splitlines():
        if line.startswith(site.project):
            print("    ", line)
    image = site.inspect(site.container("listener"), ".Config.Image")
    for name in (image, site.settings["BASE_IMAGE"]):
        print(f"     image {name}: {site.inspect(name, '.Size') / 1e6:.0f} MB")


def logs_are_clean(site: Site) -> None:
    said = site.compose("logs", "--no-color", *WORKERS, "listener")
    expect("Traceback" not in said, "a traceback in the logs:\n" + said[max(0, said.find("Traceback") - 500) :][:3000])


CHECKS: tuple[tuple[str, Callable[[Site], None]], ...] = (
    ("everything comes up, locked down", comes_up),
    ("thirty tasks through three workers", thirty_tasks),
    ("Prometheus sees every target and metric", prometheus_sees_everything),
    ("memory at rest, image sizes", figures),
    ("a killed worker comes back and finishes its task", killed_worker_comes_back),
    ("a stop while tasks run loses nothing", stop_loses_nothing),
    ("the hook of Kubernetes lets tasks end", hook_of_kubernetes_drains),
    ("a new container takes over while tasks arrive", new_container_takes_over_under_load),
    ("two containers serve one worker", two_containers_serve_one_worker),
    ("nothing is left behind, and no shell is needed", nothing_is_left_and_no_shell_is_needed),
    ("the logs have no traceback", logs_are_clean),
)


def main() -> int:
    compose, *rest = sys.argv[1:]
    settings = {
        "BASE_IMAGE": os.environ.get("BASE_IMAGE", "watcher-base:run"),
        "PROMETHEUS_IMAGE": os.environ.get("PROMETHEUS_IMAGE", "watcher-ci-prometheus"),
        "PROMETHEUS_PORT": str(_free_port()),
        "WATCHER_TAG": os.environ.get("WATCHER_TAG", "ci"),
        "HEARTBEAT_INTERVAL": "2",
        "SHUTDOWN_GRACE": "4",
    }
    site = Site(compose, f"watcher-ci-{os.getpid()}", settings)
    passed = 0
    try:
        for title, check in CHECKS:
            began = time.monotonic()
            print(f"-- {title}", flush=True)
            check(site)
            print(f"   held, {time.monotonic() - began:.1f} s", flush=True)
            passed += 1
    except Exception:  # noqa: BLE001 - whatever it is, say what the containers said and clean up
        traceback.print_exc()
        print(site.compose("ps", "-a", check=False))
        print(site.compose("logs", "--no-color", "--tail", "40", check=False)[-12_000:])
    finally:
        if "--keep" not in rest:
            with contextlib.suppress(Failed):
                site.compose("down", "-v", "--timeout", "10")
    print(f"container checks: {passed} held, {len(CHECKS) - passed} did not")
    return 0 if passed == len(CHECKS) else 1


def _when(value: dict[str, object], holds: Callable[[dict[str, object]], bool]) -> dict[str, object]:
    return value if holds(value) else {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
