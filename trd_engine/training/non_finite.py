"""What is kept of a step whose loss or gradient is not finite, to look at it afterwards.

Owns the evidence and its folder, ``non-finite/step-N``:

- ``trajectories.jsonl``: the batch's, as the rounds' own files have them; ``position`` counts within this file, and
  ``facts.json`` lists the positions in the round in the same order;
- ``tokens.jsonl``: a line for each trained token with a figure that is not finite;
- ``facts.json``: loss, gradient norm, learning rate, and the parameters whose weights or gradients are not finite.

No optimizer state and no random generator: the newest checkpoint has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trd_data.plain_json import finite
from trd_data.prompts import PromptBuilder
from trd_engine.distillation.batching import MicroBatch
from trd_engine.models.fsdp import local_shard
from trd_engine.rollouts.files import write_trajectories
from trd_engine.runtime.errors import NonFiniteEvidence
from trd_engine.types import Trajectory

FOLDER = "non-finite"
MAX_TOKENS = 10_000
"""Lines of tokens.jsonl; a batch that is broken everywhere tells no more with all of them."""


def gather_evidence(
    loss: float,
    grad_norm: float,
    micro_batches: Sequence[MicroBatch],
    figures: Sequence[Mapping[str, Tensor]],
    model: nn.Module,
) -> NonFiniteEvidence:
    """Gather the evidence of a step; `figures` has each micro-batch's figures [N] by name."""
    tokens = [row for batch, named in zip(micro_batches, figures, strict=True) for row in _bad_tokens(batch, named)]
    return NonFiniteEvidence(
        loss,
        grad_norm,
        tuple(sorted(position for batch in micro_batches for position in batch.positions)),
        sum(batch.num_trained_tokens for batch in micro_batches),
        tuple(tokens),
        tuple(_bad_parameters(model)),
    )


def save_evidence(
    out_dir: Path,
    evidence: NonFiniteEvidence,
    trajectories: Sequence[Trajectory],
    prompts: PromptBuilder,
    *,
    step: int,
    rank: int,
    facts: Mapping[str, Any],
) -> Path:
    """Write the folder of step number `step`; `trajectories` are all of the round's. Returns the folder.

    Of several processes each writes what it trained on and its part of the parameters, in a separate folder.
    """
    folder = out_dir / FOLDER / (f"step-{step}-rank-{rank}" if rank else f"step-{step}")
    write_trajectories(folder / "trajectories.jsonl", [trajectories[i] for i in evidence.positions], prompts)
    # NaN and infinity, which JSON does not have, become the words nan, inf and -inf.
    with (folder / "tokens.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(finite(row, str)) + "\n" for row in evidence.tokens[:MAX_TOKENS])
    document = {
        "step": step,
        **facts,
        "loss": evidence.loss,
        "grad_norm": evidence.grad_norm,
        "positions": evidence.positions,
        "num_tokens": evidence.num_tokens,
        "num_non_finite_tokens": len(evidence.tokens),
        "parameters": evidence.parameters,
    }
    (folder / "facts.json").write_text(json.dumps(finite(document, str), indent=1) + "\n", encoding="utf-8")
    return folder


def _bad_tokens(batch: MicroBatch, named: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
    columns = {name: values_N.detach().float().cpu() for name, values_N in named.items()}
    bad_N = torch.stack([~values_N.isfinite() for values_N in columns.values()]).any(dim=0)
    places_N = torch.cat([torch.arange(count) for count in batch.tokens_by_sequence])
    owners, ids = batch.sequence_N.tolist(), batch.token_ids_N.tolist()
    for index in bad_N.nonzero().flatten().tolist():
        yield {
            "position": batch.positions[owners[index]],
            "token": int(places_N[index]),
            "token_id": ids[index],
            **{name: float(values_N[index]) for name, values_N in columns.items()},
        }


def _bad_parameters(model: nn.Module) -> Iterator[dict[str, Any]]:
    for name, parameter in model.named_parameters():
        weights = int((~local_shard(parameter).isfinite()).sum())
        gradients = 0 if parameter.grad is None else int((~local_shard(parameter.grad).isfinite()).sum())
        if weights or gradients:
            yield {
                "name": name,
                "size": parameter.numel(),
                "non_finite_weights": weights,
                "non_finite_gradients": gradients,
            }
