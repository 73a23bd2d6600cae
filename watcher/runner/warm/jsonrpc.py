"""Write and read JSON-RPC 2.0, one message a line, as warm handlers speak it (https://www.jsonrpc.org/specification).

Bytes in, records out; no file, no clock. An empty line and a notification want nothing and are passed over. Any other
line that is no answer raises BadAnswer with what is wrong: after that nothing else that its writer says can be trusted.
Batches are not spoken.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from watcher.formats import strict_json

EXECUTE = "execute_handler"
PING = "ping"
SHUTDOWN = "shutdown"

METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
#: Errors that say the same however often one asks.
FOR_GOOD = frozenset({METHOD_NOT_FOUND, INVALID_PARAMS})

_SHOWN_CHARACTERS = 200


class BadAnswer(ValueError):
    """A line that is no answer of JSON-RPC 2.0, or no answer to what was asked."""


@dataclass(slots=True)
class Answer:
    """One response. Exactly one of `result` and `error` means something; `error` is None for a success."""

    number: int
    result: Any = None
    error: RpcError | None = None


@dataclass(slots=True)
class RpcError:
    """The error object of a response."""

    code: int
    message: str
    data: Any = None


@dataclass(slots=True)
class Executed:
    """The result of `execute_handler`. `output` is text: JSON when the handler gave anything else."""

    success: bool
    output: str
    stderr: str
    permanent: bool = False


def request(number: int, method: str, params: dict[str, Any]) -> bytes:
    """A request as one line. Half surrogate pairs become question marks."""
    return strict_json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params})


def notification(method: str) -> bytes:
    """A request that wants no answer, as one line."""
    return strict_json.dumps({"jsonrpc": "2.0", "method": method})


def parse_answer(line: bytes) -> Answer | None:
    """Read one line; None for one that wants nothing. Raises BadAnswer."""
    found = parse_line(line)
    if found is None or (_is_spoken(found) and isinstance(found.get("method"), str) and "id" not in found):
        return None
    if not _is_spoken(found) or ("result" in found) == ("error" in found):
        raise BadAnswer(f"a line that is no JSON-RPC 2.0 response: {_shown(line)}")
    number: int = found["id"] if _is_number(found.get("id")) else -1
    if "error" in found:
        return Answer(number, error=_error(found["error"], line))
    if number < 0:
        raise BadAnswer(f"a response without the id of a request: {_shown(line)}")
    return Answer(number, found["result"])


def parse_line(line: bytes) -> Any:
    """The JSON of one line; None for an empty one. Raises BadAnswer, also for a key that stands twice: one reader would
    take the first of them for the answer, another one the last."""
    if not line.strip():
        return None
    try:
        found = json.loads(line, object_pairs_hook=strict_json.without_duplicates)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        found = None
    except ValueError as error:
        raise BadAnswer(f"{error}: {_shown(line)}") from None
    if found is None:
        raise BadAnswer(f"a line that is not JSON: {_shown(line)}")
    return found


def parse_executed(result: Any) -> Executed:
    """Read the result of `execute_handler`. Raises BadAnswer."""
    if not isinstance(result, dict) or not isinstance(result.get("success"), bool):
        raise BadAnswer("the result must be an object with success (true or false), output and stderr")
    stderr = result.get("stderr")
    if stderr is not None and not isinstance(stderr, str):
        raise BadAnswer("stderr in the result must be text")
    return Executed(result["success"], _text(result.get("output")), stderr or "", result.get("permanent") is True)


def _text(output: Any) -> str:
    if isinstance(output, str):
        return output
    if output is None:
        return ""
    try:
        return json.dumps(output, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        raise BadAnswer("output in the result holds NaN, Infinity or too many levels") from None


def _error(error: Any, line: bytes) -> RpcError:
    if not isinstance(error, dict) or not _is_number(error.get("code")) or not isinstance(error.get("message"), str):
        raise BadAnswer(f"an error without code and message: {_shown(line)}")
    return RpcError(error["code"], error["message"])


def _is_spoken(found: Any) -> bool:
    return isinstance(found, dict) and found.get("jsonrpc") == "2.0"


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(line: bytes) -> str:
    """The start of a line for people; it may hold anything."""
    text = line[:_SHOWN_CHARACTERS].decode("utf-8", "replace").strip()
    return repr(text) + ("..." if len(line) > _SHOWN_CHARACTERS else "")
