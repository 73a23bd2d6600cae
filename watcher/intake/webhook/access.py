"""Decide who may call: a bearer token, a signature over the raw body, or only programs of this machine.

Every comparison of a secret takes the same time whatever was sent. Without any token the endpoint listens on the
loopback only, and then a browser is the danger: a page may send requests to 127.0.0.1 (so a post must be
application/json, which a page may not send across origins without being asked, and may not say that it comes from
another site) and may give its own name that address (DNS rebinding, so `Host` must be a name of the loopback).
Sources: Fetch standard, CORS-safelisted request headers; Fetch Metadata; GitHub, "Validating webhook deliveries".

Raises Refusal, which is an answer to the caller.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from watcher.errors import WatcherError
from watcher.telemetry.allowed_hosts import Hosts

SIGNATURE_HEADER = "X-Hub-Signature-256"
_PREFIX = b"sha256="
#: On the loopback, whatever address of it: the names of the loopback.
_LOCAL = Hosts("127.0.0.1")


class Refusal(WatcherError):
    """An answer that is no success. `reason` is a stable word, the message is for people."""

    def __init__(self, status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one endpoint. Without `tokens` and with `is_local`, programs of this machine need none."""

    tokens: tuple[bytes, ...] = field(repr=False)
    is_local: bool

    def check_reader(self, headers: Mapping[str, str]) -> None:
        """For everything that has no body to sign."""
        if not self.tokens:
            self._check_local(headers)
        elif not self._has_token(headers):
            raise _unauthorized("missing or wrong token; send Authorization: Bearer TOKEN")

    def check_poster_early(self, headers: Mapping[str, str], secret: bytes | None, header: str) -> None:
        """What can be refused before the body is read: a caller who shows nothing at all."""
        if secret is not None:
            if header not in headers:
                raise _unauthorized(f"missing signature; sign the body: {header}: sha256=...")
        elif not self.tokens:
            self._check_local(headers)
        elif header not in headers and not self._has_token(headers):
            raise _unauthorized(
                f"missing or wrong token; send Authorization: Bearer TOKEN, or sign the body: {header}: sha256=..."
            )

    def check_poster(self, headers: Mapping[str, str], body: bytes, secret: bytes | None, header: str) -> None:
        """The whole rule: with a secret only its signature counts, else a token or a signature made with one."""
        if secret is not None:
            if not is_signed(body, headers.get(header, ""), (secret,)):
                raise _unauthorized(f"{header} is not the HMAC-SHA256 of this body with the secret of this hook")
        elif not self.tokens:
            self._check_local(headers)
        elif not self._has_token(headers) and not is_signed(body, headers.get(header, ""), self.tokens):
            raise _unauthorized(f"{header} is not the HMAC-SHA256 of this body with a token")

    def _has_token(self, headers: Mapping[str, str]) -> bool:
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        shown = hashlib.sha256(_bytes(given.strip())).digest()
        # All are compared, so that time does not tell which one was near.
        matches = [hmac.compare_digest(shown, hashlib.sha256(token).digest()) for token in self.tokens]
        return any(matches)

    def _check_local(self, headers: Mapping[str, str]) -> None:
        if not self.is_local:
            raise Refusal(403, "no_token_set", "this endpoint has no token and takes only signed hooks")
        self.check_host(headers)

    def check_host(self, headers: Mapping[str, str]) -> None:
        """For everything that anyone may see: without a token, not under a name that a page gave us."""
        if self.is_local and not self.tokens and not _LOCAL.answers(headers.get("Host", "")):
            raise Refusal(403, "wrong_host", "refused: set WEBHOOK_TOKEN, or call it as localhost")

    def check_sender(self, headers: Mapping[str, str], kind: str, secret: bytes | None) -> None:
        """For a post that shows nothing, what a page in a browser cannot do: send JSON, as from our own address."""
        if secret is not None or self.tokens:
            return
        if kind != "application/json":
            raise Refusal(415, "not_json", "without a token Content-Type must be application/json")
        site, origin = headers.get("Sec-Fetch-Site", "none").lower(), headers.get("Origin")
        host = headers.get("Host", "").lower()
        ours = origin is None or origin.lower() in (f"http://{host}", f"https://{host}")
        if site not in ("same-origin", "none") or not ours:
            raise Refusal(403, "cross_site", "refused: a page of another site sent this; set WEBHOOK_TOKEN")


def is_signed(body: bytes, given: str, secrets: tuple[bytes, ...]) -> bool:
    """Whether `given` is `sha256=` and the HMAC-SHA256 of the body, in hex, with one of these secrets."""
    shown = _bytes(given).lower()
    wanted = [_PREFIX + hmac.new(secret, body, hashlib.sha256).hexdigest().encode() for secret in secrets]
    # Bytes: for texts compare_digest raises on anything that is not ASCII.
    return any([hmac.compare_digest(shown, one) for one in wanted])  # noqa: C419 - a list: all are compared


def _bytes(header: str) -> bytes:
    """A header as it came over the wire."""
    return header.encode("latin-1", "replace")


def _unauthorized(detail: str) -> Refusal:
    return Refusal(401, "unauthorized", detail, {"WWW-Authenticate": "Bearer"})
