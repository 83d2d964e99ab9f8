"""Completions that several runs of the grid have in common, drawn once: first rollouts, and their refinements.

Runs of one seed begin with the same student and problems, and a generator's completions depend only on its model, the
requests and the settings: a run that finds them here ends with the same weights as one that draws them. Completions of
a trained model are not stored. Like the finished rows, the folder does not record the engine's version: delete it
when the engine changes.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn

from trd_engine.generation.hf.generator import TransformersGenerator
from trd_engine.types import Completion, GenerationRequest, SamplingSettings

Generate = Callable[..., list[Completion]]


@contextmanager
def shared_samples(folder: Path) -> Iterator[None]:
    """Within the block, let transformers generators return completions stored in `folder`; for one run at a time."""
    stored = _StoredSamples(folder, TransformersGenerator.generate)

    def generate(generator: TransformersGenerator, *args: Any, **options: Any) -> list[Completion]:
        return stored.generate(generator, *args, **options)

    with patch.object(TransformersGenerator, "generate", generate):
        yield


class _StoredSamples:
    """One file for each call of `generate` on an untrained model."""

    def __init__(self, folder: Path, draw: Generate) -> None:
        self._folder = folder
        self._draw = draw
        self._untrained: dict[nn.Module, str] = {}
        """Digest of each model's weights at its first call."""

    def generate(
        self,
        generator: TransformersGenerator,
        requests: Sequence[GenerationRequest],
        sampling: SamplingSettings,
        *,
        with_logprobs: bool = False,
        **options: Any,
    ) -> list[Completion]:
        """See `Generator.generate`."""
        model = generator._model
        digest = hashlib.sha256()
        for name, tensor in model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy())
        weights = digest.hexdigest()
        if self._untrained.setdefault(model, weights) != weights:
            return self._draw(generator, requests, sampling, with_logprobs=with_logprobs, **options)
        settings = {name: value for name, value in vars(generator).items() if isinstance(value, int | str | None)}
        question = [
            weights,
            model.config.to_json_string(),
            str(generator._autocast_dtype),
            settings,
            asdict(sampling),
            with_logprobs,
        ]
        question += [[asdict(request) for request in requests]]
        path = self._folder / f"{hashlib.sha256(json.dumps(question).encode()).hexdigest()}.json"
        if path.exists():
            return [_completion(fields) for fields in json.loads(path.read_text(encoding="utf-8"))]
        completions = self._draw(generator, requests, sampling, with_logprobs=with_logprobs, **options)
        self._folder.mkdir(parents=True, exist_ok=True)
        # Written atomically: other processes may read it.
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=self._folder, delete=False) as file:
            json.dump([asdict(completion) for completion in completions], file)
        Path(file.name).replace(path)
        return completions


def _completion(fields: dict[str, Any]) -> Completion:
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Completion(**{**fields, **lists})
