"""Generation by a transformers model in place, without a second copy of the trainer's weights.

Slower than vLLM on all but the smallest models, but it runs every model of transformers. Its decoding loop replaces
`model.generate`: a sample depends on its request's seed and not on its neighbours, finished rows leave the batch,
prompts are read in slices so that a stop takes effect within seconds, and log-probabilities are recorded without
keeping [tokens, vocabulary].

Legend: B rows still running, N new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trd_engine.generation.completions import ProgressMeter, check_requests, make_completion
from trd_engine.generation.hf.fast_decoder import lean_decoder
from trd_engine.generation.hf.small_batch_linear import skinny_products
from trd_engine.generation.hf.token_sampling import draw_uniforms, sample_tokens
from trd_engine.generation.hf.window import DecodingWindow
from trd_engine.models.loading import context_of, evaluation_mode, load_model
from trd_engine.models.lora import STUDENT_ADAPTER, answering_with
from trd_engine.types import Completion, CompletionCallback, GenerationRequest, ProgressCallback, SamplingSettings


@dataclass
class _Row:
    """One request while it is sampled."""

    number: int
    request: GenerationRequest
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class TransformersGenerator:
    """Samples from a borrowed model with its current weights.

    `load_weights` therefore has nothing to load. `use_adapter` matters for a `PeftModel` only: any folder means the
    live adapter, and None the bare model. While it samples the model is in evaluation mode (which also disables
    gradient checkpointing); afterwards every module is back in its former mode.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        adapter: str | None = STUDENT_ADAPTER,
        autocast_dtype: torch.dtype | None = None,
        max_batch_tokens: int = 32_768,
        max_step_tokens: int = 1_024,
    ) -> None:
        """Borrow `model`; `tokenizer` makes the text of a completion.

        `adapter`: the adapter of a `PeftModel` that is active; None samples without any.
        `autocast_dtype`: that of the trainer, so that both compute alike; None: the dtype of the weights.
        `max_batch_tokens`: rows × (longest prompt + max_new_tokens) of a batch; bounds the key-value cache.
        `max_step_tokens`: prompt tokens read in one forward pass; bounds the time between two progress reports.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._live_adapter = adapter
        self._adapter = adapter
        self._autocast_dtype = autocast_dtype
        self._max_batch_tokens = max_batch_tokens
        self._max_step_tokens = max_step_tokens

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
        check_requests(requests, sampling, max_model_len=context_of(self._model))
        rows = [_Row(number, request) for number, request in enumerate(requests)]
        completions: dict[int, Completion] = {}
        meter = ProgressMeter(on_progress, len(rows))

        def finish(row: _Row) -> None:
            logprobs = row.logprobs if with_logprobs else None
            completion = make_completion(row.token_ids, sampling.stop_token_ids, logprobs, self._tokenizer)
            completions[row.number] = completion
            if on_completion is not None:
                on_completion(row.number, completion)

        adapter = answering_with(self._model, self._adapter) if isinstance(self._model, PeftModel) else nullcontext()
        autocast: AbstractContextManager[Any] = nullcontext()
        if self._autocast_dtype is not None:
            autocast = torch.autocast(self._model.device.type, dtype=self._autocast_dtype)
        with torch.no_grad(), evaluation_mode(self._model), adapter, autocast, skinny_products(self._model):
            lean = lean_decoder(self._model)
            for batch in _batches(rows, sampling.max_new_tokens, self._max_batch_tokens):
                window = DecodingWindow(self._model, [row.request.prompt_token_ids for row in batch], lean)
                self._sample_batch(batch, window, sampling, meter, finish, with_logprobs=with_logprobs)
        meter.report()
        return [completions[row.number] for row in rows]

    def use_adapter(self, folder: Path | None) -> None:
        """Select the bare model (None) or the live adapter (any folder), which has its weights already."""
        self._adapter = None if folder is None else self._live_adapter

    def load_weights(self, folder: Path) -> None:
        """Do nothing: the weights are the trainer's."""

    def sleep(self) -> None:
        """Do nothing: there is no memory to give back between two calls, see `Generator.sleep`."""

    def close(self) -> None:
        """Give the model back."""
        del self._model

    def _sample_batch(
        self,
        batch: list[_Row],
        window: DecodingWindow,
        sampling: SamplingSettings,
        meter: ProgressMeter,
        finish: Callable[[_Row], None],
        *,
        with_logprobs: bool,
    ) -> None:
        """Sample every row of `batch` to its end; `finish` is called with each row that has reached it."""
        uniforms_BN = draw_uniforms([row.request for row in batch], sampling.max_new_tokens).to(self._model.device)
        logits_BV = window.read_prompts(self._max_step_tokens, meter.report_if_due)
        for step in range(sampling.max_new_tokens):
            tokens_B = sample_tokens(logits_BV, uniforms_BN[:, step], sampling)
            ended_B = _record(batch, logits_BV, tokens_B, sampling.stop_token_ids, with_logprobs)
            is_last = step + 1 == sampling.max_new_tokens
            meter.num_tokens += len(batch)
            meter.num_done += len(batch) if is_last else sum(ended_B)
            for row, ended in zip(batch, ended_B, strict=True):
                if ended or is_last:
                    finish(row)
            meter.report_if_due()
            kept = [slot for slot, ended in enumerate(ended_B) if not ended]
            if is_last or not kept:
                return
            logits_BV = window.advance(tokens_B, kept)
            if len(kept) < len(batch):
                batch = [batch[slot] for slot in kept]
                uniforms_BN = uniforms_BN[kept]


class CopyGenerator(TransformersGenerator):
    """Samples from its own copy of a model, for processes that shard the trained one.

    Sampling from a sharded model would gather every layer for every token, and processes with uneven work would wait
    for one another. The copy costs its memory; if vLLM runs, it is the better choice.
    """

    def __init__(
        self,
        folder: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: torch.device,
        dtype: torch.dtype,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        """`dtype`: of the weights in memory. `autocast_dtype`: see `TransformersGenerator`."""
        model = load_model(folder, dtype=dtype, device=device)
        super().__init__(model, tokenizer, autocast_dtype=autocast_dtype)
        self._device = device
        self._dtype = dtype

    @property
    def model(self) -> PreTrainedModel | PeftModel:
        """The copy, which stays on the device between two calls."""
        return self._model

    def load_weights(self, folder: Path) -> None:
        """Replace the model by the one in `folder`."""
        self._model = load_model(str(folder), dtype=self._dtype, device=self._device)

    def use_adapter(self, folder: Path | None) -> None:
        """Answer with the adapter in `folder`, or with the bare model."""
        if isinstance(self._model, PeftModel):
            self._model = self._model.unload()
        if folder is not None:
            self._model = PeftModel.from_pretrained(self._model, str(folder), adapter_name=STUDENT_ADAPTER)


def _batches(rows: list[_Row], max_new_tokens: int, max_batch_tokens: int) -> Iterator[list[_Row]]:
    """Yield the rows, longest prompt first, in batches under the token budget (a row over it has its own)."""
    ordered = sorted(rows, key=lambda row: len(row.request.prompt_token_ids), reverse=True)
    start = 0
    while start < len(ordered):
        num_columns = len(ordered[start].request.prompt_token_ids) + max_new_tokens
        end = start + max(1, max_batch_tokens // num_columns)
        yield ordered[start:end]
        start = end


def _record(
    rows: list[_Row],
    logits_BV: torch.Tensor,
    tokens_B: torch.Tensor,
    stop_token_ids: tuple[int, ...],
    with_logprobs: bool,
) -> list[bool]:
    """Append its token and untempered log-probability to each row; return which rows ended with it."""
    token_ids = tokens_B.tolist()
    for row, token_id in zip(rows, token_ids, strict=True):
        row.token_ids.append(token_id)
    if with_logprobs:
        logprobs_B = logits_BV.float().log_softmax(dim=-1).gather(-1, tokens_B[:, None]).squeeze(-1)
        for row, logprob in zip(rows, logprobs_B.tolist(), strict=True):
            row.logprobs.append(logprob)
    return [token_id in stop_token_ids for token_id in token_ids]
