# Generated from client/_async/transport.py by `python client/generate.py`. Do not edit.

"""Sends calls over HTTP: with the key, time-outs, and retries if they are safe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from tenacity import Retrying

from client.call import (
    Call,
    ViewT,
    http_options,
    http_timeout,
    parsed_response,
    require_success,
    retry_policy,
    store_request,
    translated_errors,
)
from client.settings import ClientSettings
from contract.views import MAX_PAGE, Page

Item = TypeVar("Item")
Cursor = str | int | None


class Transport:
    """A pool of connections to one service."""

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self._http = httpx.Client(**http_options(settings))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, call: Call[ViewT]) -> ViewT:
        """Return the parsed response; raises `client.errors.TrdError`."""
        view: ViewT = Retrying(**retry_policy(call, self.settings.max_retries))(self._send_once, call)
        return view

    def _send_once(self, call: Call[ViewT]) -> ViewT:
        with translated_errors(self.settings.url):
            request = self._http.build_request(
                **call.request(call.body.pieces() if call.body is not None else None),
                timeout=http_timeout(self.settings, call.read_seconds),
            )
            response = self._http.send(request)
        return parsed_response(call, response)

    @contextmanager
    def stream(self, call: Call[Any]) -> Iterator[httpx.Response]:
        """Yield the response before its body is read; raises as `send` does, without retries.

        A redirect to the store, see `client.call.store_request`, is followed.
        """
        timeout = http_timeout(self.settings, call.read_seconds)
        with translated_errors(self.settings.url):
            response = self._http.send(self._http.build_request(**call.request(), timeout=timeout), stream=True)
            try:
                if response.status_code == httpx.codes.TEMPORARY_REDIRECT:
                    response.close()
                    request = store_request(response)
                    with translated_errors(f"the store at {request.url.host}"):
                        response = self._http.send(request, stream=True)
                if not response.is_success:
                    response.read()
                    require_success(response)
                yield response
            finally:
                response.close()

    def walk(
        self,
        path: str,
        page_type: type[Page[Item]],
        cursor_of: Callable[[Item], Cursor],
        *,
        params: Mapping[str, Any] | None = None,
        after: Cursor = None,
        num_wanted: int | None = None,
    ) -> Iterator[Item]:
        """Yield the items of all pages, at most `num_wanted`. The next page is requested when it is needed."""
        limit = MAX_PAGE if num_wanted is None else max(1, min(num_wanted, MAX_PAGE))
        num_given = 0
        while num_wanted is None or num_given < num_wanted:
            position = {"after": after, "limit": limit}
            page = self.send(Call("GET", path, page_type, params={**(params or {}), **position}))
            for item in page.data if num_wanted is None else page.data[: num_wanted - num_given]:
                num_given += 1
                yield item
            searched_to = getattr(page, "searched_to", None)  # a page of a search may be empty, and not the last
            if not page.has_more or not (page.data or searched_to):
                return
            after = searched_to or cursor_of(page.data[-1])


class Resource:
    """Base class of the calls for one noun."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
