"""Concurrent requests to one OpenAI-compatible server, with time-outs and retries."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import httpx

from trd_data.network_address import Network
from trd_engine.runtime.errors import TeacherRefusedError, TeacherUnreachableError
from trd_engine.teachers.endpoint.address import pin_address

Answer = TypeVar("Answer")

WAIT_SECONDS = 0.5
"""Longest time between two calls of `while_waiting`, and so the delay of a stop."""
_TRANSIENT_STATUSES = frozenset({408, 409, 425, 429})
_MAX_QUOTED = 500
MAX_ANSWER_BYTES = 2**28
"""Longest answer of an endpoint: the scores of a long completion take some tens of MiB."""
"""Characters of a server's error that go into our message."""


@dataclass(frozen=True)
class Endpoint:
    """A server that the operator configured. No user input becomes part of its address."""

    name: str
    """Name in messages for users, in the place of its address."""
    base_url: str
    """Base URL up to and including the API version, as in `http://127.0.0.1:8000/v1`."""
    model: str
    api_key: str | None = field(default=None, repr=False)
    network: Network = "public"
    """Networks that its address may belong to."""
    is_vllm: bool = False
    """Whether the server takes vLLM's extensions: top-k, token ids, and log-probabilities of a prompt."""
    timeout_seconds: float = 120.0
    """Time limit of one attempt, from the connection to the last byte of the response."""
    max_tries: int = 6
    max_delay_seconds: float = 30.0
    """Upper bound on the pause before a retry; the first is half a second, each next one about twice as long."""
    max_concurrency: int = 16


class MalformedAnswerError(ValueError):
    """A successful response does not have the expected form."""


class EndpointClient:
    """Posts requests to one endpoint. Keeps nothing but its address between calls."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Resolve and check the address. Raises the errors of `pin_address`."""
        self._endpoint = endpoint
        self._address = pin_address(endpoint.name, endpoint.base_url, endpoint.network)
        self._jitter = random.Random()  # for pauses only; no sample depends on it

    def post_all(
        self,
        path: str,
        bodies: Sequence[Mapping[str, Any]],
        parse: Callable[[Any, int], Answer],
        while_waiting: Callable[[Sequence[Answer]], None],
    ) -> list[Answer]:
        """Post `bodies` and return the parsed answers in their order. A `path` with a leading slash is relative to the
        server's root instead of the API version.

        `parse` gets a document and the number of its request, and raises `MalformedAnswerError` if the document's form
        is wrong. `while_waiting` is called at least every `WAIT_SECONDS` with the answers received so far; if it
        raises, all requests are cancelled. Raises `TeacherRefusedError` at the first request that a retry cannot help,
        and `TeacherUnreachableError` at the first one that used up its tries.
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
            # A proxy from the environment would resolve the name again. SSL_CERT_FILE still applies.
            trust_env=False,
            verify=ssl.create_default_context(),
        )

    def _url(self, path: str) -> str:
        base_url = self._address.url
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
                retry_after = None
                try:
                    async with (
                        asyncio.timeout(self._endpoint.timeout_seconds),
                        client.stream(
                            "POST", self._url(path), json=body, extensions={"sni_hostname": self._address.server_name}
                        ) as response,
                    ):
                        content = await _bounded_content(response)
                    retry_after = response.headers.get("Retry-After")
                    self._check_status(response.status_code, content)
                    return parse(json.loads(content))
                except (httpx.RequestError, TimeoutError, _TransientStatusError, ValueError) as error:
                    problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                if num_tried < self._endpoint.max_tries:
                    await asyncio.sleep(self._pause(num_tried, retry_after))
        raise TeacherUnreachableError(
            f"teacher endpoint {self._endpoint.name} gave no answer in {num_tried} tries; the last error: {problem}"
        )

    def _check_status(self, status: int, content: bytes) -> None:
        """Raise unless the status is a success; `_TransientStatusError` if a retry may help."""
        if 200 <= status < 300:
            return
        if status >= 500 or status in _TRANSIENT_STATUSES:
            raise _TransientStatusError(f"status {status}")
        raise TeacherRefusedError(
            f"teacher endpoint {self._endpoint.name} refused a request with status {status}: "
            f"{self._quoted(content.decode('utf-8', 'replace'))}"
        )

    def _quoted(self, text: str) -> str:
        """Remove the key, which some servers repeat in their errors, and shorten the text: users read it."""
        key = self._endpoint.api_key
        return (text.replace(key, "[redacted]") if key else text)[:_MAX_QUOTED]

    def _pause(self, num_tried: int, retry_after: str | None) -> float:
        """Return the seconds until the next try: the server's Retry-After, else a doubling pause with jitter."""
        longest = self._endpoint.max_delay_seconds
        if retry_after is not None and retry_after.isdecimal():
            return min(float(retry_after), longest)
        return min(0.5 * 2.0 ** (num_tried - 1), longest) * self._jitter.uniform(0.75, 1.25)


def _at(parse: Callable[[Any, int], Answer], number: int, document: Any) -> Answer:
    try:
        return parse(document, number)
    except (AttributeError, KeyError, TypeError) as error:  # no check in `parse` covers this form
        raise MalformedAnswerError(f"an answer of an unexpected form: {type(error).__name__}: {error}") from error


async def _bounded_content(response: httpx.Response) -> bytes:
    """Return the content of an answer, unpacked; raises ValueError if it is longer than `MAX_ANSWER_BYTES`."""
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


class _TransientStatusError(Exception):
    """A status that a retry may change."""
