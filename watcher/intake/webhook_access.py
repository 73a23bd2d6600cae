"""Who may call: a bearer token, a signature over the raw body, or nobody but programs of this machine.

Every comparison of a secret takes the same time whatever was sent. Without any token the endpoint listens on the
loopback only, and then a browser is the danger: a page may send requests to 127.0.0.1 (so a post must be
application/json, which a page may not send across origins without being asked) and may give its own name that address
(DNS rebinding, so `Host` must be a name of the loopback). Sources: Fetch standard, CORS-safelisted request headers;
GitHub, "Validating webhook deliveries".

Raises Refusal, which is an answer to the caller.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from watcher.errors import WatcherError

SIGNATURE_HEADER = "X-Hub-Signature-256"
_PREFIX = b"sha256="
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


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
    port_names: frozenset[str] = field(default=_LOCAL_NAMES)

    def check_reader(self, headers: Mapping[str, str]) -> None:
        """For everything that has no body to sign."""
        if not self.tokens:
            self._check_local(headers)
        elif not self._has_token(headers):
            raise _unauthorized("show the token: Authorization: Bearer ...")

    def check_poster_early(self, headers: Mapping[str, str], secret: bytes | None, header: str) -> None:
        """What can be refused before the body is read: a caller who shows nothing at all."""
        if secret is not None:
            if header not in headers:
                raise _unauthorized(f"sign the body: {header}: sha256=...")
        elif not self.tokens:
            self._check_local(headers)
        elif header not in headers and not self._has_token(headers):
            raise _unauthorized(
                f"show the token, Authorization: Bearer ..., or sign the body with it, {header}: sha256=..."
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
            raise Refusal(403, "no_token_set", "this endpoint has no token, so only signed hooks are taken here")
        host = headers.get("Host", "")
        name = host[: host.rfind(":")] if host.rfind(":") > host.rfind("]") else host
        if name.lower() not in self.port_names:
            raise Refusal(
                403, "wrong_host", "without a token only requests to localhost are answered; set WEBHOOK_TOKEN"
            )


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
