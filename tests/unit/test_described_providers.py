"""The providers file: what it can describe, and what it says when something in it is wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from watcher.errors import SettingError
from watcher.policy.after_attempt import Ending, Failure
from watcher.runner.printed_text import events
from watcher.runner.providers.built_in import BUILT_IN, acp_rules
from watcher.runner.providers.failure_words import Printed
from watcher.runner.providers.judging import judge
from watcher.runner.providers.provider import Provider, environment_for
from watcher.runner.providers.user_providers import all_providers, read_file

DOCS = Path(__file__).parents[2] / "docs" / "providers.md"
FILES = Path(__file__).parents[2] / "watcher" / "runner" / "providers"
MINE = """
[providers.mine]
command = ["mine", "run", "two words"]
output = "stream-json"
environment = ["MINE_*"]
variables = { QUIET = "1" }
success = { exit_codes = [0, 7], needs_answer = true }

[providers.mine.fields]
answer = "reply.text"
joins_answer = true
final = "kind=end"
error = "problem.0.text"
error_flag = "bad"
resets_at = "back_at"
ended = "why"
signs = { code = "problem.0.code" }

[providers.mine.fields.usage]
input_tokens = "used.in"
output_tokens = "used.out"
cost_usd = "used.usd"
turns = "used.turns"
model = "with"
session_id = "id"

[[providers.mine.failures]]
class = "limit"
reason = "usage_limit"
signs = ["code:429"]

[[providers.mine.failures]]
class = "auth"
reason = "not_authenticated"
cure = "log in"
exit_codes = [3]

[[providers.mine.failures]]
class = "permanent"
reason = "bad_argument"
pattern = "^usage:"
"""


def made(tmp_path: Path, text: str) -> dict[str, Provider]:
    file = tmp_path / "providers.toml"
    file.write_text(text)
    return read_file(file)


def judged(provider: Provider, code: int, stdout: str, tmp_path: Path, stderr: str = "") -> Ending:
    (tmp_path / "out").write_text(stdout)
    fd = os.open(tmp_path / "out", os.O_RDONLY)
    try:
        assert provider.reader is not None
        reading = provider.reader(events(fd, len(stdout.encode()), provider.output))
    finally:
        os.close(fd)
    return judge(provider, code, reading, lambda: Printed(stdout, stderr), 1_000_000.0, len(stdout))


def test_described_provider_is_read_by_its_paths(tmp_path: Path) -> None:
    mine = made(tmp_path, MINE)["mine"]
    assert mine.argv() == (("mine", "run", "two words"), "stream-json")
    (tmp_path / "out").write_text(
        '{"kind": "part", "reply": {"text": "he"}, "id": "s1", "with": "m"}\n{"reply": {"text": "llo"}}\n'
        '{"kind": "end", "used": {"in": 12, "out": 3, "usd": 0.25, "turns": 2}}\n'
    )
    fd = os.open(tmp_path / "out", os.O_RDONLY)
    assert mine.reader is not None
    reading = mine.reader(events(fd, 4096, "stream-json"))
    os.close(fd)
    assert (reading.answer, reading.is_finished, reading.is_error) == ("hello", True, False)
    assert reading.usage is not None
    assert reading.usage.as_json() == {
        "input_tokens": 12, "output_tokens": 3, "cost_usd": 0.25, "turns": 2, "model": "m", "session_id": "s1",
    }  # fmt: skip


def test_described_failures_are_tried_events_first(tmp_path: Path) -> None:
    mine = made(tmp_path, MINE)["mine"]
    end = '{"kind": "end", "reply": {"text": "x"}}\n'
    assert judged(mine, 7, end, tmp_path).failure is None
    limit = '{"problem": [{"text": "slow", "code": 429}], "back_at": 1000060}\n'
    ending = judged(mine, 3, limit, tmp_path, "usage: mine")
    assert (ending.failure, ending.reason, ending.resets_at) == (Failure.LIMIT, "usage_limit", 1_000_060.0)
    assert ending.detail == "mine: slow"
    ending = judged(mine, 3, "{}\n", tmp_path, "usage: mine")
    assert (ending.failure, ending.detail) == (Failure.AUTH, "mine: usage: mine; log in")
    assert judged(mine, 1, "{}\n", tmp_path, "x\nusage: mine").reason == "bad_argument"
    assert judged(mine, 0, '{"kind": "end"}\n', tmp_path).reason == "no_output"
    cut = '{"kind": "end", "reply": {"text": "x"}, "why": "length"}\n'
    assert judged(mine, 0, cut, tmp_path).reason == "truncated"
    assert judged(mine, 0, '{"kind": "part"}\n', tmp_path).reason == "no_result"
    assert judged(mine, 0, '{"kind": "end", "bad": true}\n', tmp_path).reason == "agent_error"


def test_described_provider_sees_its_variables_and_no_others(tmp_path: Path) -> None:
    mine = made(tmp_path, MINE)["mine"]
    environ = {"PATH": "/bin", "MINE_KEY": "k", "OPENAI_API_KEY": "o"}
    assert environment_for(mine, environ) == {"PATH": "/bin", "MINE_KEY": "k", "QUIET": "1"}
    assert environment_for(mine, environ | {"QUIET": "0"})["QUIET"] == "0"


def test_variant_of_a_built_in_provider_keeps_what_it_does_not_change(tmp_path: Path) -> None:
    command = 'command = "box -p 80:80 claude --permission-mode plan"'
    text = f'[providers.planner]\nlike = "claude"\n{command}\noutput = "json"\n'
    planner = made(tmp_path, text)["planner"]
    words = ("box", "-p", "80:80", "claude", "--permission-mode", "plan", "--print", "--output-format", "json")
    assert planner.argv() == (words, "json")
    assert (planner.rules, planner.reader) == (BUILT_IN["claude"].rules, BUILT_IN["claude"].reader)
    assert planner.setting == "providers.planner.command in PROVIDERS_FILE"


def test_table_of_a_built_in_name_changes_it_and_its_setting_still_wins(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[providers.claude]\ncommand = "/opt/claude"\nvariables = { MCP_TIMEOUT = "1" }\n')
    found = all_providers({"claude": ("claude",)}, "stdin", file)
    assert found["claude"].command == ("/opt/claude",)
    assert found["claude"].variables["MCP_TIMEOUT"] == "1"
    assert found["claude"].variables["CLAUDE_CODE_MAX_RETRIES"] == "2"
    assert all_providers({"claude": ("mine", "claude")}, "stdin", file)["claude"].command == ("mine", "claude")
    assert list(found) == list(BUILT_IN)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "x: every table must be called [providers.NAME]"),
        ("[providers.x", "is not valid TOML"),
        ("[providers.x]", "[providers.x] command: is missing"),
        ('[providers."X y"]\ncommand = "x"', "small letters, digits, dot, dash, underscore"),
        ('[providers.x]\ncommand = ""', "[providers.x] command: must be a program and its arguments"),
        ('[providers.x]\ncommand = "a \'b"', "[providers.x] command: does not split as in a shell"),
        (
            '[providers.x]\ncommand = "x"\noutptu = "json"',
            "[providers.x] outptu: is not known here; the keys are command,",
        ),
        (
            '[providers.x]\ncommand = "x"\noutput = "xml"',
            "[providers.x] output: must be one of text, json, stream-json",
        ),
        ('[providers.x]\ncommand = "x"\noutput = "json"', "[providers.x] reader: is missing"),
        ('[providers.x]\ncommand = "x"\noutput = "json"\nfields = {}', "fields.answer: is missing"),
        ('[providers.x]\ncommand = "x"\nfields = { answer = "a" }', '[providers.x] fields: need output = "json"'),
        ('[providers.x]\nlike = "claud"', "[providers.x] like: must be one of claude, gemini"),
        (
            '[providers.x]\ncommand = "x"\nprotocol = "codex"',
            "[providers.x] protocol: must be one of acp, claude, an empty text, is 'codex'",
        ),
        (
            '[providers.x]\ncommand = "x"\nauth_method = "api-key"',
            '[providers.x] auth_method: needs protocol = "acp"',
        ),
        (
            '[providers.x]\ncommand = "x --file={prompt_file}"',
            '[providers.x] command: {prompt_file} stands for something only with prompt = "file"',
        ),
        (
            '[providers.x]\ncommand = "x"\nprompt_flag = "--text"',
            '[providers.x] prompt_flag: needs prompt = "argument"',
        ),
        ('[providers.x]\ncommand = "x"\nenvironment = ["A=1"]', "[providers.x] environment: member 0 must match"),
        ('[providers.x]\ncommand = "x"\nvariables = { "A B" = "1" }', "variables.A B: is no name of a variable"),
        (
            '[providers.x]\ncommand = "x"\nsuccess = { exit_codes = [999] }',
            "success.exit_codes: member 0 must be a whole",
        ),
        ('[providers.x]\ncommand = "x"\nsuccess = { evidence = 1 }', "success.evidence: is not known here"),
        ('[providers.x]\ncommand = "x"\nfailures = 1', "failures: must be tables: [[providers.x.failures]]"),
        ('[providers.x]\ncommand = "x"\n[[providers.x.failures]]\nclass = "auth"', "failures[0].reason: is missing"),
        (
            '[providers.x]\ncommand = "x"\n[[providers.x.failures]]\nclass = "auth"\nreason = "a"',
            "failures[0]: needs signs, exit_codes or a pattern",
        ),
        (
            '[providers.x]\ncommand = "x"\n[[providers.x.failures]]\nclass = "auth"\nreason = "a"\npattern = "("',
            "failures[0].pattern: is no regular expression",
        ),
        (
            '[providers.x]\ncommand = "x"\npatterns.a = "b"\n[[providers.x.failures]]\nclass = "auth"\nreason = "a"\n'
            'pattern = "^{{c}}"',
            "failures[0].pattern: {{c}} is no pattern that is known here",
        ),
        (
            '[providers.x]\ncommand = "x"\n[[providers.x.failures]]\nclass = "auth"\nreason = "a"\n'
            'pattern = "{{claude.limits}}"',
            "failures[0].pattern: {{claude.limits}} is no pattern that is known here",
        ),
        (
            '[providers.x]\ncommand = "x"\n[[providers.x.failures]]\nclass = "auth"\nreason = "a"\npattern = "b"\n'
            'where = ["stdout"]',
            "failures[0].where: member 0 must be one of event, answer, start, last, stderr",
        ),
        ('[providers.x]\ncommand = "x"\narguments = [{ unless = ["a"] }]', "arguments[0].words: is missing"),
        ('[providers.x]\ncommand = "x"\ncures = { "A" = "b" }', "cures: member A must match"),
        (
            '[providers.x]\ncommand = "x"\n[[providers.x.failures]]\nclass = "bad"\nreason = "a"\npattern = "x"',
            "failures[0].class: must be one of transient, permanent, auth, limit",
        ),
    ],
)
def test_mistake_is_told_with_file_table_and_key(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as error:
        made(tmp_path, text)
    assert str(error.value).startswith(f"PROVIDERS_FILE={tmp_path / 'providers.toml'}: ")
    assert said in str(error.value)


@pytest.mark.parametrize("file", sorted(FILES.glob("*.toml")), ids=lambda file: file.stem)
def test_built_in_provider_is_a_file_that_anybody_could_write(file: Path) -> None:
    assert file.stem in {*BUILT_IN, "acp"}
    (made,) = read_file(file).values()  # this tries every pattern; those of the built-in record are not tried at start
    known = acp_rules() if file.stem == "acp" else BUILT_IN[file.stem].rules
    assert made.rules[: len(known)] == known
    for rule in known:
        assert rule.pattern is None or "{{" not in rule.pattern


def test_names_ranges_and_cures_of_a_file_are_put_into_its_rules(tmp_path: Path) -> None:
    text = """
[providers.x]
command = "x"
cures.too_slow = "wait for {provider}"
patterns.who = "cat|dog"
patterns.says = ["^{{who}} says ", "^it says "]
failures = [
  { class = "limit", reason = "usage_limit", pattern = ["{{says}}no", "{{claude.limit}}"] },
  { class = "transient", reason = "too_slow", signs = ["status:7-9"] },
  { class = "auth", reason = "billing", exit_codes = [3], where = ["last"], pattern = "a" },
]
"""
    limit, slow, billing = made(tmp_path, text)["x"].rules
    assert limit.pattern is not None
    for line in ("dog says no", "x\nit says no", "Claude usage limit reached|1763700000"):
        assert re.search(limit.pattern, line), line
    assert not re.search(limit.pattern, "a dog says no")
    assert slow.signs >= {"status:7", "status:8", "status:9"} and "status:10" not in slow.signs
    assert (slow.cure, limit.cure) == ("wait for {provider}", "")
    assert billing.cure.startswith("add credit") and billing.where == ("last",)


def test_braces_of_a_file_that_names_no_patterns_are_as_they_stand(tmp_path: Path) -> None:
    failure = '[[providers.x.failures]]\nclass = "auth"\nreason = "a"\npattern = "no {{name}}"'
    (rule,) = made(tmp_path, f'[providers.x]\ncommand = "x"\n{failure}')["x"].rules
    assert rule.pattern is not None and re.search(rule.pattern, "no {{name}}")


def test_command_line_of_a_described_provider_gets_its_arguments(tmp_path: Path) -> None:
    text = """
[providers.x]
command = "x --quiet"
output = "stream-json"
reader = "codex"
arguments = [
  { words = ["run"], unless = ["--quiet"] },
  { words = ["--as", "{output}"] },
  { words = ["--all"], only_for = "text" },
]
output_flags = ["--as"]
output_words = { plain = "text", lines = "stream-json" }
"""
    assert made(tmp_path, text)["x"].argv() == (("x", "--quiet", "--as", "lines"), "stream-json")
    plain = made(tmp_path, text.replace("--quiet", "--as plain"))["x"]
    assert plain.argv() == (("x", "--as", "plain", "run", "--all"), "text")


def test_documentation_names_every_key(tmp_path: Path) -> None:
    with pytest.raises(SettingError) as error:
        made(tmp_path, '[providers.x]\ncommand = "x"\noutptu = "json"')
    keys = str(error.value).rpartition("the keys are ")[2].split(", ")
    described = DOCS.read_text()
    assert [key for key in keys if f"`{key}`" not in described] == []


def test_default_provider_that_nobody_described_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="PROVIDER=aider: no such provider; name one of claude, gemini"):
        all_providers({}, "stdin", None, "aider")
    assert "x" in all_providers({"x": ("y",)}, "file", None, "x")


def test_example_of_the_documentation_loads_as_it_stands(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", DOCS.read_text(), re.S)
    assert example is not None
    found = made(tmp_path, example.group(1))
    assert {"aider", "planner", "our-agent"} <= set(found)


def test_file_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.toml").write_text("x = " + "[" * 100_000)
    with pytest.raises(SettingError, match="is not valid TOML"):
        read_file(tmp_path / "deep.toml")
