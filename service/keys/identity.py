"""Tokens of an identity provider (OpenID Connect) as bearer keys: ``TRD_OIDC_ISSUER`` and its companions.

PyJWT checks signature, issuer, audience and times; here are the provider's keys, the owner and the role of a token. A
token is remembered for at most a minute, so that removing a person at the provider takes effect with the token's end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt

from service.auth import Caller
from service.errors import AuthenticationError, UnavailableError
from service.keys.secret import key_digest
from service.keys.service import KeyRing
from service.settings import Settings

logger = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
"""Signatures with a public key only: with a shared secret, whoever can check a token can also make one."""
LEEWAY_SECONDS = 30.0
REMEMBER_SECONDS = 60.0
KEYS_SECONDS = 600.0
"""How long the provider's keys are used before they are read again."""
REFRESH_SECONDS = 10.0
"""Least time between two readings, also failed ones: strangers' tokens must not make the service ask every time."""
REQUEST_SECONDS = 5.0
WAIT_SECONDS = 1.0
"""Longest wait for another thread's reading: strangers' tokens must not occupy all threads if the provider hangs."""
MAX_REMEMBERED = 10_000
MAX_TOKEN_CHARACTERS = 16_384
KEY_PREFIX = "oidc:"
"""Begins the ``key_id`` of a caller with a token; its subject follows."""


class IdentityTokens:
    """Recognises the tokens of one issuer."""

    def __init__(self, settings: Settings) -> None:
        self._issuer = settings.oidc_issuer or ""
        self._audience = settings.oidc_audience
        self._owner_claim = settings.oidc_owner_claim
        self._groups_claim = settings.oidc_groups_claim
        self._roles = settings.oidc_roles
        self._known: dict[str, tuple[Caller, float]] = {}
        """Callers by the digests of their tokens, with the time.time() until which they are remembered."""
        self._ends: dict[str, float] = {}
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at = self._tried_at = float("-inf")
        self._failure: str | None = None
        """Why the last reading failed."""
        self._reading = threading.Lock()

    def find(self, token: str) -> Caller:
        """Return the token's owner; raise `AuthenticationError`, and `UnavailableError` if the provider is away."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise AuthenticationError("the token is too long")
        try:
            header = jwt.get_unverified_header(token)
            claims = jwt.decode(
                token,
                self._key(str(header.get("kid", ""))),
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise AuthenticationError(f"the token is refused: {error}", code="invalid_token") from None
        caller = self._caller(claims)
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
            self._ends.clear()
        ends_at = float(claims["exp"]) + LEEWAY_SECONDS
        self._known[key_digest(token, "")] = (caller, min(ends_at, time.time() + REMEMBER_SECONDS))
        self._ends[caller.key_id] = max(ends_at, self._ends.get(caller.key_id, 0.0))
        return caller

    def find_cached(self, token: str) -> Caller | None:
        """Return the owner if the token was checked within the last minute."""
        caller, until = self._known.get(key_digest(token, ""), (None, 0.0))
        return caller if time.time() < until else None

    def is_good(self, key_id: str) -> bool:
        """Return True if the subject's newest token has not ended."""
        return time.time() < self._ends.get(key_id, 0.0)

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        owner = claims.get(self._owner_claim)
        if not isinstance(owner, str) or not 0 < len(owner) <= 100 or not owner.isprintable():
            raise AuthenticationError(
                f"the token's claim {self._owner_claim} is no text of 1 to 100 printable characters",
                code="invalid_token",
            )
        groups = claims.get(self._groups_claim)
        members = [groups] if isinstance(groups, str) else groups if isinstance(groups, list) else []
        names = [f"owner:{owner}", *(f"group:{group}" for group in members if isinstance(group, str)), "*"]
        scopes = frozenset(self._roles[name] for name in names if name in self._roles)
        return Caller(f"{KEY_PREFIX}{claims['sub']}"[:200], owner, scopes)

    def _key(self, kid: str) -> jwt.PyJWK:
        """Return the provider's key; older keys do while it is away. One thread reads, and none waits for it long."""
        if self._reading.acquire(timeout=WAIT_SECONDS):
            try:
                now = time.monotonic()
                is_old = kid not in self._keys or now - self._read_at > KEYS_SECONDS
                if is_old and now - self._tried_at > REFRESH_SECONDS:
                    self._tried_at = now
                    self._refresh(now)
            finally:
                self._reading.release()
        if kid in self._keys:
            return self._keys[kid]
        if self._failure is not None:
            raise UnavailableError(self._failure, code="identity_provider_unavailable")
        raise jwt.InvalidKeyError(f"the issuer has no key {kid!r}")

    def _refresh(self, now: float) -> None:
        try:
            self._keys, self._read_at, self._failure = self._read_keys(), now, None
        except (httpx.HTTPError, ValueError, jwt.PyJWTError) as error:
            logger.warning("the keys of %s cannot be read: %s", self._issuer, error)
            reason = type(error).__name__
            self._failure = f"the identity provider's keys cannot be read ({reason}): try again, or use an API key"

    def _read_keys(self) -> dict[str, jwt.PyJWK]:
        with httpx.Client(timeout=REQUEST_SECONDS) as http:
            document = _json(http, f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
            if document.get("issuer") != self._issuer:
                raise ValueError(f"the document names the issuer {document.get('issuer')!r}")
            address = str(document.get("jwks_uri", ""))
            if urlsplit(address).scheme != urlsplit(self._issuer).scheme:
                raise ValueError("its keys have an address of another scheme")
            found = _json(http, address)
        return {key.key_id: key for key in jwt.PyJWKSet.from_dict(found).keys if key.key_id}


def _json(http: httpx.Client, url: str) -> dict[str, Any]:
    answer = http.get(url)
    answer.raise_for_status()
    document = answer.json()
    if not isinstance(document, dict):
        raise ValueError("the answer is no JSON object")
    return document


def looks_like_token(key: str) -> bool:
    """Return True for three parts with points between them, which no key of ours has."""
    return key.count(".") == 2


class Bearers:
    """What is recognised behind ``authorization: Bearer``: API keys, and tokens if there is an issuer."""

    def __init__(self, keys: KeyRing, tokens: IdentityTokens | None) -> None:
        self._keys = keys
        self._tokens = tokens

    def find(self, key: str) -> Caller | None:
        """Return the owner, else None; a token that is refused raises `AuthenticationError` with the reason."""
        return self._tokens.find(key) if self._tokens is not None and looks_like_token(key) else self._keys.find(key)

    def find_cached(self, key: str) -> Caller | None:
        """Return the owner without waiting, else None."""
        if self._tokens is not None and looks_like_token(key):
            return self._tokens.find_cached(key)
        return self._keys.find_cached(key)

    def is_good(self, key_id: str) -> bool:
        """Return True if the key, or the newest token of the subject, still holds."""
        if self._tokens is not None and key_id.startswith(KEY_PREFIX):
            return self._tokens.is_good(key_id)
        return self._keys.is_good(key_id)
