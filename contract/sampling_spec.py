"""How a job samples: the rollouts' and refinements' distribution, their budgets, and the devices that draw them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from contract.strict_model import StrictModel, contradiction


class SamplingSpec(StrictModel):
    """How the student's rollouts, and the evaluation's samples, are drawn."""

    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """Generator; auto takes vLLM where it is installed, else transformers."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.6
    """Sampling temperature; 0 is greedy, and vLLM goes no higher than 2."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Nucleus mass."""
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] = 20
    """Sampling's top-k (not the loss's); -1 or 0 switches it off."""
    max_prompt_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 2048
    """Problems whose solving prompt is longer are dropped and counted."""
    max_new_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 16384
    """Longest rollout."""
    thinking: bool | None = None
    """Passed to the chat template as ``enable_thinking``; None leaves it to the template."""
    placement: Literal["colocated", "separate"] = "colocated"
    """Where vLLM samples: on the devices that train, taking turns with training, or on ``tensor_parallel_size``
    more for each of them."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] = 1
    """Devices over which vLLM divides one copy of a model."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=0.98)] | None = None
    """Share of a GPU's memory for the vLLM engine that is awake: student's and teacher's engine take turns. None: what
    is free beside the training if placement is colocated, and 0.9 if it is separate. On a CPU it is ignored, with a
    notice."""

    @model_validator(mode="after")
    def _placement_fits(self) -> Self:
        if self.tensor_parallel_size > 1 and self.placement == "colocated":
            raise contradiction(
                "sampling.tensor_parallel_size",
                self.tensor_parallel_size,
                "colocated, an engine has the one device of its training process",
                'set sampling.placement to "separate", or leave it out',
            )
        if self.placement == "separate" and self.engine == "transformers":
            raise contradiction(
                "sampling.placement",
                self.placement,
                "transformers samples where the model is trained",
                'set sampling.engine to "vllm", or leave it out',
            )
        return self
