"""Concurrent requests to one OpenAI-compatible server, or to several equal ones, with time-outs and retries.

A request goes to the server with the fewest open requests. If it fails there, the next try is on another server, and
the server that failed rests.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import httpx

from trd_data.network_address import Network
from trd_engine.config import ServersConfig
from trd_engine.generation.served.servers import TEACHER, EndpointKind, Server, Servers, pin_address
from trd_engine.runtime.distributed import World
from trd_engine.runtime.errors import SpecError

Answer = TypeVar("Answer")

WAIT_SECONDS = 0.5
"""Longest time between two calls of `while_waiting`, and so the delay of a stop."""
_TRANSIENT_STATUSES = frozenset({408, 409, 425, 429})
_MAX_QUOTED = 500
"""Characters of a server's error that go into our message."""
MAX_ANSWER_BYTES = 2**28
"""Longest answer of an endpoint: the scores of a long completion take some tens of MiB."""
HEALTH_SECONDS = 30.0
"""How often a vLLM server with an open request is asked whether it is alive, and how long it may take to answer. Only
if there are others: a request to the only server waits for its own time limit."""


@dataclass(frozen=True)
class Endpoint:
    """Equal servers that the operator configured. No user input becomes part of an address."""

    name: str
    """Name in messages for users, in the place of its address."""
    base_url: str
    """Base URL up to and including the API version, as in `http://127.0.0.1:8000/v1`."""
    model: str
    replicas: Sequence[str] = ()
    """Base URLs of further servers that give the same answers."""
    kind: EndpointKind = TEACHER
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


def open_endpoint(
    servers: ServersConfig, name: str, world: World, *, model: str, is_vllm: bool, kind: EndpointKind = TEACHER
) -> Endpoint:
    """Return one process's endpoint: all processes together keep to the operator's limit of concurrent requests."""
    if servers.max_concurrency < world.size:
        raise SpecError(
            f"devices = {world.size}: {kind.title} {name} takes {servers.max_concurrency} requests at a time, and each "
            f"device needs one; set devices to at most {servers.max_concurrency}, or have the operator raise its "
            "max_concurrency"
        )
    key = None
    if servers.api_key_env is not None:
        key = os.environ.get(servers.api_key_env)
        if not key:
            raise kind.refused(
                f"{kind.title} {name}: the environment variable {servers.api_key_env} with its key is not set on the "
                "worker; have the operator set it"
            )
    return Endpoint(
        name=name,
        base_url=servers.base_url,
        model=model,
        replicas=servers.replicas,
        kind=kind,
        api_key=key,
        network=servers.network,
        is_vllm=is_vllm,
        timeout_seconds=servers.timeout_seconds,
        max_tries=servers.max_tries,
        max_concurrency=world.part_of(servers.max_concurrency),
    )


@dataclass(frozen=True)
class Upload:
    """What a server is given once if it does not know the model of a request, and answers 404."""

    path: str
    """Path for PUT, relative to the API version."""
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class _Response:
    status: int
    retry_after: str | None
    content: bytes


class MalformedAnswerError(ValueError):
    """A successful response does not have the expected form."""


class EndpointClient:
    """Posts requests to the servers of one endpoint. It keeps their addresses, and which of them failed."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Resolve and check the addresses. Raises the errors of `pin_address`."""
        self._endpoint = endpoint
        urls = [endpoint.base_url, *endpoint.replicas]
        pinned = [pin_address(endpoint.name, url, endpoint.network, kind=endpoint.kind) for url in urls]
        self._servers = Servers([Server(address) for address in pinned])
        self._jitter = random.Random()  # for pauses only; no sample depends on it

    def post_all(
        self,
        path: str,
        bodies: Sequence[Mapping[str, Any]],
        parse: Callable[[Any, int], Answer],
        while_waiting: Callable[[Sequence[Answer]], None],
        *,
        upload: Upload | None = None,
    ) -> list[Answer]:
        """Post `bodies` and return the parsed answers in their order. A `path` with a leading slash is relative to the
        server's root instead of the API version.

        `parse` gets a document and the number of its request, and raises `MalformedAnswerError` if the document's form
        is wrong. `while_waiting` is called at least every `WAIT_SECONDS` with the answers received so far; if it
        raises, all requests are cancelled. Raises the kind's `refused` at the first request that a retry cannot help,
        and its `unreachable` at the first one that used up its tries.
        """
        return asyncio.run(self._post_all(path, bodies, parse, while_waiting, upload))

    async def _post_all(
        self,
        path: str,
        bodies: Sequence[Mapping[str, Any]],
        parse: Callable[[Any, int], Answer],
        while_waiting: Callable[[Sequence[Answer]], None],
        upload: Upload | None,
    ) -> list[Answer]:
        for server in self._servers.all:  # a lock belongs to the event loop that it was first waited for in
            server.upload_lock = asyncio.Lock()
        gate = asyncio.Semaphore(self._endpoint.max_concurrency)
        async with self._http_client() as client:
            tasks = [
                asyncio.create_task(self._post(client, gate, path, body, partial(_at, parse, number), upload))
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
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=self._endpoint.timeout_seconds,
            limits=httpx.Limits(max_connections=None),  # `max_concurrency` limits the requests
            follow_redirects=False,
            # A proxy from the environment would resolve the name again. SSL_CERT_FILE still applies.
            trust_env=False,
            verify=ssl.create_default_context(),
        )

    async def _post(
        self,
        client: httpx.AsyncClient,
        gate: asyncio.Semaphore,
        path: str,
        body: Mapping[str, Any],
        parse: Callable[[Any], Answer],
        upload: Upload | None,
    ) -> Answer:
        async with gate:
            for num_tried in range(1, self._endpoint.max_tries + 1):
                server, retry_after = self._servers.choose(), None
                try:
                    with server.open_request():
                        response = await self._answer(client, server, path, body, upload)
                    retry_after = response.retry_after
                    self._check_status(server, response)
                    answer = parse(json.loads(response.content))
                except (httpx.RequestError, TimeoutError, _TransientStatusError, ValueError) as error:
                    problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                else:
                    server.has_failed = False
                    return answer
                pause = self._pause(num_tried, retry_after)
                server.failed(pause)
                if num_tried < self._endpoint.max_tries and not self._servers.any_ready:
                    await asyncio.sleep(pause)
        raise self._endpoint.kind.unreachable(
            f"{self._endpoint.kind.title} {self._endpoint.name} gave no answer in {num_tried} tries; the last error: "
            f"{problem}"
        )

    async def _answer(
        self, client: httpx.AsyncClient, server: Server, path: str, body: Mapping[str, Any], upload: Upload | None
    ) -> _Response:
        """Return the server's response, after an upload if it lacks what the request names."""
        num_uploads = server.num_uploads
        response = await self._watched(client, server, path, body)
        if response.status != 404 or upload is None:
            return response
        async with server.upload_lock:
            if server.num_uploads == num_uploads:  # no other request has uploaded it meanwhile
                self._check_status(server, await self._send(client, server, "PUT", upload.path, content=upload.content))
                server.num_uploads += 1
        return await self._watched(client, server, path, body)

    async def _watched(
        self, client: httpx.AsyncClient, server: Server, path: str, body: Mapping[str, Any]
    ) -> _Response:
        """Post the request. If other servers could answer it, end it as soon as this one is no longer alive."""
        request = asyncio.create_task(self._send(client, server, "POST", path, json=body))
        is_watched = self._endpoint.is_vllm and len(self._servers.all) > 1
        try:
            while is_watched and not (await asyncio.wait([request], timeout=HEALTH_SECONDS))[0]:
                async with asyncio.timeout(HEALTH_SECONDS):
                    health = await self._send(client, server, "GET", "/health")
                if health.status >= 500:  # vLLM's engine is dead
                    raise _TransientStatusError(f"status {health.status} of /health")
            return await request
        finally:
            request.cancel()

    async def _send(
        self, client: httpx.AsyncClient, server: Server, method: str, path: str, **content: Any
    ) -> _Response:
        address = server.address
        url = address.url.removesuffix("/v1") + path if path.startswith("/") else f"{address.url}/{path}"
        async with (
            asyncio.timeout(self._endpoint.timeout_seconds),
            client.stream(
                method,
                url,
                headers={"Host": address.host_header},
                extensions={"sni_hostname": address.server_name},
                **content,
            ) as response,
        ):
            return _Response(
                response.status_code, response.headers.get("Retry-After"), await _bounded_content(response)
            )

    def _check_status(self, server: Server, response: _Response) -> None:
        """Raise unless the status is a success; `_TransientStatusError` if a retry may help."""
        if 200 <= response.status < 300:
            return
        if response.status >= 500 or response.status in _TRANSIENT_STATUSES:
            raise _TransientStatusError(f"status {response.status}")
        raise self._endpoint.kind.refused(
            f"{self._endpoint.kind.title} {self._endpoint.name}{self._servers.title(server)} refused a request with "
            f"status {response.status}: {self._quoted(response.content.decode('utf-8', 'replace'))}"
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
