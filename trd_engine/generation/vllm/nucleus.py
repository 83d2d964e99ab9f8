"""Top-k and top-p for vLLM on a CPU, as a logits processor.

vLLM sorts the whole vocabulary there for every row and step, which costs more than a small model's forward pass at
49,152 tokens. This selects the k best tokens first, and sorts only them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor

from trd_engine.generation.hf.token_sampling import keep_nucleus

if TYPE_CHECKING:
    from vllm.v1.sample.logits_processor import BatchUpdate


class NucleusProcessor(LogitsProcessor):
    """Applies `top_k` and `top_p` from the requests' extra arguments, which are the same for all of a batch."""

    def __init__(self, vllm_config: object, device: torch.device, is_pin_memory: bool) -> None:
        self._top_k = 0
        self._top_p = 1.0

    def is_argmax_invariant(self) -> bool:
        """Return True: the most probable token is always kept. vLLM applies such processors after the temperature."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Read the settings of the requests that are new in the batch."""
        for _, params, _, _ in batch_update.added if batch_update else ():
            if params.extra_args:
                self._top_k, self._top_p = params.extra_args["top_k"], params.extra_args["top_p"]

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, V] with all but the nucleus at minus infinity."""
        return keep_nucleus(logits, self._top_k, self._top_p)
