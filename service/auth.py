"""Who is asking: a bearer key on every path but the public ones, and what a key may do.

The gate is a middleware around the whole application, so that a router that is added later, or a path
that does not exist, is behind it too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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
"""Answered without a key: two probes that show nothing, and a document that is the same for all."""


_INCLUDED = {
    KeyScope.READ: frozenset({KeyScope.READ}),
    KeyScope.SUBMIT: frozenset({KeyScope.READ, KeyScope.SUBMIT}),
    KeyScope.ADMIN: frozenset(KeyScope),
}


@dataclass(frozen=True)
class Caller:
    """Whose key it is. An owner sees what was made with any of their keys, and nothing else."""

    key_id: str
    owner: str
    scopes: frozenset[KeyScope]

    def may(self, scope: KeyScope) -> bool:
        """True where one of the key's scopes includes `scope`."""
        return any(scope in _INCLUDED[held] for held in self.scopes)


class Keys(Protocol):
    """Where keys are known."""

    def find(self, key: str) -> Caller | None:
        """Whose key it is, if it is one and is not revoked."""
        ...

    def find_cached(self, key: str) -> Caller | None:
        """The same from memory, without waiting; None where memory does not know."""
        ...


class KeyGate:
    """Lets a request through with its `Caller` in ``request.state.caller``."""

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
            raise AuthenticationError("no key: send it as 'authorization: Bearer <key>'", code="missing_api_key")
        keys = self._keys()
        caller = keys.find_cached(key.strip()) or await run_in_threadpool(keys.find, key.strip())
        if caller is None:
            raise AuthenticationError("the key is not known here, or was revoked")
        return caller


def require(scope: KeyScope) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency: the caller, whose key must include `scope`."""

    async def caller(request: Request) -> Caller:  # waits for nothing, and takes no thread
        found: Caller = request.state.caller
        if not found.may(scope):
            held = ", ".join(sorted(found.scopes)) or "none"
            raise PermissionDeniedError(f"this call needs a key with scope {scope}; this one has {held}")
        return found

    return caller


Reader = Annotated[Caller, Depends(require(KeyScope.READ))]
Submitter = Annotated[Caller, Depends(require(KeyScope.SUBMIT))]
Admin = Annotated[Caller, Depends(require(KeyScope.ADMIN))]
