"""Take tasks over HTTP: POST /tasks and POST /webhook/<hook>; 202 means that the task is durable in its inbox.

GET /tasks/<id>, /results/<id>?wait=30, /workers and /events say what became of them; /docs describes all of it. Ends
at SIGTERM or Ctrl-C, when what is being accepted is accepted. Every flag is also a setting; --print-config shows all.
docs/webhook.md has examples. Needs the packages of the extra `web`: pip install 'watcher-suite[web]'.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from watcher.cli import command_output, entry_files
from watcher.errors import SettingError
from watcher.settings.config_base import render_config
from watcher.settings.layers import process_environment
from watcher.settings.webhook import load_webhook_config
from watcher.system.signals import signals

_FLAGS = {
    "host": ("WEBHOOK_HOST", "ADDRESS", "address to listen on"),
    "port": ("WEBHOOK_PORT", "P", "port to listen on, 0 for a free one"),
    "hooks": ("WEBHOOK_HOOKS_FILE", "FILE", "TOML file that says how foreign payloads become tasks"),
    "workers": ("WEBHOOK_WORKERS", "A,B", "workers that may be given tasks; else those that have an inbox"),
    "token_file": ("WEBHOOK_TOKEN_FILE", "FILE", "file with bearer tokens, one a line"),
    "log_level": ("LOG_LEVEL", "L", "DEBUG, INFO, WARNING, ERROR or CRITICAL"),
    "log_format": ("LOG_FORMAT", "F", "json or text"),
    "metrics_port": ("METRICS_PORT", "P", "port of the metrics, 0 for a free one"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for flag, (name, metavar, text) in _FLAGS.items():
        parser.add_argument(f"--{flag.replace('_', '-')}", metavar=metavar, help=f"{text} ({name})")
    parser.add_argument("--port-file", metavar="FILE", type=Path, help="write the port there once posts are taken")
    parser.add_argument("--print-config", action="store_true", help="show every setting and where it came from")
    parser.add_argument("--json", action="store_true", help="with --print-config: as JSON")


def run(options: argparse.Namespace) -> int:
    return entry_files.run("watcher webhook", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    pairs = ((name, getattr(options, flag)) for flag, (name, _, _) in _FLAGS.items())
    loaded = load_webhook_config({name: value for name, value in pairs if value is not None})
    if options.print_config:
        command_output.say(render_config(loaded, as_json=options.json))
        return 0
    try:
        from watcher.intake.webhook.service import WebhookService
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "h11", "anyio"):
            raise
        text = f"the package {error.name} is not installed; the HTTP endpoint needs: pip install 'watcher-suite[web]'"
        raise SettingError(text) from None
    command_output.places(makes_them=True)
    signals.block()
    asyncio.run(WebhookService(loaded.config, process_environment(), options.port_file).run())
    return 0
