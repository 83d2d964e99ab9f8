"""Authentication by a bearer key on every path but the public ones, and what each key may do.

The gate is a middleware around the whole application, so routers that are added later and paths that do not exist are
behind it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from contract.views.keys import KeyScope
from service.errors import AuthenticationError, PermissionDeniedError, error_response

PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json"})
"""Answered without a key: two probes that reveal nothing, and a document that is the same for everybody."""


_INCLUDED = {
    KeyScope.READ: frozenset({KeyScope.READ}),
    KeyScope.SUBMIT: frozenset({KeyScope.READ, KeyScope.SUBMIT}),
    KeyScope.ADMIN: frozenset(KeyScope),
}


@dataclass(frozen=True)
class Caller:
    """The owner of a request's key. An owner sees what was created with any of their keys, and nothing else."""

    key_id: str
    owner: str
    scopes: frozenset[KeyScope]

    def may(self, scope: KeyScope) -> bool:
        """Return True if one of the key's scopes includes `scope`."""
        return any(scope in _INCLUDED[held] for held in self.scopes)


class Keys(Protocol):
    """A store of keys."""

    def find(self, key: str) -> Caller | None:
        """Return the owner of a valid key, else None."""
        ...

    def find_cached(self, key: str) -> Caller | None:
        """Return the owner if the key is cached, without waiting; else None."""
        ...


class KeyGate:
    """Middleware: puts the `Caller` into ``request.state.caller``, or answers 401."""

    def __init__(self, app: ASGIApp, keys: Callable[[], Keys]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            scope.setdefault("state", {})["caller"] = await self._identify(Headers(scope=scope))
        except AuthenticationError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _identify(self, headers: Headers) -> Caller:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise AuthenticationError(
                "there is no key: send it as 'authorization: Bearer <key>'", code="missing_api_key"
            )
        keys = self._keys()
        caller = keys.find_cached(key.strip()) or await run_in_threadpool(keys.find, key.strip())
        if caller is None:
            raise AuthenticationError("the key is unknown or revoked")
        return caller


@dataclass(frozen=True)
class RequireScope:
    """Dependency: the caller, whose key must include `scope`."""

    scope: KeyScope

    async def __call__(self, request: Request) -> Caller:  # a coroutine, so that it takes no thread
        """Return the caller; raise `PermissionDeniedError`."""
        found: Caller = request.state.caller
        if not found.may(self.scope):
            held = ", ".join(sorted(found.scopes)) or "none"
            raise PermissionDeniedError(f"this call needs a key with scope {self.scope}; this key has {held}")
        return found


Reader = Annotated[Caller, Depends(RequireScope(KeyScope.READ))]
Submitter = Annotated[Caller, Depends(RequireScope(KeyScope.SUBMIT))]
Admin = Annotated[Caller, Depends(RequireScope(KeyScope.ADMIN))]
