"""Generation by vLLM on a CPU or GPU: in this process, or in separate ones on the GPUs that the settings name."""

from __future__ import annotations

import gc
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import AutoConfig, AutoTokenizer

from trd_engine.generation.completions import ProgressMeter, check_requests, make_completion
from trd_engine.generation.vllm.residence import kv_token_bytes
from trd_engine.generation.vllm.runtime import engine_construction, engine_use, import_vllm
from trd_engine.runtime.errors import CheckpointCorruptError, SpecError
from trd_engine.types import Completion, CompletionCallback, GenerationRequest, ProgressCallback, SamplingSettings

if TYPE_CHECKING:
    from vllm import CompletionOutput, RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM's kernels support; a rank in between takes the room of the next larger."""
_MAX_TEMPERATURE = 2.0
_CPU_KV_CACHE_BYTES = 1 << 30
_KV_BLOCK_TOKENS = 128
_ALWAYS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "generation_config": "vllm",  # the folder's own sampling defaults must not mix with the request's
    "enable_prefix_caching": True,
    "logprobs_mode": "raw_logprobs",  # before temperature, top-k and top-p
    "disable_log_stats": True,
    "use_tqdm_on_load": False,
}
_LORA_ON: dict[str, Any] = {"enable_lora": True, "max_loras": 1}
_CPU_STEP_TOKENS = 1_024
"""Prompt tokens that a CPU engine gets between two steps: about a second for small models, so that a stop takes effect
soon."""


@dataclass(frozen=True)
class VllmSettings:
    """Settings of an engine."""

    device: str = "cpu"
    """cpu or cuda; the installed vLLM must be the build for it."""
    dtype: torch.dtype = torch.bfloat16
    max_model_len: int | None = None
    """Longest prompt + completion in tokens; None takes the model's own, which may be far too much memory."""
    seed: int = 0
    lora_rank: int | None = None
    """The largest rank that `VllmGenerator.use_adapter` will meet; None: no adapters."""
    max_num_seqs: int = 256
    """Requests sampled side by side."""
    kv_cache_bytes: int | None = None
    """None on a CPU takes what `max_num_seqs` requests can need, up to 1 GiB, and on a GPU what
    `gpu_memory_utilization` leaves."""
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    """The same for all engines of a process."""
    enforce_eager: bool | None = None
    """None compiles and captures graphs on a GPU only."""
    visible_devices: Sequence[str] | None = None
    """GPUs, as CUDA_VISIBLE_DEVICES names them, which this engine alone uses, from separate processes; None: the
    current GPU of this process."""
    sleep_level: Literal[0, 1, 2] = 0
    """What `VllmGenerator.sleep` does: 0 nothing; 1 moves the weights to the host's memory and drops the cache; 2 drops
    both, and loads the weights again from their folder. On a GPU only, for one engine a process: vLLM puts the whole
    process to sleep."""

    @property
    def on_cpu(self) -> bool:
        """True if there is no GPU to share."""
        return self.device == "cpu"

    @property
    def max_lora_rank(self) -> int:
        """Room for adapters; 0: none. Raises `SpecError` if vLLM has no such room."""
        if self.lora_rank is None:
            return 0
        for room in _LORA_RANKS:
            if self.lora_rank <= room:
                return room
        raise SpecError(
            f"lora.rank {self.lora_rank}: vLLM serves adapters of rank {_LORA_RANKS[-1]} at most; use engine "
            "transformers"
        )

    def engine_arguments(self, model_folder: Path) -> dict[str, Any]:
        """Return these settings as vLLM's `EngineArgs` takes them."""
        kv_cache_bytes = self.kv_cache_bytes
        if self.on_cpu and kv_cache_bytes is None:
            kv_cache_bytes = _cpu_kv_cache_bytes(model_folder, self.dtype, self.max_model_len, self.max_num_seqs)
        return {
            "model": str(model_folder),
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_model_len": self.max_model_len,
            "seed": self.seed,
            "max_num_seqs": self.max_num_seqs,
            "kv_cache_memory_bytes": kv_cache_bytes,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "tensor_parallel_size": self.tensor_parallel_size,
            "enforce_eager": self.on_cpu if self.enforce_eager is None else self.enforce_eager,
            "enable_sleep_mode": self.sleep_level > 0,
            "distributed_executor_backend": None if self.visible_devices is None else "mp",
            **_ALWAYS,
            **(_LORA_ON | {"max_lora_rank": self.max_lora_rank} if self.lora_rank is not None else {}),
            **(_cpu_arguments() if self.on_cpu else _gpu_arguments(self.dtype)),
        }


class VllmGenerator:
    """Samples from a Hugging Face folder with a separate engine.

    Several may live in one process if their `tensor_parallel_size` is the same. Prefixes are shared between the
    requests of one call and forgotten between calls, so that a call's samples do not depend on the calls before it.
    """

    _is_asleep = False

    def __init__(self, model_folder: Path, settings: VllmSettings) -> None:
        """Load the model; seconds for a small one. Raises `SpecError` for an adapter's rank that vLLM cannot serve."""
        vllm = import_vllm()
        self._on_cpu = settings.on_cpu
        self._tokenizer = AutoTokenizer.from_pretrained(model_folder)
        self._lora_ids = itertools.count(1)
        self._request_ids = itertools.count()
        self._adapter: LoRARequest | None = None
        self._max_lora_rank = settings.max_lora_rank
        self._sleep_level = settings.sleep_level
        self._weights_folder = model_folder
        arguments = vllm.EngineArgs(**settings.engine_arguments(model_folder))
        with engine_construction(settings.visible_devices):
            self._engine = vllm.LLMEngine.from_engine_args(arguments)
        self._max_admitted = settings.max_num_seqs if self._on_cpu else 4 * settings.max_num_seqs
        self._max_model_len: int = self._engine.model_config.max_model_len

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingSettings,
        *,
        with_logprobs: bool = False,
        on_progress: ProgressCallback | None = None,
        on_completion: CompletionCallback | None = None,
    ) -> list[Completion]:
        """See `Generator.generate`."""
        check_requests(requests, sampling, max_model_len=self._max_model_len)
        if sampling.temperature > _MAX_TEMPERATURE:
            raise SpecError(f"sampling.temperature {sampling.temperature}: vLLM allows at most {_MAX_TEMPERATURE}")
        self._wake()
        self._engine.reset_prefix_cache()
        meter = ProgressMeter(on_progress, len(requests))
        names = [str(next(self._request_ids)) for _ in requests]
        waiting = deque(zip(names, requests, strict=True))
        completions: dict[str, Completion] = {}
        with engine_use(on_cpu=self._on_cpu):
            try:
                while len(completions) < len(requests):
                    self._admit(waiting, sampling, with_logprobs)
                    for output in self._engine.step():
                        completion = self._completion(output, sampling, with_logprobs)
                        completions[output.request_id] = completion
                        if on_completion is not None:
                            on_completion(int(output.request_id) - int(names[0]), completion)
                    if meter.is_due:
                        running = self._engine.output_processor.request_states.values()
                        meter.num_done, meter.num_tokens = len(completions), _num_tokens(completions)
                        meter.num_tokens += sum(state.detokenizer.num_output_tokens() for state in running)
                        meter.report()
            except BaseException:
                self._engine.abort_request([name for name in names if name not in completions])
                raise
        meter.num_done, meter.num_tokens = len(requests), _num_tokens(completions)
        meter.report()
        return [completions[name] for name in names]

    def use_adapter(self, folder: Path | None) -> None:
        """See `Generator.use_adapter`. The files are read now; pass a rewritten folder again.

        Raises `SpecError` if the generator was made without adapters or for a smaller rank, and
        `CheckpointCorruptError` if the folder holds no adapter for this model.
        """
        self._wake()
        if self._adapter is not None:
            self._engine.remove_lora(self._adapter.lora_int_id)
            self._adapter = None
        if folder is not None:
            self._adapter = self._load_adapter(folder)

    def load_weights(self, folder: Path) -> None:
        """See `Generator.load_weights`. An adapter in use stays in use."""
        if not any(folder.glob("*.safetensors")):
            raise CheckpointCorruptError(f"{folder} holds no safetensors weights")
        self._weights_folder = folder
        if self._is_asleep and self._sleep_level == 2:
            self._wake()  # loads them
            return
        self._wake()
        self._reload_weights()

    def _reload_weights(self) -> None:
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(self._weights_folder)})
        if self._on_cpu:
            self._engine.apply_model(_repack_tied_head)
        self._engine.reset_prefix_cache()
        if self._adapter is not None:
            self._engine.add_lora(self._adapter)  # reloading drops the adapters

    def sleep(self) -> None:
        """See `Generator.sleep` and `VllmSettings.sleep_level`."""
        if self._sleep_level > 0 and not self._is_asleep:
            self._engine.reset_prefix_cache()
            self._engine.sleep(level=self._sleep_level)
            self._is_asleep = True

    def _wake(self) -> None:
        if not self._is_asleep:
            return
        # torch caches what the trainer has freed, and the engine would find no room.
        torch.cuda.empty_cache()
        if self._sleep_level == 2:
            self._engine.wake_up(tags=["weights"])
            self._reload_weights()
            self._engine.wake_up(tags=["kv_cache"])
        else:
            self._engine.wake_up()
        self._is_asleep = False

    def close(self) -> None:
        """See `Generator.close`."""
        self._engine.engine_core.shutdown()
        del self._engine
        gc.collect()

    def _load_adapter(self, folder: Path) -> LoRARequest:
        from vllm.exceptions import VLLMError
        from vllm.lora.request import LoRARequest

        if self._max_lora_rank == 0:
            raise SpecError(f"cannot use the adapter {folder}: the generator was made with lora_rank None")
        if not (folder / "adapter_config.json").is_file():  # vLLM would ask the hub for it
            raise CheckpointCorruptError(f"{folder} holds no adapter")
        number = next(self._lora_ids)  # a fresh one: the engine keeps adapters by number
        request = LoRARequest(f"adapter-{number}", number, str(folder))
        try:
            self._engine.add_lora(request)
        except (VLLMError, ValueError, OSError) as error:
            raise CheckpointCorruptError(f"{folder} holds no adapter for this model: {error}") from error
        return request

    def _admit(
        self, waiting: deque[tuple[str, GenerationRequest]], sampling: SamplingSettings, with_logprobs: bool
    ) -> None:
        """Hand requests to the engine: while it has room, and no more prompt tokens than make a short step."""
        num_prompt_tokens = 0
        while waiting and self._engine.get_num_unfinished_requests() < self._max_admitted:
            name, request = waiting[0]
            num_prompt_tokens += len(request.prompt_token_ids)
            if self._on_cpu and len(request.prompt_token_ids) < num_prompt_tokens > _CPU_STEP_TOKENS:
                return
            self._engine.add_request(
                name,
                {"prompt_token_ids": list(request.prompt_token_ids)},
                _sampling_params(sampling, request.seed, with_logprobs, on_cpu=self._on_cpu),
                lora_request=self._adapter,
            )
            waiting.popleft()

    def _completion(self, output: RequestOutput, sampling: SamplingSettings, with_logprobs: bool) -> Completion:
        (sample,) = output.outputs
        logprobs = _sampled_logprobs(sample) if with_logprobs else None
        return make_completion(sample.token_ids, sampling.stop_token_ids, logprobs, self._tokenizer)


def _repack_tied_head(model: torch.nn.Module) -> None:
    """Give a head that shares the embedding's weights the new ones, after they were loaded on a CPU.

    There the head multiplies by a packed copy of the embedding, and vLLM 0.32 packs again only the layers that a
    checkpoint names. Without this the old head stays: log-probabilities are off by 0.03 nats in the mean, 1.8 at most.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def _sampled_logprobs(sample: CompletionOutput) -> list[float]:
    assert sample.logprobs is not None
    logprobs = []
    for candidates, token_id in zip(sample.logprobs, sample.token_ids, strict=True):
        assert candidates is not None
        logprobs.append(candidates[token_id].logprob)
    return logprobs


def _num_tokens(completions: dict[str, Completion]) -> int:
    return sum(len(completion.token_ids) for completion in completions.values())


def _sampling_params(sampling: SamplingSettings, seed: int, with_logprobs: bool, *, on_cpu: bool) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    own_nucleus = on_cpu and sampling.temperature > 0
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=1.0 if own_nucleus else sampling.top_p,
        top_k=0 if own_nucleus else max(sampling.top_k, 0),
        extra_args={"top_k": sampling.top_k, "top_p": sampling.top_p} if own_nucleus else None,
        max_tokens=sampling.max_new_tokens,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=True,  # what ends a completion is said by `stop_token_ids` alone
        seed=seed,
        logprobs=0 if with_logprobs else None,  # 0: of the sampled token, and no others
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _cpu_arguments() -> dict[str, Any]:
    from trd_engine.generation.vllm.nucleus import NucleusProcessor

    return {
        # A prompt read in parts makes vLLM rewind its request's generator, which torch's CPU generators cannot do.
        "enable_chunked_prefill": False,
        "logits_processors": [NucleusProcessor],
    }


def _gpu_arguments(dtype: torch.dtype) -> dict[str, Any]:
    """Name vLLM's second choice of attention if its first would be compiled and cannot be: on B200 and its kin it takes
    FlashInfer without asking for nvcc, which compiles the kernels at the first prompt. There is no fp32 in either."""
    from vllm.platforms import current_platform
    from vllm.utils.flashinfer import has_flashinfer

    is_first_choice = current_platform.is_device_capability_family(100) and dtype != torch.float32
    return {"attention_backend": "FLASH_ATTN"} if is_first_choice and not has_flashinfer() else {}


def _cpu_kv_cache_bytes(model_folder: Path, dtype: torch.dtype, max_model_len: int | None, max_num_seqs: int) -> int:
    """Return room for `max_num_seqs` requests of full length up to the limit, and for one in any case."""
    config = AutoConfig.from_pretrained(model_folder)
    length = max_model_len or config.get_text_config().max_position_embeddings
    request_bytes: int = (length // _KV_BLOCK_TOKENS + 2) * _KV_BLOCK_TOKENS * kv_token_bytes(config, dtype)
    return max(request_bytes, min(_CPU_KV_CACHE_BYTES, max_num_seqs * request_bytes))
