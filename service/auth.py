"""Authentication on every path but the public ones, by a bearer key or by the dashboard's session cookie, and what
each key may do.

The gate is a middleware around the whole application, so routers that are added later and paths that do not exist are
behind it too. A session may do what its key may, on the whole API: the dashboard's scripts call it as clients do. A
browser sends the cookie for other sites' requests too, so what changes something needs the session's CSRF token in a
header, and an ``Origin`` that is this server.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeVar
from urllib.parse import quote, urlsplit

from fastapi import Depends
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from contract.views.keys import KeyScope
from service.audit.log import acting_as
from service.errors import ApiError, AuthenticationError, PermissionDeniedError, error_response

SIGN_IN_PATH = "/ui/sign-in"
SIGN_OUT_PATH = "/ui/sign-out"
PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json", SIGN_IN_PATH, SIGN_OUT_PATH})
"""Answered without a key: two probes that reveal nothing, a document that is the same for everybody, and the forms,
which look at the origin and the session themselves."""
STATIC_PREFIX = "/ui/static/"
"""Style and scripts of the dashboard, the same for everybody."""
SESSION_COOKIE = "trd_session"
CSRF_HEADER = "x-csrf-token"


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


@dataclass(frozen=True)
class SignedIn:
    """An open session of a browser."""

    caller: Caller
    """The owner of the key that opened it."""
    csrf_token: str
    """Pages contain it and scripts send it back: another site can make the browser send the cookie, but cannot read
    this."""


Found_co = TypeVar("Found_co", covariant=True)


class Store(Protocol[Found_co]):
    """A store of keys, which finds their owners, or of sessions."""

    def find(self, secret: str) -> Found_co | None:
        """Return what a valid key or the token of an open session stands for, else None."""
        ...

    def find_cached(self, secret: str) -> Found_co | None:
        """Return the same if it is cached, without waiting; else None."""
        ...


class KeyGate:
    """Middleware: puts the `Caller` into ``request.state.caller``, or answers 401; a browser that asks for a page of
    the dashboard is led to the form instead."""

    def __init__(
        self, app: ASGIApp, keys: Callable[[], Store[Caller]], sessions: Callable[[], Store[SignedIn]]
    ) -> None:
        self._app = app
        self._keys = keys
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS or scope["path"].startswith(STATIC_PREFIX):
            await self._app(scope, receive, send)
            return
        state, headers = scope.setdefault("state", {}), Headers(scope=scope)
        token = cookie_parser(headers.get("cookie", "")).get(SESSION_COOKIE)
        try:
            if token and "authorization" not in headers:
                signed_in = await self._resume(token)
                state["caller"], state["csrf_token"] = signed_in.caller, signed_in.csrf_token
                if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                    _require_own_page(headers, signed_in)
            else:
                state["caller"] = await self._identify(headers)
        except ApiError as error:
            is_lost = isinstance(error, AuthenticationError) and wants_page(scope)
            answer = _to_sign_in(scope) if is_lost else error_response(error)
            await answer(scope, receive, send)
            return
        caller: Caller = state["caller"]
        acting_as(caller.owner, caller.key_id, state.get("request_id", ""))
        await self._app(scope, receive, send)

    async def _resume(self, token: str) -> SignedIn:
        sessions = self._sessions()
        found = sessions.find_cached(token) or await run_in_threadpool(sessions.find, token)
        if found is None:
            raise AuthenticationError("the session has ended: sign in again", code="session_ended")
        return found

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


def wants_page(scope: Scope) -> bool:
    """Return True if a browser asks for a page of the dashboard, and not a script for data."""
    is_page = scope["path"] == "/" or scope["path"].startswith("/ui/")
    return is_page and "text/html" in Headers(scope=scope).get("accept", "")


def is_same_origin(headers: Headers) -> bool:
    """Return True if the request comes from a page of this server. Proxies may end TLS, so only hosts are compared."""
    return urlsplit(headers.get("origin", "")).netloc == headers.get("host", "")


def _require_own_page(headers: Headers, signed_in: SignedIn) -> None:
    sent = headers.get(CSRF_HEADER, "").encode()
    if not is_same_origin(headers) or not hmac.compare_digest(sent, signed_in.csrf_token.encode()):
        raise PermissionDeniedError(
            f"a session may change something only from its own pages, with their {CSRF_HEADER}; reload the page",
            code="csrf_failed",
        )


def _to_sign_in(scope: Scope) -> Response:
    query = scope["query_string"].decode("latin-1")
    target = scope["path"] + (f"?{query}" if query else "")
    return RedirectResponse(f"{SIGN_IN_PATH}?next={quote(target, safe='')}", status_code=303)


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
