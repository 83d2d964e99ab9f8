"""Does the sampler answer with the weights that are trained? A few completions tell.

After every sync the sampler's log-probabilities of its tokens are compared with those of the trainer's
forward pass over the very same ids. An adapter that never reached the sampler looks like staleness,
and costs weeks to find otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trd_engine.distillation.batching import split_into_micro_batches
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.generation.samplers import Samplers
from trd_engine.models.attention.packing import hidden_states
from trd_engine.models.head import head_of
from trd_engine.runtime.errors import SamplerDriftError
from trd_engine.runtime.seeds import derive_seed
from trd_engine.types import GenerationRequest, SamplingSettings, TrainingSequence

NUM_PROBES = 4
PROBE_TOKENS = 32
MAX_MEAN_GAP = {torch.float32: 0.001, torch.bfloat16: 0.1}
"""Mean |Δ log p| over the probes' tokens. Measured with the right weights: 1e-6 in fp32, about 0.01 in bf16."""


def measure_sampler_gap(
    samplers: Samplers, models: ModelPair, prompts: Sequence[tuple[int, ...]], *, seed: int
) -> float:
    """Return the mean absolute difference, in nats, between the sampler's and the trainer's log-probabilities.

    Raises `SamplerDriftError` if it is over the threshold of the compute dtype.
    """
    own = samplers.student_sampling
    # No more than the run samples: a sampler has room for no longer text.
    settings = SamplingSettings(1.0, 1.0, -1, min(PROBE_TOKENS, own.max_new_tokens), own.stop_token_ids)
    requests = [GenerationRequest(p, derive_seed(seed, "probe", i)) for i, p in enumerate(prompts[:NUM_PROBES])]
    completions = samplers.sample_student(requests, sampling=settings, with_logprobs=True)
    samplers.sleep()  # the forward passes need the memory
    sampled: list[float] = []
    trained: list[float] = []
    for request, completion in zip(requests, completions, strict=True):
        assert completion.logprobs is not None
        # An empty completion takes a pass too, with any token: all processes must make the same passes.
        token_ids = completion.token_ids or request.prompt_token_ids[:1]
        found = _trainer_logprobs(models, request.prompt_token_ids, token_ids)
        sampled += completion.logprobs
        trained += found[: len(completion.token_ids)]
    # Each process holds its own sampler against the trainer; the worst of them counts.
    mean = float((torch.tensor(sampled) - torch.tensor(trained)).abs().mean()) if sampled else 0.0
    gap = models.world.max(mean)
    limit = MAX_MEAN_GAP[models.compute_dtype]
    if not gap <= limit:
        raise SamplerDriftError(
            f"the sampler's log-probabilities are off the trainer's by {gap:.4f} nats in the mean, over the limit of "
            f"{limit}: it does not answer with the weights that are trained"
        )
    return gap


@torch.no_grad()
def _trainer_logprobs(models: ModelPair, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    models.student.eval()
    sequence = TrainingSequence(prompt, prompt, completion, 0)
    (batch,) = split_into_micro_batches([sequence], max_tokens=1, device=models.device)

    def student_logits() -> Tensor:
        return head_of(models.student).logits(hidden_states(models.student, batch.student))

    with models.autocast():
        logits_NV: Tensor = models.run_student_unsharded(student_logits)
    logprobs_N = logits_NV.log_softmax(-1).gather(-1, batch.token_ids_N.unsqueeze(-1)).squeeze(-1)
    return [float(x) for x in logprobs_N]
