"""What people read who begin: what `--setup` has made and what comes next, and examples to paste into a shell."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from watcher.cli.terminal import count

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

#: What people type to serve a worker, and to give it tasks.
WORKER = "python worker_watcher.py"
DEMO = "python demo_watcher.py"


def setup_text(made: Sequence[Path], there: Sequence[Path], workers: Sequence[str], root: Path) -> str:
    """What `--setup` did and what comes next."""
    lines = [f"made   {path}" for path in made]
    if there:
        lines.append(f"{count(len(there), 'folder')} {'was' if len(there) == 1 else 'were'} there already")
    first = workers[0]
    lines += [
        "",
        "Next:",
        f"  {WORKER} {first:<24}   # serve {first}, in a terminal of its own; Ctrl-C ends it",
        f'  {DEMO} --task {first} "List files" --wait',
        f"  {DEMO} --status",
        "",
        f"Without an account: PROVIDER=command AGENT_COMMAND='python -m watcher.standin' {WORKER} {first}",
    ]
    umask = os.umask(0o077)
    os.umask(umask)
    if umask & 0o044 != 0o044:
        lines += [
            "",
            f"Other users of this machine can read tasks and results (umask {umask:03o}). On a shared machine:",
            f"  umask 077; chmod -R go-rwx {shlex.quote(os.fspath(root))}   # before workers are started",
        ]
    return "\n".join(lines)


def examples_text(folders: Folders, worker: str = "marie") -> str:
    """Things to paste into a shell. Lines that start with # explain, the others run."""
    inbox, results, letters = (folders.tasks / worker, folders.results / worker, folders.dlq / worker)
    quoted = {name: shlex.quote(os.fspath(path)) for name, path in
              (("inbox", inbox), ("results", results), ("dlq", letters), ("beats", folders.heartbeats))}  # fmt: skip
    return _EXAMPLES.format(worker=worker, task=DEMO, serve=WORKER, **quoted)


_EXAMPLES = """\
# --- a task by hand: only "description" is needed; the file's name is the task's id
cat > {inbox}/hello.json <<'END'
{{ "description": "List the files in this folder" }}
END

# --- the same with a rename: nobody ever sees half a file
cat > {inbox}/.hello2.tmp <<'END'
{{ "description": "Say hello" }}
END
mv {inbox}/.hello2.tmp {inbox}/hello2.json

# --- priority: critical, high, normal, low or a number from -1000 to 1000; a higher one is taken first
cat > {inbox}/urgent.json <<'END'
{{ "description": "Look at the failing build", "priority": "critical", "timeout": 120 }}
END

# --- one task after others: it waits for their results, and their answers are filled in
cat > {inbox}/outline.json <<'END'
{{ "description": "Write an outline about lighthouses" }}
END
cat > {inbox}/text.json <<'END'
{{ "description": "Write the text for this outline: {{{{outline.stdout}}}}", "dependencies": ["outline"] }}
END
# (a task of another worker is named like anga/outline, in both places)

# --- not before a time
cat > {inbox}/tonight.json <<END
{{ "description": "Summarise the day", "not_before": "$(date -u -d '+10 minutes' +%Y-%m-%dT%H:%M:%SZ)" }}
END

# --- in order: tasks with one agent_id run one at a time, oldest first
cat > {inbox}/step-1.json <<'END'
{{ "description": "Step one", "agent_id": "release" }}
END
cat > {inbox}/step-2.json <<'END'
{{ "description": "Step two", "agent_id": "release" }}
END

# --- the same from the command line
{task} --task {worker} "List files" --wait
{task} --task {worker} "Fix it" --priority high --timeout 300 --after outline,step-1 --meta ticket=42
git diff | {task} --task {worker} - --id review-42
{task} --batch 10 --worker {worker} --text "Task {{n}} of {{total}}: say hello"

# --- what became of them
ls {results}              # one file for each task that ended; never changed after
cat {results}/hello.json  # status, stdout, stderr, exit_code, attempts, ...
ls {dlq}                  # what failed for good or could not be read, and why (dlq_reason, dlq_detail)
ls {beats}                # one heartbeat for each worker process
{task} --status
{task} --watch            # Ctrl-C ends it

# --- workers and settings: flag, environment, .env, default; the first one that is there wins
# {serve} {worker} --max-concurrent 5 --log-format text
# {serve} {worker} --print-config
# WATCHER_ROOT=/srv/agents CLAUDE_COMMAND="claude --verbose" {serve} {worker}
# PROVIDER=command AGENT_COMMAND='python -m watcher.standin' {serve} {worker}    # without an account"""
