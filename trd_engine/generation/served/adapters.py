"""LoRA adapters on their way from a run to vLLM servers, each named by its content.

A version's name is the fingerprint of the base's weights, a hyphen, and the sha256 of the adapter. A server that knows
the name holds these weights, and one that does not answers 404: no server can take one version for another.
`AdapterUploads` adds ``PUT /v1/adapters/NAME`` to vLLM's server. vLLM's own route loads adapters from a path that the
client names, which needs a folder that both see.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from trd_engine.generation.served.client import Upload

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]

NUM_KEPT = 8
"""Adapters that a server keeps; it drops the oldest that no request uses, and gets it again if it is still needed."""
MAX_ADAPTER_BYTES = 8 * 2**30
_SETTINGS, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ROUTE = "/v1/adapters/"
_MAX_SETTINGS_BYTES = 2**20


def packed_adapter(base: str, folder: Path) -> tuple[str, Upload]:
    """Return the name of the adapter that PEFT wrote to `folder`, and its upload: a line of settings, and the weights.

    `base` is the fingerprint of the weights that it belongs to.
    """
    settings = json.dumps(json.loads((folder / _SETTINGS).read_bytes()), sort_keys=True)
    content = settings.encode() + b"\n" + (folder / _WEIGHTS).read_bytes()
    name = f"{base}-{hashlib.sha256(content).hexdigest()}"
    return name, Upload(_ROUTE.removeprefix("/v1/") + name, content)


class AdapterUploads:
    """ASGI middleware of vLLM's server (``--middleware``). Loads uploaded adapters under their names.

    Uploads need the key in VLLM_API_KEY, as vLLM's routes do, because this middleware runs before vLLM's own check.
    """

    def __init__(self, app: _App) -> None:
        """Wrap `app`, the rest of the server."""
        from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

        key = os.environ.get("VLLM_API_KEY")
        self._app = app
        self._guarded: _App = AuthenticationMiddleware(self._answer, tokens=[key]) if key else self._answer
        self._folder = tempfile.TemporaryDirectory(prefix="trd-adapters-")

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer uploads, and pass everything else on."""
        is_upload = scope["type"] == "http" and scope["method"] == "PUT" and scope["path"].startswith(_ROUTE)
        await (self._guarded if is_upload else self._app)(scope, receive, send)

    async def _answer(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        state, folder = scope["app"].state, Path(tempfile.mkdtemp(dir=self._folder.name))
        try:
            await self._load(state, scope["path"].removeprefix(_ROUTE), _content(receive), folder)
            status, text = 200, "loaded"
        except ValueError as error:
            status, text = 400, str(error)
        except RuntimeError as error:  # the client tries another server
            status, text = 503, str(error)
        finally:
            loaded = state.openai_serving_models.lora_requests.values()
            if str(folder) not in {request.lora_path for request in loaded}:
                shutil.rmtree(folder)
        body = json.dumps({"message": text}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _load(self, state: Any, name: str, content: AsyncIterator[bytes], folder: Path) -> None:
        """Write the adapter to `folder` and load it from there, unless it is loaded already.

        Raises ValueError if the adapter is not for this server, and `RuntimeError` if the server does not work.
        """
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        models = state.openai_serving_models
        # Read to the end even if it is refused: the client would take a closed connection for a fault.
        digest = await _write(content, folder)
        base, _, named = name.partition("-")
        if not models.is_base_model(base):
            raise ValueError(
                f"the adapter belongs to weights {base:.12}…, and this server has {models.model_name():.12}…"
            )
        if digest != named:
            raise ValueError("the content is not that of the name")
        if name in models.lora_requests:
            return
        found = await models.load_lora_adapter(LoadLoRAAdapterRequest(lora_name=name, lora_path=str(folder)))
        if isinstance(found, ErrorResponse) and name not in models.lora_requests:
            if state.engine_client.errored:
                raise RuntimeError("the engine of this server is dead")
            raise ValueError(found.error.message)
        await self._drop_oldest(state, name)

    async def _drop_oldest(self, state: Any, newest: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        models = state.openai_serving_models
        in_use = {request.lora_name for request in state.engine_client.output_processor.request_states.values()}
        unused = [name for name in models.lora_requests if name not in in_use and name != newest]
        for name in unused[: max(0, len(models.lora_requests) - NUM_KEPT)]:
            folder = models.lora_requests[name].lora_path
            await models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))
            await asyncio.to_thread(shutil.rmtree, folder)


async def _content(receive: _Receive) -> AsyncIterator[bytes]:
    """Yield the parts of a request's body. Raises ValueError if the client goes away."""
    is_more = True
    while is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ValueError("the upload ended early")
        yield message.get("body", b"")
        is_more = message.get("more_body", False)


async def _write(content: AsyncIterator[bytes], folder: Path) -> str:
    """Write the files of an upload to `folder`; return the sha256 of the upload. Raises ValueError."""
    digest, settings, num_bytes = hashlib.sha256(), b"", 0
    with (folder / _WEIGHTS).open("wb") as weights:
        is_weights = False
        async for part in content:
            digest.update(part)
            num_bytes += len(part)
            if num_bytes > MAX_ADAPTER_BYTES:
                raise ValueError(f"the adapter is larger than {MAX_ADAPTER_BYTES} bytes")
            if not is_weights:
                settings += part
                settings, newline, part = settings.partition(b"\n")
                is_weights = bool(newline)
                if not is_weights and len(settings) > _MAX_SETTINGS_BYTES:
                    raise ValueError("the upload does not begin with a line of settings")
            weights.write(part)
    (folder / _SETTINGS).write_bytes(settings)
    return digest.hexdigest()
