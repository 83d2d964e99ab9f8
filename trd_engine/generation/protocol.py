"""What a generator is to the rest of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trd_engine.types import Completion, CompletionCallback, GenerationRequest, ProgressCallback, SamplingSettings


class Generator(Protocol):
    """Samples completions from one model whose weights can change between calls.

    Token-in, token-out: prompts are token ids, and completions carry the ids that were sampled.
    """

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingSettings,
        *,
        with_logprobs: bool = False,
        on_progress: ProgressCallback | None = None,
        on_completion: CompletionCallback | None = None,
    ) -> list[Completion]:
        """Return one completion per request, in the order of `requests`. The same requests with the same seeds,
        settings and weights give the same completions."""
        ...

    def use_adapter(self, folder: Path | None) -> None:
        """Sample with the LoRA adapter in `folder` from now on; None: with the bare model."""
        ...

    def load_weights(self, folder: Path) -> None:
        """Sample with the full weights in the Hugging Face folder from now on, and drop cached prefixes."""
        ...

    def sleep(self) -> None:
        """Free memory, if the platform can, until the generator is used again."""
        ...

    def close(self) -> None:
        """Free the model's memory. The generator is not used again."""
        ...


@dataclass(frozen=True)
class TextRequest:
    """One answer to ask for."""

    message: str
    """The user's turn of a chat, without any template."""
    seed: int
    """Seed of the request; a server may ignore it."""


class TextGenerator(Protocol):
    """Answers messages as text behind an API; the answers carry the ids of the student's tokenizer."""

    def complete(
        self,
        requests: Sequence[TextRequest],
        sampling: SamplingSettings,
        *,
        on_progress: ProgressCallback | None = None,
        on_completion: CompletionCallback | None = None,
    ) -> list[Completion]:
        """Return one completion per request, in the order of `requests`."""
        ...

    def no_answer(self) -> Completion:
        """Return the empty completion that stands for a request that was not sent."""
        ...
