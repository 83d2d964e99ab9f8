"""Sends calls over HTTP: with the key, time-outs, and again where that is safe. Sync and async alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import httpx
from tenacity import AsyncRetrying, Retrying

from client.call import AnswerT, Call, read_answer, require_success, retry_policy, telling_failures
from client.settings import ClientSettings


def _user_agent() -> str:
    try:
        return f"trd-client/{version('trd-service')}"
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "trd-client"


def _options(settings: ClientSettings) -> dict[str, Any]:
    headers = {"user-agent": _user_agent()}
    if settings.api_key is not None:
        headers["authorization"] = f"Bearer {settings.api_key}"
    return {
        "base_url": settings.url,
        "headers": headers,
        "timeout": _timeout(settings, None),
        "trust_env": not settings.is_loopback,
    }


def _timeout(settings: ClientSettings, read_seconds: float | None) -> httpx.Timeout:
    read = read_seconds if read_seconds is not None else settings.read_seconds
    return httpx.Timeout(read, connect=settings.connect_seconds)


class Transport:
    """A pool of connections to one service. Safe to share between threads."""

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self._http = httpx.Client(**_options(settings))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, call: Call[AnswerT]) -> AnswerT:
        """The answer; raises `client.errors.TrdError`."""
        answer: AnswerT = Retrying(**retry_policy(call, self.settings.max_retries))(self._send_once, call)
        return answer

    def _send_once(self, call: Call[AnswerT]) -> AnswerT:
        with telling_failures(self.settings.url):
            request = self._http.build_request(
                **call.request(call.body.pieces() if call.body is not None else None),
                timeout=_timeout(self.settings, call.read_seconds),
            )
            response = self._http.send(request)
        return read_answer(call, response)

    @contextmanager
    def stream(self, call: Call[Any]) -> Iterator[httpx.Response]:
        """The answer while it arrives; raises as `send` does, without trying again."""
        timeout = _timeout(self.settings, call.read_seconds)
        with (
            telling_failures(self.settings.url),
            self._http.stream(**call.request(), timeout=timeout) as response,
        ):
            if not response.is_success:
                response.read()
                require_success(response)
            yield response


class AsyncTransport:
    """The same for asyncio. Belongs to one event loop."""

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self._http = httpx.AsyncClient(**_options(settings))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, call: Call[AnswerT]) -> AnswerT:
        """The answer; raises `client.errors.TrdError`."""
        answer: AnswerT = await AsyncRetrying(**retry_policy(call, self.settings.max_retries))(self._send_once, call)
        return answer

    async def _send_once(self, call: Call[AnswerT]) -> AnswerT:
        with telling_failures(self.settings.url):
            request = self._http.build_request(
                **call.request(call.body.pieces_async() if call.body is not None else None),
                timeout=_timeout(self.settings, call.read_seconds),
            )
            response = await self._http.send(request)
        return read_answer(call, response)

    @asynccontextmanager
    async def stream(self, call: Call[Any]) -> AsyncIterator[httpx.Response]:
        """The answer while it arrives; raises as `send` does, without trying again."""
        timeout = _timeout(self.settings, call.read_seconds)
        with telling_failures(self.settings.url):
            async with self._http.stream(**call.request(), timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                    require_success(response)
                yield response
