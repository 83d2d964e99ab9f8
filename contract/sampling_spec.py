"""How a job samples and refines: the distribution, the token limits, and the devices or servers."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from contract.server_groups import ServerName
from contract.strict_model import StrictModel, contradiction


class SamplingSpec(StrictModel):
    """How rollouts and evaluation samples are drawn from the student."""

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """Generator; auto means vLLM if it is installed and can serve the models, otherwise transformers."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.6
    """Sampling temperature; 0 is greedy; vLLM allows at most 2."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Probability mass of nucleus sampling."""
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] = 20
    """Top-k of sampling (not of the loss); -1 or 0 switches it off."""
    max_prompt_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 2048
    """Maximum length of a solving prompt; problems with a longer one are dropped and counted."""
    max_new_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 16384
    """Maximum length of a rollout."""
    thinking: bool | None = None
    """Passed to the chat template as ``enable_thinking``; None means the template's default."""
    placement: Literal["colocated", "separate"] = "colocated"
    """Devices that vLLM samples on: colocated means the training devices, in turns with training; separate means
    ``tensor_parallel_size`` additional devices for each training device."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of devices that vLLM shards one copy of a model over."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=0.98)] | None = None
    """Share of a GPU's memory for the active vLLM engine: the student's and the teacher's engine take turns. None means
    the memory that training leaves free if placement is colocated, and 0.9 if it is separate. Ignored on a CPU, with
    a notice."""
    pool: ServerName | None = None
    """Name of a pool of servers in the operator's settings, which sample instead of the job's own devices. Needs LoRA
    and, in mode trd with a teacher model, ``refine.pool``. None means that the job samples."""

    @model_validator(mode="after")
    def _placement_fits(self) -> Self:
        if self.tensor_parallel_size > 1 and self.placement == "colocated":
            raise contradiction(
                "sampling.tensor_parallel_size",
                self.tensor_parallel_size,
                "a colocated engine only has the device of its training process",
                'set sampling.placement to "separate", or leave it out',
            )
        if self.placement == "separate" and self.engine == "transformers":
            raise contradiction(
                "sampling.placement",
                self.placement,
                "transformers samples on the training device",
                'set sampling.engine to "vllm", or leave it out',
            )
        if self.pool is not None and (self.placement == "separate" or self.engine == "transformers"):
            raise contradiction(
                "sampling.pool",
                self.pool,
                "its servers sample, and no engine of the job",
                "leave sampling.engine and sampling.placement out, or leave it out",
            )
        return self


class RefineSpec(StrictModel):
    """How rollouts are refined; sampled with the temperature, top-p and top-k of `SamplingSpec`."""

    max_prompt_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Maximum length of the refining prompt; None means the paper's 18,432 with a teacher and 22,528 without."""
    max_new_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 16384
    """Maximum length of a refined trajectory."""
    keep: Literal["all", "fail_to_pass"] = "all"
    """Refined trajectories to train on: all, as in the paper, or only those whose rollout failed and whose refinement
    passed (an ablation; the paper reports that it hurts). The number of steps is the same: the kept trajectories are
    repeated to fill them."""
    pool: ServerName | None = None
    """Name of a pool of servers of the teacher model, which refine instead of the job's own devices. For jobs with
    ``sampling.pool`` and a teacher model."""
