"""Who may call the endpoint: tokens, signatures, and names of the loopback."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from watcher.intake.webhook.access import SIGNATURE_HEADER, Access, Refusal, is_signed

#: The example of GitHub's documentation, "Validating webhook deliveries".
GITHUB_SECRET = b"It's a Secret to Everybody"
GITHUB_SIGNATURE = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
TOKENS = (b"first-token-0123456", b"second-token-012345")


def status(access: Access, headers: dict[str, str], body: bytes = b"", secret: bytes | None = None) -> int:
    given = Headers(headers)
    try:
        access.check_poster_early(given, secret, SIGNATURE_HEADER)
        access.check_poster(given, body, secret, SIGNATURE_HEADER)
    except Refusal as refusal:
        return refusal.status
    return 200


def test_signature_of_githubs_example_is_taken_and_no_other() -> None:
    assert is_signed(b"Hello, World!", GITHUB_SIGNATURE, (GITHUB_SECRET,))
    assert is_signed(b"Hello, World!", GITHUB_SIGNATURE.upper(), (GITHUB_SECRET,))
    assert not is_signed(b"Hello, World! ", GITHUB_SIGNATURE, (GITHUB_SECRET,))
    assert not is_signed(b"Hello, World!", GITHUB_SIGNATURE.removeprefix("sha256="), (GITHUB_SECRET,))
    assert not is_signed(b"Hello, World!", GITHUB_SIGNATURE, ())


@given(st.text(max_size=80), st.binary(max_size=20))
def test_no_text_is_an_error_instead_of_a_wrong_signature(header: str, body: bytes) -> None:
    right = "sha256=" + hmac.new(GITHUB_SECRET, body, hashlib.sha256).hexdigest()
    assert is_signed(body, header, (GITHUB_SECRET,)) is (header.lower() == right)


@pytest.mark.parametrize("token", TOKENS)
def test_every_token_is_good_as_bearer_and_as_key_of_a_signature(token: bytes) -> None:
    access = Access(TOKENS, is_local=True)
    assert status(access, {"Authorization": f"bearer  {token.decode()} "}) == 200
    signature = "sha256=" + hmac.new(token, b"body", hashlib.sha256).hexdigest()
    assert status(access, {SIGNATURE_HEADER: signature}, b"body") == 200
    assert status(access, {SIGNATURE_HEADER: signature}, b"other") == 401
    with pytest.raises(Refusal):
        access.check_reader(Headers({SIGNATURE_HEADER: signature}))  # a signature of nothing reads nothing


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200), ("localhost:8787", 200), ("127.0.0.1:1", 200), ("[::1]:8787", 200), ("[::1]", 200),
        ("LocalHost", 200), ("", 403), ("evil.example", 403), ("localhost.evil.example:8787", 403), ("[::2]:1", 403),
        ("127.0.0.1.evil.example", 403), ("localhost:1:2", 403), ("evil.example#localhost", 403),
    ],
)  # fmt: skip
def test_without_a_token_only_names_of_the_loopback_are_answered(host: str, expected: int) -> None:
    assert status(Access((), is_local=True), {"Host": host}) == expected


def test_on_another_address_without_a_token_only_signed_hooks_are_taken() -> None:
    access = Access((), is_local=False)
    assert status(access, {"Host": "localhost"}) == 403
    assert status(access, {SIGNATURE_HEADER: GITHUB_SIGNATURE}, b"Hello, World!", GITHUB_SECRET) == 200
    assert status(access, {SIGNATURE_HEADER: GITHUB_SIGNATURE}, b"Hello", GITHUB_SECRET) == 401


def test_secrets_are_not_in_what_is_printed_of_the_rules() -> None:
    assert "first-token" not in repr(Access(TOKENS, is_local=True))
