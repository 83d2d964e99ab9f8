"""A batch of token rows under one transformers model, with its key-value cache.

Legend: B rows, U different prompts, T prompt columns, S columns so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from trd_engine.generation.hf.fast_decoder import LeanDecoder, can_write_to
from trd_engine.generation.hf.kv_cache import preallocated_cache

_PADDING_ID = 0  # any valid id: it is masked


class DecodingWindow:
    """Rows of different lengths, left-padded to align their last tokens, that grow by one token per step.

    Rows of the same prompt, such as the k samples of an evaluation, are one row until the prompt is read.
    """

    def __init__(
        self, model: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]], lean: LeanDecoder | None = None
    ) -> None:
        """`lean`: replaces `model` for single tokens, if it can."""
        num_columns = max(map(len, prompts))
        device = model.device
        different = {prompt: number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        mask = [[0] * (num_columns - len(prompt)) + [1] * len(prompt) for prompt in different]
        self._model = model
        self._cache = preallocated_cache(model.config)
        self._lean = lean if can_write_to(self._cache) else None
        self._prompt_UT = torch.tensor(
            [[_PADDING_ID] * (num_columns - len(prompt)) + list(prompt) for prompt in different], device=device
        )
        self._mask_UT = torch.tensor(mask, device=device)
        self._prompt_B = torch.tensor([different[tuple(prompt)] for prompt in prompts], device=device)
        self._mask_BS = self._mask_UT[self._prompt_B]
        self._length_B = self._mask_BS.sum(dim=-1)

    def read_prompts(self, max_step_tokens: int, after_slice: Callable[[], None]) -> torch.Tensor:
        """Return logits [B, V] of the first completion token. The prompts are read in slices of columns, each of about
        `max_step_tokens` tokens; `after_slice` is called after each and may raise."""
        num_prompts, num_columns = self._prompt_UT.shape
        width = max(1, max_step_tokens // num_prompts)
        position_UT = (self._mask_UT.cumsum(dim=-1) - 1).clamp(min=0)
        for start in range(0, num_columns, width):
            end = min(start + width, num_columns)
            logits_UV = self._forward(self._prompt_UT[:, start:end], position_UT[:, start:end], self._mask_UT[:, :end])
            after_slice()
        if num_prompts == len(self._prompt_B):
            return logits_UV
        self._cache.batch_select_indices(self._prompt_B)
        return logits_UV[self._prompt_B]

    def advance(self, tokens_B: torch.Tensor, kept: Sequence[int]) -> torch.Tensor:
        """Append its token to each row in `kept` (indices into the current rows), drop the other rows, and return
        the logits [B, V] of the next token of the kept ones."""
        if len(kept) < tokens_B.shape[0]:
            index = torch.tensor(kept, device=tokens_B.device)
            self._cache.batch_select_indices(index)
            self._mask_BS = self._mask_BS[index]
            self._length_B = self._length_B[index]
            tokens_B = tokens_B[index]
        self._mask_BS = torch.cat([self._mask_BS, torch.ones_like(self._mask_BS[:, :1])], dim=-1)
        logits_BV = self._read_tokens(tokens_B)
        self._length_B = self._length_B + 1
        return logits_BV

    def _read_tokens(self, tokens_B: torch.Tensor) -> torch.Tensor:
        lean = self._lean
        if lean is None or lean.is_alike is False:
            return self._forward(tokens_B[:, None], self._length_B[:, None], self._mask_BS)
        logits_BV = lean(tokens_B, self._length_B, self._mask_BS, self._cache)
        if lean.is_alike is None:
            self._cache.crop(-1)  # read again, so that the cache has the columns of the model's forward if they differ
            own_BV = self._forward(tokens_B[:, None], self._length_B[:, None], self._mask_BS)
            lean.compare(logits_BV, own_BV)
            return own_BV
        return logits_BV

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output = self._model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_BV: torch.Tensor = output.logits[:, -1]
        return logits_BV
