"""An agent that speaks the Agent Client Protocol through the package agent-client-protocol, which others wrote.

    python acp_peer.py NOTES

The prompt says what it does: `say TEXT`, `long N` (N characters in one message), `ask` (a permission, then a file we do
not offer), `silent`, `refuse`, `cut`, `login`, `status N` (an error with that code), `hang`, `die`, `garbage`,
`stray` (an answer to nothing), `flood` (300 kB on stderr). It answers with the number of prompts its session has had.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from typing import Any

import acp
from acp.schema import AllowedOutcome, PermissionOption, ToolCallUpdate


def note(text: str) -> None:
    with open(sys.argv[1], "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {text}\n")


class Peer(acp.Agent):
    """Everything that these tests ask of an agent."""

    def on_connect(self, conn: Any) -> None:
        self.client = conn
        self.turns: dict[str, int] = {}

    async def initialize(self, protocol_version: int, **more: Any) -> acp.InitializeResponse:
        note("started")
        return acp.InitializeResponse(protocol_version=protocol_version)

    async def new_session(self, cwd: str, **more: Any) -> acp.NewSessionResponse:
        session = uuid.uuid4().hex
        self.turns[session] = 0
        note(f"session {cwd}")
        return acp.NewSessionResponse(session_id=session)

    async def cancel(self, session_id: str, **more: Any) -> None:
        note("cancelled")
        os._exit(0)

    async def prompt(self, prompt: list[Any], session_id: str, **more: Any) -> acp.PromptResponse:
        self.turns[session_id] += 1
        word, _, rest = prompt[0].text.partition(" ")
        reasons = {"refuse": "refusal", "cut": "max_tokens"}
        if word == "login":
            raise acp.RequestError(-32000, "Authentication required")
        if word == "status":
            raise acp.RequestError(int(rest), "the model says no")
        if word == "hang":
            note("hangs")
            await asyncio.sleep(600)
        if word == "die":
            os._exit(7)
        if word in ("garbage", "stray"):
            line = b"this is no message\n" if word == "garbage" else b'{"jsonrpc":"2.0","id":999,"result":{}}\n'
            os.write(1, line)
            await asyncio.sleep(600)
        if word == "flood":
            sys.stderr.write("x" * 300_000 + "\n")
            sys.stderr.flush()
        if word == "ask":
            rest = await self._ask(session_id)
        if word == "long":
            rest = "y" * int(rest)
        if word not in ("silent", "refuse", "cut"):
            text = f"{rest} (turn {self.turns[session_id]})"
            await self.client.session_update(session_id, acp.update_agent_message_text(text))
        return acp.PromptResponse(stop_reason=reasons.get(word, "end_turn"))

    async def _ask(self, session: str) -> str:
        options = [
            PermissionOption(option_id="no", name="no", kind="reject_once"),
            PermissionOption(option_id="ever", name="ever", kind="allow_always"),
            PermissionOption(option_id="once", name="once", kind="allow_once"),
        ]
        call = ToolCallUpdate(tool_call_id="t", title="a tool")
        answer = await self.client.request_permission(session_id=session, tool_call=call, options=options)
        chosen = answer.outcome.option_id if isinstance(answer.outcome, AllowedOutcome) else "cancelled"
        try:
            await self.client.read_text_file(path="/etc/hostname", session_id=session)
            return f"{chosen} and a file"
        except acp.RequestError as error:
            return f"{chosen} {error.code}"


asyncio.run(acp.run_agent(Peer()))
