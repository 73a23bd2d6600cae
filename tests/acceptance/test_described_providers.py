"""A worker runs a provider that only PROVIDERS_FILE describes, and does not start with one that nobody knows."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import pytest

from tests.acceptance.conftest import REPOSITORY, Site, read
from tests.waiting import wait_for

AGENT = """
read -r prompt
case "$prompt" in
  limit) echo '{"problem": {"code": "quota", "text": "come back later"}}'; exit 9;;
  empty) echo '{"event": "end"}'; exit 0;;
esac
echo "{\\"part\\": \\"you said $prompt \\"}"
echo '{"part": "with '"$1 $2 $COLOUR"'", "used": {"in": 7, "out": 2}, "event": "end"}'
"""
FILE = """
[providers.ours]
command = COMMAND
output = "stream-json"
model_flag = "--model"
variables = { COLOUR = "blue" }
success = { needs_answer = true }

[providers.ours.fields]
answer = "part"
joins_answer = true
final = "event=end"
error = "problem.text"
signs = { code = "problem.code" }
usage = { input_tokens = "used.in", output_tokens = "used.out" }

[[providers.ours.failures]]
class = "limit"
reason = "usage_limit"
cure = "wait"
signs = ["code:quota"]
"""


@pytest.fixture
def settings(site: Site) -> dict[str, str]:
    """A file that describes the provider, and the settings with which a worker uses it."""
    file = site.home / "providers.toml"
    file.write_text(FILE.replace("COMMAND", json.dumps(shlex.split(site.script(AGENT)))))
    return {"PROVIDERS_FILE": str(file), "PROVIDER": "ours", "MAX_RETRIES": "0"}


def test_described_provider_answers_with_its_usage(site: Site, settings: dict[str, str]) -> None:
    site.start("marie", **settings)
    site.drop("a", description="hello\n", model="big")
    site.drop("b", description="empty\n")
    result = site.result("a")
    assert (result["status"], result["stdout"]) == ("completed", "you said hello with --model big blue")
    assert (result["provider"], result["usage"]) == ("ours", {"input_tokens": 7, "output_tokens": 2})
    assert site.result("b")["detail"].startswith("no_output on attempt 1: ours: ")


def test_described_limit_holds_the_provider(site: Site, settings: dict[str, str]) -> None:
    site.start("marie", **settings)
    site.drop("a", description="limit\n")
    file = site.root / "control" / "holds" / "ours.json"
    wait_for("the hold", file.exists)
    assert read(file)["reason"] == "usage_limit"
    beat = site.beat_that(lambda beat: beat.get("status") == "held", what="that says held")
    assert "ours: come back later; wait" in beat["reason"]
    assert site.results() == [] and site.dead_letters() == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"PROVIDER": "theirs"}, "PROVIDER=theirs: no such provider; name one of claude, gemini"),
        ({"PROVIDERS_FILE": "/no/such/file"}, "must be a file that is there"),
    ],
)
def test_worker_does_not_start_with_a_provider_that_nobody_described(
    site: Site, settings: dict[str, str], changed: dict[str, str], said: str
) -> None:
    worker = site.launch("marie", **{**settings, **changed})
    assert worker.ended() == 2
    assert said in worker.text()
    assert "Traceback" not in worker.text()


def test_mistake_in_the_file_stops_the_start_with_its_table_and_key(site: Site, settings: dict[str, str]) -> None:
    file = site.home / "providers.toml"
    file.write_text(file.read_text().replace("model_flag", "modle_flag"))
    worker = site.launch("marie", **settings)
    assert worker.ended() == 2
    assert f"PROVIDERS_FILE={file}: [providers.ours] modle_flag: is not known here" in worker.text()


AIDER = """
[providers.mini]
command = ["sh", "-c", "cat > /dev/null; echo 'litellm.AuthenticationError: invalid api key'"]
success = { needs_answer = true }

[[providers.mini.failures]]
class = "auth"
reason = "not_authenticated"
pattern = "AuthenticationError|invalid api key"
"""


def test_rule_of_the_file_holds_for_a_plain_text_that_exits_well(site: Site) -> None:
    (site.home / "mini.toml").write_text(AIDER)
    settings = {"PROVIDER": "mini", "PROVIDERS_FILE": str(site.home / "mini.toml")}
    site.start("marie", **settings)
    site.drop("a", description="hello\n")
    beat = site.beat_that(lambda beat: beat.get("status") == "held", what="that says held")
    assert "not_authenticated: mini: litellm.AuthenticationError: invalid api key" in beat["reason"]
    assert site.results() == [] and site.dead_letters() == []
    doctor = [sys.executable, "-m", "watcher", "doctor", "--json", "--provider", "mini"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "WATCHER_ROOT": str(site.root), **settings}
    done = subprocess.run(doctor, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert json.loads(done.stdout)["providers"][0]["state"] == "ill"
