"""A generator whose completions come from a pool of vLLM servers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from trd_engine.config import SamplerPoolConfig
from trd_engine.generation.completions import ProgressMeter, check_requests, make_completion
from trd_engine.generation.served.adapters import packed_adapter
from trd_engine.generation.served.client import EndpointClient, MalformedAnswerError, Upload, open_endpoint
from trd_engine.generation.served.servers import SAMPLER_POOL
from trd_engine.models.folders import weights_fingerprint
from trd_engine.runtime.distributed import World
from trd_engine.runtime.errors import SpecError
from trd_engine.types import Completion, CompletionCallback, GenerationRequest, ProgressCallback, SamplingSettings


class PoolGenerator:
    """Samples on the servers of a pool, from exactly the weights that `use_adapter` gave last.

    Each request names the weights by their content, and an answer that names others is an error. The same request gives
    the same completion up to the rounding of a server's batches: other requests in a batch, or another server, may
    change a token whose probability is at the edge of two.
    """

    def __init__(
        self, pool: SamplerPoolConfig, model_folder: Path, tokenizer: PreTrainedTokenizerBase, world: World
    ) -> None:
        """Resolve the servers. They serve the weights in `model_folder`, under the name of their fingerprint.

        Raises `SpecError`, `SamplersRefusedError` and `SamplersUnreachableError`.
        """
        self._base = self._model = weights_fingerprint(model_folder)
        endpoint = open_endpoint(pool, pool.name, world, model=self._base, is_vllm=True, kind=SAMPLER_POOL)
        self._client = EndpointClient(endpoint)
        self._tokenizer = tokenizer
        self._upload: Upload | None = None

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingSettings,
        *,
        with_logprobs: bool = False,
        on_progress: ProgressCallback | None = None,
        on_completion: CompletionCallback | None = None,
    ) -> list[Completion]:
        """See `Generator.generate`. Raises `SamplersUnreachableError` and `SamplersRefusedError`."""
        check_requests(requests, sampling, max_model_len=None)
        meter = ProgressMeter(on_progress, len(requests))

        def read(document: Any, number: int) -> Completion:
            completion = self._completion(document, requests[number], sampling, with_logprobs)
            if on_completion is not None:
                on_completion(number, completion)
            return completion

        bodies = [self._body(request, sampling, with_logprobs) for request in requests]
        completions = self._client.post_all("completions", bodies, read, meter.count, upload=self._upload)
        meter.report()
        return completions

    def use_adapter(self, folder: Path | None) -> None:
        """See `Generator.use_adapter`. The files are read now; a server gets them with the first request for them."""
        if folder is None:
            self._model, self._upload = self._base, None
        else:
            self._model, self._upload = packed_adapter(self._base, folder)

    def load_weights(self, folder: Path) -> None:
        """Refuse: servers take adapters only."""
        raise SpecError(f"a sampler pool cannot load the full weights in {folder}; train with lora")

    def sleep(self) -> None:
        """Do nothing: the servers' memory is their own."""

    def close(self) -> None:
        """Do nothing: the servers work for other runs too."""

    def _body(self, request: GenerationRequest, sampling: SamplingSettings, with_logprobs: bool) -> dict[str, Any]:
        return {
            "model": self._model,
            "prompt": list(request.prompt_token_ids),
            "seed": request.seed,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": max(sampling.top_k, 0),
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": list(sampling.stop_token_ids),
            "ignore_eos": True,  # what ends a completion is said by `stop_token_ids` alone
            "return_token_ids": True,
            "logprobs": 0 if with_logprobs else None,  # 0: of the sampled token, and no others
        }

    def _completion(
        self, document: Any, request: GenerationRequest, sampling: SamplingSettings, with_logprobs: bool
    ) -> Completion:
        if document["model"] != self._model:
            raise MalformedAnswerError("an answer of other weights than requested")
        (choice,) = document["choices"]
        token_ids = choice["token_ids"]
        if choice["prompt_token_ids"] != list(request.prompt_token_ids):
            raise MalformedAnswerError("an answer to another prompt")
        is_whole = len(token_ids) == sampling.max_new_tokens or (
            bool(token_ids) and token_ids[-1] in sampling.stop_token_ids
        )
        if not is_whole or choice["finish_reason"] not in ("stop", "length"):  # vLLM aborts requests at its end
            raise MalformedAnswerError("an answer that ends too early")
        logprobs = [float(logprob) for logprob in choice["logprobs"]["token_logprobs"]] if with_logprobs else None
        if logprobs is not None and len(logprobs) != len(token_ids):
            raise MalformedAnswerError("an answer without a log-probability for each token")
        return make_completion(token_ids, sampling.stop_token_ids, logprobs, self._tokenizer)
