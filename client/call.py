"""A request as a value, when to send it again, and how to parse the response. Sends nothing."""

from __future__ import annotations

import json
import random
import reprlib
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import RetryCallState, retry_if_exception, stop_after_attempt

from client.errors import (
    ApiError,
    ConnectionFailedError,
    InvalidValueError,
    Refusal,
    TimedOutError,
    TrdError,
    UnexpectedAnswerError,
    api_error,
)
from client.settings import ClientSettings

ViewT = TypeVar("ViewT", bound=BaseModel)
ViewT_co = TypeVar("ViewT_co", bound=BaseModel, covariant=True)

FIRST_PAUSE_SECONDS = 0.3
LONGEST_PAUSE_SECONDS = 20.0
MAX_FIELD_DEPTH = 20
LONGEST_RETRY_AFTER_SECONDS = 60.0
_PASSING_STATUSES = frozenset({408, 502, 503, 504})
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Body(Protocol):
    """A request body that is sent in pieces, from its beginning each time."""

    def pieces(self) -> Iterator[bytes]:
        """Yield the pieces for the sync client."""
        ...

    def async_pieces(self) -> AsyncIterator[bytes]:
        """Yield the pieces for the async client."""
        ...


@dataclass(frozen=True)
class Call(Generic[ViewT_co]):
    """One request and the type of its response."""

    method: str
    path: str
    view: type[ViewT_co]
    params: Mapping[str, Any] = field(default_factory=dict)
    """None values are omitted; a list repeats its parameter."""
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    is_repeatable: bool = True
    """Whether sending the request twice has the same effect as sending it once."""
    accepted_statuses: frozenset[int] = frozenset()
    """Statuses besides 2xx whose response has the type `view`."""
    read_seconds: float | None = None
    """Longest wait for the response; None takes the value of the settings."""

    def request(self, content: Any = None) -> dict[str, Any]:
        """Return the arguments of ``httpx.Client.build_request``; `content` are the pieces of `body`.

        Raises `InvalidValueError` if `json` cannot be written.
        """
        headers = dict(self.headers)
        if self.json is not None:
            content = json_text(self.json).encode()
            headers["content-type"] = "application/json"
        return {
            "method": self.method,
            "url": self.path,
            "params": {name: value for name, value in self.params.items() if value is not None},
            "headers": headers,
            "content": content,
        }


def json_text(document: Any) -> str:
    """Return `document` as JSON; raises `InvalidValueError`, which names the first field that JSON cannot hold."""
    if (text := _as_json(document)) is not None:
        return text
    path: list[str] = []
    value = document
    while len(path) < MAX_FIELD_DEPTH and isinstance(value, dict | list | tuple):
        children = value.items() if isinstance(value, dict) else enumerate(value)
        wrong = next(((name, child) for name, child in children if _as_json(child) is None), None)
        if wrong is None:  # a key is at fault
            break
        path.append(str(wrong[0]))
        value = wrong[1]
    shown = "an integer of thousands of digits" if isinstance(value, int) else " ".join(reprlib.repr(value).split())
    raise InvalidValueError(
        f"{'.'.join(path) or 'the request'} = {shown}: JSON cannot hold this value",
        hint="give text, a finite number, true, false, null, a list, or an object with text as keys",
    )


def _as_json(document: Any) -> str | None:
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (ValueError, TypeError, RecursionError):
        return None
    return text


def path_part(value: str) -> str:
    """Return a value as one part of a path, with every special character escaped."""
    return quote(value, safe="")


def idempotency_header(key: str | None) -> dict[str, str]:
    """Return the header that makes a creation safe to send again, with a generated key if `key` is None."""
    if key and not (key.isascii() and key.isprintable()):
        raise InvalidValueError(
            f"idempotency_key = {key!r}: a header cannot contain it",
            hint="use letters, digits and punctuation of ASCII",
        )
    return {"idempotency-key": key or f"client-{uuid.uuid4()}"}


def http_options(settings: ClientSettings) -> dict[str, Any]:
    """Return the arguments of ``httpx.Client`` and ``httpx.AsyncClient``."""
    try:
        headers = {"user-agent": f"trd-client/{version('trd-service')}"}
    except PackageNotFoundError:  # run from a checkout that is not installed
        headers = {"user-agent": "trd-client"}
    if settings.api_key is not None:
        headers["authorization"] = f"Bearer {settings.api_key}"
    return {
        "base_url": settings.url,
        "headers": headers,
        "timeout": http_timeout(settings, None),
        "trust_env": not settings.is_loopback,
    }


def http_timeout(settings: ClientSettings, read_seconds: float | None) -> httpx.Timeout:
    """Return the time-outs of a request; `read_seconds` replaces the value of the settings."""
    read = read_seconds if read_seconds is not None else settings.read_seconds
    return httpx.Timeout(read, connect=settings.connect_seconds)


def parsed_response(call: Call[ViewT], response: httpx.Response) -> ViewT:
    """Return the parsed response; raises `ApiError` for an error of the API, otherwise `UnexpectedAnswerError`."""
    if response.status_code not in call.accepted_statuses:
        require_success(response)
    try:
        return call.view.model_validate_json(response.content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "the body"
        raise UnexpectedAnswerError(
            f"{call.method} {call.path}: {where} of the response: {first['msg']}",
            hint=f"check that {response.url.copy_with(path='/', query=None)} is this service, in this client's version",
        ) from None


def require_success(response: httpx.Response) -> None:
    """Raise unless the status is 2xx. The response's body must have been read."""
    if response.is_success:
        return
    if response.is_error:
        raise api_error(_refusal(response))
    raise UnexpectedAnswerError(f"{response.request.url}: unexpected status {response.status_code}")


def store_request(response: httpx.Response) -> httpx.Request:
    """Return the request that a redirect of a download asks for.

    It goes to the service's store, whose URL itself grants access: the API key stays here. So does ``If-Range``, which
    names an entity tag of the service; the service has compared it before it redirects.
    """
    sent = response.request
    headers = {name: sent.headers[name] for name in ("accept-encoding", "range", "user-agent") if name in sent.headers}
    return httpx.Request(
        "GET", sent.url.join(response.headers["location"]), headers=headers, extensions=sent.extensions
    )


def _refusal(response: httpx.Response) -> Refusal:
    headers = response.headers
    try:
        detail = response.json()["error"]
        known = {name: detail.get(name) for name in ("message", "type", "code", "param")}
        known["errors"] = list(detail.get("errors") or [])
    except (ValueError, KeyError, TypeError, AttributeError):  # sent by a proxy or by another program
        known = {"message": f"{response.status_code} {response.reason_phrase}: {response.text[:200]}".strip()}
    seconds = headers.get("retry-after", "")
    return Refusal(
        status=response.status_code,
        request_id=headers.get("x-request-id"),
        retry_after_seconds=float(seconds) if seconds.isascii() and seconds.isdigit() else None,
        should_retry={"true": True, "false": False}.get(headers.get("x-should-retry", "")),
        **known,
    )


@contextmanager
def translated_errors(url: str) -> Iterator[None]:
    """Turn the errors of httpx into `TrdError`."""
    try:
        yield
    except httpx.RequestError as error:
        was_never_sent, reason = isinstance(error, _NEVER_SENT), str(error) or type(error).__name__
        if isinstance(error, httpx.TimeoutException):
            failure: ConnectionFailedError = TimedOutError(f"{url} did not answer in time ({type(error).__name__})")
        elif was_never_sent:
            failure = ConnectionFailedError(f"{url} cannot be reached: {reason}", hint=_UNREACHABLE)
        else:
            failure = ConnectionFailedError(f"the connection to {url} was lost: {reason}")
        failure.was_never_sent = was_never_sent
        raise failure from error
    except httpx.InvalidURL as error:
        raise TrdError(f"the request has no valid address: {error}") from error


_UNREACHABLE = "check that the service is running; `trd up` starts one here, TRD_URL selects another"


def is_worth_repeating(error: BaseException, *, is_repeatable: bool) -> bool:
    """Return whether sending the request again may help and is safe."""
    if isinstance(error, ConnectionFailedError):
        return is_repeatable or error.was_never_sent
    if not isinstance(error, ApiError) or error.refusal.should_retry is False:
        return False
    if error.status == 429:
        return True  # refused before anything was changed
    return is_repeatable and (error.status in _PASSING_STATUSES or error.refusal.should_retry is True)


def pause_seconds(num_failures: int, error: BaseException | None = None) -> float:
    """Return how long to wait after so many failures in a row: as the service says, otherwise with backoff."""
    if isinstance(error, ApiError) and error.refusal.retry_after_seconds is not None:
        return min(error.refusal.retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS)
    longest = min(FIRST_PAUSE_SECONDS * 2.0 ** min(num_failures - 1, 30), LONGEST_PAUSE_SECONDS)
    return longest * random.uniform(0.5, 1.0)  # so that clients that failed together do not retry together


def retry_policy(call: Call[Any], max_retries: int) -> dict[str, Any]:
    """Return the arguments of tenacity's `Retrying` and `AsyncRetrying` for a call."""

    def wait(state: RetryCallState) -> float:
        return pause_seconds(state.attempt_number, state.outcome.exception() if state.outcome is not None else None)

    return {
        "stop": stop_after_attempt(max_retries + 1),
        "retry": retry_if_exception(lambda error: is_worth_repeating(error, is_repeatable=call.is_repeatable)),
        "wait": wait,
        "reraise": True,
    }
