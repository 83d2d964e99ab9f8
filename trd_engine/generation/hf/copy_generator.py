"""Generation by transformers from a whole model of its own: for processes that divide the trained one.

Sampling from a divided model would gather every layer for every token, and processes with uneven work would wait for
one another. A copy costs its memory; where vLLM runs, it is the better one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from trd_engine.generation.hf.generator import TransformersGenerator
from trd_engine.models.loading import load_model
from trd_engine.models.lora import STUDENT_ADAPTER


class CopyGenerator(TransformersGenerator):
    """Samples from the model in `folder` until other weights, or an adapter on them, are loaded."""

    def __init__(
        self,
        folder: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: torch.device,
        dtype: torch.dtype,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        """`dtype`: of the weights in memory. `autocast_dtype`: as `TransformersGenerator` has it."""
        model = load_model(folder, dtype=dtype, device=device)
        super().__init__(model, tokenizer, autocast_dtype=autocast_dtype)
        self._device = device
        self._dtype = dtype

    def load_weights(self, folder: Path) -> None:
        """Replace the model by the one in `folder`."""
        self._model = load_model(str(folder), dtype=self._dtype, device=self._device)

    def use_adapter(self, folder: Path | None) -> None:
        """Answer with the adapter in `folder`, or with the bare model."""
        if isinstance(self._model, PeftModel):
            self._model = self._model.unload()
        if folder is not None:
            self._model = PeftModel.from_pretrained(self._model, str(folder), adapter_name=STUDENT_ADAPTER)
