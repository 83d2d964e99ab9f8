"""Signing in to the dashboard, by a key or by a link that works once, and out."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from starlette.responses import RedirectResponse

from contract.views.keys import SignInLink
from service.auth import SESSION_COOKIE, SIGN_IN_PATH, SIGN_OUT_PATH, Reader, is_same_origin
from service.context import Context
from service.dashboard.pages import page
from service.errors import PermissionDeniedError
from service.keys.identity import looks_like_token
from service.keys.sessions import LIFETIME, LINK_LIFETIME
from service.rate_limit import RateLimits

router = APIRouter(include_in_schema=False)

MAX_TRIES_PER_MINUTE = 20
"""Most tries of one address, in one process. Keys are too long to be guessed; this keeps the database free of
attempts."""
_tries = RateLimits(MAX_TRIES_PER_MINUTE)

_WRONG_KEY = "This key is unknown or revoked. Check it for missing characters, or ask an admin for a new one."
_USED_LINK = "This link was used before, or is older than ten minutes. Sign in with a key, or print a new link."
_TOO_MANY = "There were too many attempts. Wait a minute, and try again."

Target = Annotated[str, Query(max_length=2000)]


@router.get(SIGN_IN_PATH)
def form(request: Request, context: Context, next: Target = "/", token: Target = "") -> Response:
    """Show the form; with the token of a link, sign in."""
    if not token:
        return _form(request, next)
    if _tries_too_often(request):
        return _form(request, next, _TOO_MANY, 429)
    session_token = context.sessions.open_by_link(token)
    return _form(request, next, _USED_LINK, 401) if session_token is None else _enter(request, session_token, next)


@router.post(SIGN_IN_PATH)
def sign_in(
    request: Request,
    context: Context,
    key: Annotated[str, Form(max_length=500)] = "",
    next: Annotated[str, Form(max_length=2000)] = "/",
) -> Response:
    """Open a session."""
    if not is_same_origin(request.headers):
        raise PermissionDeniedError("sign in from the form of this server", code="csrf_failed")
    if _tries_too_often(request):
        return _form(request, next, _TOO_MANY, 429)
    session_token = context.sessions.open(key.strip())
    return _form(request, next, _WRONG_KEY, 401) if session_token is None else _enter(request, session_token, next)


@router.post(SIGN_OUT_PATH)
def sign_out(request: Request, context: Context) -> Response:
    """End the session. The button is a form, which works before the page's scripts are there."""
    if not is_same_origin(request.headers):
        raise PermissionDeniedError("sign out from a page of this server", code="csrf_failed")
    context.sessions.end(request.cookies.get(SESSION_COOKIE, ""))
    response = RedirectResponse(SIGN_IN_PATH, status_code=303)
    response.delete_cookie(SESSION_COOKIE)
    return response


@router.post("/ui/sign-in-links", status_code=201)
def make_link(request: Request, context: Context, caller: Reader) -> SignInLink:
    """Make a link for the holder of a key, as ``trd up`` prints it. A session makes none: it would outlive itself."""
    _, _, key = request.headers.get("authorization", "").partition(" ")
    if not key or looks_like_token(key.strip()):
        raise PermissionDeniedError("send an API key itself as 'authorization: Bearer <key>'")
    path = f"{SIGN_IN_PATH}?token={context.sessions.make_link(key.strip())}"
    return SignInLink(path=path, expires_in_seconds=LINK_LIFETIME.total_seconds())


def _tries_too_often(request: Request) -> bool:
    address = request.client.host if request.client is not None else ""
    return _tries.take(address, time.monotonic()) < 0


def _form(request: Request, next: str, fault: str | None = None, status: int = 200) -> Response:
    return page(request, "sign_in.html", status=status, next=_local(next), fault=fault)


def _enter(request: Request, session_token: str, next: str) -> Response:
    response = RedirectResponse(_local(next), status_code=303)
    seconds, is_secure = int(LIFETIME.total_seconds()), request.url.scheme == "https"
    response.set_cookie(SESSION_COOKIE, session_token, max_age=seconds, httponly=True, samesite="lax", secure=is_secure)
    return response


def _local(target: str) -> str:
    """Return the target if it is a path on this server, else ``/``: a link must not lead to another site."""
    is_local = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if is_local else "/"
