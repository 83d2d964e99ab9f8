"""A request as a value, what makes one worth sending again, and how its answer is read. No network here."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import RetryCallState, retry_if_exception, stop_after_attempt

from client.errors import (
    ApiError,
    ConnectionFailedError,
    Refusal,
    TimedOutError,
    TrdError,
    UnexpectedAnswerError,
    api_error,
)

AnswerT = TypeVar("AnswerT", bound=BaseModel)

FIRST_PAUSE_SECONDS = 0.3
LONGEST_PAUSE_SECONDS = 20.0
LONGEST_RETRY_AFTER_SECONDS = 60.0
_PASSING_STATUSES = frozenset({408, 502, 503, 504})
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Body(Protocol):
    """A request's body that is sent piece by piece, from its beginning each time."""

    def pieces(self) -> Iterator[bytes]:
        """For the sync client."""
        ...

    def pieces_async(self) -> AsyncIterator[bytes]:
        """For the async client."""
        ...


@dataclass(frozen=True)
class Call(Generic[AnswerT]):
    """One request and the type of its answer."""

    method: str
    path: str
    answer: type[AnswerT]
    params: Mapping[str, Any] = field(default_factory=dict)
    """None values are left out; a list repeats its parameter."""
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    is_repeatable: bool = True
    """True where doing it twice does no more than doing it once."""
    answered_with: frozenset[int] = frozenset()
    """Statuses besides 2xx that come with the typed answer."""
    read_seconds: float | None = None
    """Longest wait for the answer; None takes the settings'."""

    def request(self, content: Any = None) -> dict[str, Any]:
        """The arguments of httpx' ``build_request``; `content` are the pieces of `body`."""
        return {
            "method": self.method,
            "url": self.path,
            "params": {name: value for name, value in self.params.items() if value is not None},
            "json": self.json,
            "headers": dict(self.headers),
            "content": content,
        }


def part(value: str) -> str:
    """A value as one part of a path, whatever it holds."""
    return quote(value, safe="")


def read_answer(call: Call[AnswerT], response: httpx.Response) -> AnswerT:
    """The typed answer; raises `ApiError` for a refusal and `UnexpectedAnswerError` for anything else."""
    if response.status_code not in call.answered_with:
        require_success(response)
    try:
        return call.answer.model_validate_json(response.content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "the body"
        raise UnexpectedAnswerError(
            f"{call.method} {call.path}: {where} of the answer: {first['msg']}",
            hint=f"is {response.url.copy_with(path='/', query=None)} this service, and as old as this client?",
        ) from None


def require_success(response: httpx.Response) -> None:
    """Raise unless the status is 2xx. The response's body must have been read."""
    if response.is_success:
        return
    if response.is_error:
        raise api_error(_refusal(response))
    raise UnexpectedAnswerError(f"{response.request.url}: answered with status {response.status_code}")


def _refusal(response: httpx.Response) -> Refusal:
    headers = response.headers
    try:
        detail = response.json()["error"]
        known = {name: detail.get(name) for name in ("message", "type", "code", "param")}
        known["errors"] = list(detail.get("errors") or [])
    except (ValueError, KeyError, TypeError, AttributeError):  # a proxy's, or another program's
        known = {"message": f"{response.status_code} {response.reason_phrase}: {response.text[:200]}".strip()}
    return Refusal(
        status=response.status_code,
        request_id=headers.get("x-request-id"),
        retry_after_seconds=_seconds(headers.get("retry-after")),
        should_retry={"true": True, "false": False}.get(headers.get("x-should-retry", "")),
        **known,
    )


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isascii() and value.isdigit() else None


@contextmanager
def telling_failures(url: str) -> Iterator[None]:
    """Turn httpx' failures into ours."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise _failed(TimedOutError(f"{url} did not answer in time ({type(error).__name__})"), error) from error
    except httpx.RequestError as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, _NEVER_SENT):
            failure = ConnectionFailedError(f"{url} cannot be reached: {reason}", hint=_UNREACHABLE)
        else:
            failure = ConnectionFailedError(f"the connection to {url} broke: {reason}")
        raise _failed(failure, error) from error
    except httpx.InvalidURL as error:
        raise TrdError(f"the request has no valid address: {error}") from error


_UNREACHABLE = "is the service running there? `trd up` starts one here; TRD_URL names another"


def _failed(failure: ConnectionFailedError, cause: httpx.RequestError) -> ConnectionFailedError:
    failure.was_never_sent = isinstance(cause, _NEVER_SENT)
    return failure


def is_worth_repeating(error: BaseException, *, is_repeatable: bool) -> bool:
    """True where sending the request again may help and cannot harm."""
    if isinstance(error, ConnectionFailedError):
        return is_repeatable or error.was_never_sent
    if not isinstance(error, ApiError) or error.refusal.should_retry is False:
        return False
    if error.status == 429:
        return True  # refused before anything was done
    return is_repeatable and (error.status in _PASSING_STATUSES or error.refusal.should_retry is True)


def pause_seconds(num_failures: int, error: BaseException | None = None) -> float:
    """How long to wait after the `num_failures`-th failure in a row: as the service says, else ever longer."""
    if isinstance(error, ApiError) and error.refusal.retry_after_seconds is not None:
        return min(error.refusal.retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS)
    longest = min(FIRST_PAUSE_SECONDS * 2.0 ** min(num_failures - 1, 30), LONGEST_PAUSE_SECONDS)
    return longest * random.uniform(0.5, 1.0)  # clients that failed together do not come back together


def retry_policy(call: Call[Any], max_retries: int) -> dict[str, Any]:
    """The arguments of tenacity's `Retrying` and `AsyncRetrying` for a call."""

    def wait(state: RetryCallState) -> float:
        return pause_seconds(state.attempt_number, state.outcome.exception() if state.outcome is not None else None)

    return {
        "stop": stop_after_attempt(max_retries + 1),
        "retry": retry_if_exception(lambda error: is_worth_repeating(error, is_repeatable=call.is_repeatable)),
        "wait": wait,
        "reraise": True,
    }
