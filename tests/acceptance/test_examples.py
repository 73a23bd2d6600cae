"""The examples of the README, as the README starts them."""

from __future__ import annotations

import json
import re
import shlex
import sys

from tests.acceptance.conftest import REPOSITORY, Site


def test_the_example_handler_counts_words_and_finds_the_longest(site: Site) -> None:
    command = shlex.join([sys.executable, str(REPOSITORY / "examples" / "word_count.py")])
    site.start(PROVIDER="handler", HANDLER_COMMAND=command, PYTHONPATH=str(REPOSITORY), MAX_RETRIES="0")
    site.drop("count", description="the cat and the dog")
    site.drop("longest", description="a big elephant", metadata={"handler": "longest"})
    assert json.loads(site.result("count")["stdout"]) == {"the": 2, "cat": 1, "and": 1, "dog": 1}
    assert site.result("longest")["stdout"] == "elephant"


def test_the_task_that_the_readme_writes_by_hand_completes_on_its_own(site: Site) -> None:
    readme = (REPOSITORY / "README.md").read_text()
    (text,) = re.findall(r"^cat > shared/tasks/marie/hello.json <<'END'\n(.*?)\nEND$", readme, re.MULTILINE | re.DOTALL)
    site.start()
    (site.inbox() / "hello.json").write_text(text)
    assert site.result("hello")["status"] == "completed"
