"""Which weights of the student are trained, and the optimizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contract.strict_model import StrictModel


class LoraSpec(StrictModel):
    """Low-rank adapters on the linear layers."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 64
    """Rank r of the adapters."""
    alpha: Annotated[float, Field(gt=0, le=65536)] = 128
    """The adapter's output is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the adapter's input during training."""
    target_modules: Literal["auto"] | Annotated[list[str], Field(min_length=1, max_length=100)] = "auto"
    """Names of the linear layers; auto means all in the blocks (in most families q, k, v, o, gate, up and down), but
    those that choose experts."""


class OptimSpec(StrictModel):
    """AdamW with warm-up and cosine decay."""

    learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 5e-6
    """Peak learning rate."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    """Trajectories in one optimizer step, over all devices and accumulation."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Passes over a round's trajectories."""
    max_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Maximum number of optimizer steps in the run; None: epochs and rounds decide."""
    warmup_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Share of all steps in which the learning rate rises linearly from zero."""
    min_lr_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Final learning rate of the cosine decay, as a share of the peak."""
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] = 0.005
    """AdamW's decoupled weight decay."""
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.95)
    """AdamW's β₁ and β₂."""
    max_grad_norm: Annotated[float, Field(gt=0.0, le=1e6)] = 1.0
    """A larger gradient is scaled down to this norm."""
    micro_batch_tokens: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Maximum number of tokens (of student or teacher) in one forward pass per device, without padding. None means, as
    the memory allows, up to 16,384 of the student and 65,536 of the teacher on a GPU, and up to 16,384 of either on a
    CPU. It changes memory and speed, never the loss. A longer sequence is a batch by itself."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass: less memory, about a third more time. None means only on a GPU."""
