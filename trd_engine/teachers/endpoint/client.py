"""Many requests to one OpenAI-compatible server: side by side, with time-outs, tried again where that can help."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import httpx

from trd_engine.runtime.errors import TeacherRefusedError, TeacherUnreachableError
from trd_engine.teachers.endpoint.address import Network, pin_address

Answer = TypeVar("Answer")

WAIT_SECONDS = 0.5
"""Between two looks at the requests under way; bounds how late a stop is obeyed."""
_TRANSIENT_STATUSES = frozenset({408, 409, 425, 429})
_MAX_QUOTED = 500
"""Characters of a server's refusal that go into our message."""


@dataclass(frozen=True)
class Endpoint:
    """A server of the operator's choice. No user's input ever becomes part of its address."""

    name: str
    """What users call it; messages name it instead of its address."""
    base_url: str
    """Up to and with the version, as in `http://127.0.0.1:8000/v1`."""
    model: str
    api_key: str | None = field(default=None, repr=False)
    network: Network = "public"
    """Where its address may lie."""
    is_vllm: bool = False
    """The server takes vLLM's own fields: top-k, token ids, and log-probabilities of a prompt."""
    timeout_seconds: float = 120.0
    """For one answer, from the connection to the last byte."""
    max_tries: int = 6
    max_delay_seconds: float = 30.0
    """Longest pause before another try; the first is half a second, and each is about twice the last."""
    max_concurrency: int = 16


class MalformedAnswerError(ValueError):
    """A server's answer is not what its status promised."""


class EndpointClient:
    """Posts to one endpoint. Holds its address, and nothing else between calls."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises as `pin_address`."""
        self._endpoint = endpoint
        self._address = pin_address(endpoint.name, endpoint.base_url, endpoint.network)
        self._jitter = random.Random()  # pauses only: nothing that is sampled hangs on it

    def post_all(
        self,
        path: str,
        bodies: Sequence[Mapping[str, Any]],
        parse: Callable[[Any, int], Answer],
        while_waiting: Callable[[Sequence[Answer]], None],
    ) -> list[Answer]:
        """The parsed answers in the order of `bodies`. A `path` with a leading slash is the server's own, beside
        the version of the API.

        `parse` gets a document and its request's number, and raises `MalformedAnswerError` on the wrong shape.
        `while_waiting` is called at least every `WAIT_SECONDS` with the answers that are there; where it raises, all
        requests are dropped. Raises
        `TeacherRefusedError` at the first request that no other try would help, and `TeacherUnreachableError` at the
        first one whose tries are used up.
        """
        return asyncio.run(self._post_all(path, bodies, parse, while_waiting))

    async def _post_all(
        self,
        path: str,
        bodies: Sequence[Mapping[str, Any]],
        parse: Callable[[Any, int], Answer],
        while_waiting: Callable[[Sequence[Answer]], None],
    ) -> list[Answer]:
        gate = asyncio.Semaphore(self._endpoint.max_concurrency)
        async with self._http_client() as client:
            tasks = [
                asyncio.create_task(self._post(client, gate, path, body, partial(_at, parse, number)))
                for number, body in enumerate(bodies)
            ]
            try:
                pending = set(tasks)
                while pending:
                    done, pending = await asyncio.wait(
                        pending, timeout=WAIT_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        task.result()  # raises what the request raised
                    while_waiting([task.result() for task in tasks if task.done()])
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return [task.result() for task in tasks]

    def _http_client(self) -> httpx.AsyncClient:
        key = self._endpoint.api_key
        return httpx.AsyncClient(
            headers={"Host": self._address.host_header} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=self._endpoint.timeout_seconds,
            follow_redirects=False,
            # A proxy of the environment would resolve the name again; SSL_CERT_FILE is heeded all the same.
            trust_env=False,
            verify=ssl.create_default_context(),
        )

    def _url(self, path: str) -> str:
        base_url = self._address.base_url
        return base_url.removesuffix("/v1") + path if path.startswith("/") else f"{base_url}/{path}"

    async def _post(
        self,
        client: httpx.AsyncClient,
        gate: asyncio.Semaphore,
        path: str,
        body: Mapping[str, Any],
        parse: Callable[[Any], Answer],
    ) -> Answer:
        async with gate:
            for num_tried in range(1, self._endpoint.max_tries + 1):
                asked_pause = None
                try:
                    async with asyncio.timeout(self._endpoint.timeout_seconds):
                        response = await client.post(
                            self._url(path), json=body, extensions={"sni_hostname": self._address.server_name}
                        )
                    asked_pause = response.headers.get("Retry-After")
                    self._check_status(response)
                    return parse(response.json())
                except (httpx.RequestError, TimeoutError, _TransientStatusError, ValueError) as error:
                    problem = _describe(error)
                if num_tried < self._endpoint.max_tries:
                    await asyncio.sleep(self._pause(num_tried, asked_pause))
        raise TeacherUnreachableError(
            f"teacher endpoint {self._endpoint.name} gave no answer in {num_tried} tries; the last: {problem}"
        )

    def _check_status(self, response: httpx.Response) -> None:
        """Raise for anything but success: `_TransientStatusError` where another try may help."""
        status = response.status_code
        if response.is_success:
            return
        if status >= 500 or status in _TRANSIENT_STATUSES:
            raise _TransientStatusError(f"status {status}")
        raise TeacherRefusedError(
            f"teacher endpoint {self._endpoint.name} refused a request with status {status}: "
            f"{self._quoted(response.text)}"
        )

    def _quoted(self, text: str) -> str:
        """Some servers repeat the key that they refuse, and the message goes to users."""
        key = self._endpoint.api_key
        return (text.replace(key, "[redacted]") if key else text)[:_MAX_QUOTED]

    def _pause(self, num_tried: int, asked_pause: str | None) -> float:
        """Seconds until the next try: what the server asks for, else doubling, with jitter."""
        longest = self._endpoint.max_delay_seconds
        if asked_pause is not None and asked_pause.isdecimal():
            return min(float(asked_pause), longest)
        return min(0.5 * 2.0 ** (num_tried - 1), longest) * self._jitter.uniform(0.75, 1.25)


def _at(parse: Callable[[Any, int], Answer], number: int, document: Any) -> Answer:
    try:
        return parse(document, number)
    except (AttributeError, KeyError, TypeError) as error:  # a shape that no check foresaw is the server's fault too
        raise MalformedAnswerError(f"an answer of another shape: {type(error).__name__}: {error}") from error


class _TransientStatusError(Exception):
    """A status that may be another one next time."""


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
