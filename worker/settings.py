"""What a worker reads from its environment, once, when it starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from contract.settings import DeploymentSettings, Seconds

SHUTDOWN_MARGIN_SECONDS = 60.0
"""Time for uploads and the last writes after the child's grace period."""


class WorkerSettings(DeploymentSettings):
    """One worker process."""

    lease_seconds: Seconds = 30.0
    """A worker that has not renewed its lease for this long is considered lost."""
    heartbeat_seconds: Seconds = 5.0
    """Interval at which a lease is renewed and a cancel or pause is noticed; at most half of TRD_LEASE_SECONDS."""
    stop_grace_seconds: Seconds = 60.0
    """How long a child may take to reach a step boundary before it is killed."""
    poll_seconds: Seconds = Field(default_factory=lambda given: 0.5 if given["broker_url"] is None else 3.0)
    """Interval at which an idle worker polls the database for a job. Default: 0.5 without a broker, 3 with one."""
    progress_seconds: Seconds = 1.0
    """Interval at which a child's events are written to the database."""
    reaper_seconds: Seconds = 10.0
    """Interval at which the leading worker looks for expired leases."""
    tracker_grace_seconds: Seconds = 20.0
    """How long trackers (W&B…) may take to get a run's last figures after its end."""
    hub_push_seconds: Seconds = 1800.0
    """How long a push to the Hugging Face hub may take after a run's end; the worker runs no other job meanwhile."""
    hub_network: Literal["public", "private", "loopback"] = "public"
    """Which addresses the hub (``HF_ENDPOINT``) and its uploads may have: public ones, also private networks, or this
    machine only (for tests). Only ``loopback`` allows http; the others require https."""
    webhook_seconds: Seconds = 1.0
    """Interval at which the worker looks for webhook deliveries to send."""
    chat_seconds: Seconds = 120.0
    """How long one answer in a chat with a checkpoint may take."""
    chat_idle_seconds: Seconds = 60.0
    """How long an idle worker keeps the models of a chat loaded after the last answer; a job that comes gets the
    worker at once."""
    ring_seconds: Seconds = 60.0
    """How long a job may wait before its doorbell is sent again, and the interval of further ones."""
    check_machine: bool = True
    """Whether the worker makes the short checks of ``trd doctor`` when it starts. GET /readyz and ``trd status`` show
    what failed, and dry runs take the kind of device from there."""
    metrics_port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    """Port of this worker's figures for Prometheus, another one for each worker of a machine. If unset, none is
    opened."""
    metrics_host: str = "127.0.0.1"
    """Address on which the figures are served, without a key."""
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = 3
    """A job fails after this many attempts in a row without a step of progress."""
    enable_code_tasks: Literal["0", "1"] = "0"
    """``1`` lets jobs of task ``code`` run programs that models write, in a sandbox without network."""
    loss_kernel: Literal["auto", "triton", "torch"] = "auto"
    """``triton`` or ``torch`` forces the code that computes the loss; ``auto`` takes Triton's kernels on a GPU.
    ``TRITON_INTERPRET=1``, Triton's own variable, runs them on a CPU, for tests."""

    launcher: Literal["local", "ray"] = "local"
    """Where runs are started: on this machine (by torchrun if there are several devices), or on the nodes of the Ray
    cluster that RAY_ADDRESS names (docs/scaling.md)."""
    ray_address: str | None = Field(default=None, validation_alias="ray_address")
    """The head of a Ray cluster, as ``host:6379`` or ``ray://host:10001``; ``auto`` on a machine of it."""
    ray_auth_mode: str | None = Field(default=None, validation_alias="ray_auth_mode")
    """Ray's own variable. The launcher ray demands ``token``; the token is in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."""

    nodes: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Nodes that the Ray cluster has at its largest, each with TRD_DEVICES_PER_NODE devices. The worker leaves jobs
    that need more to others, and `would_wait_for` of such a job says so. If unset, it claims them all."""

    @model_validator(mode="after")
    def _ray_is_reachable_and_closed(self) -> Self:
        if self.launcher == "ray" and self.ray_address is None:
            raise ValueError("TRD_LAUNCHER = ray needs the cluster's address; set RAY_ADDRESS to host:6379")
        if self.launcher == "ray" and not re.fullmatch(
            r"auto|(ray://)?(\[[0-9a-fA-F:]+\]|[\w.-]+):\d+", self.ray_address or ""
        ):
            raise ValueError(f"RAY_ADDRESS = {self.ray_address}: write it like host:6379 or ray://host:10001")
        if self.launcher == "ray" and self.ray_auth_mode != "token":
            raise ValueError(
                f"RAY_AUTH_MODE = {self.ray_auth_mode}: anybody who reaches a Ray cluster without tokens can run code "
                "on it; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, here and on every node"
            )
        return self

    @model_validator(mode="after")
    def _heartbeat_fits_lease(self) -> Self:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                f"TRD_HEARTBEAT_SECONDS = {self.heartbeat_seconds} leaves no room for a late heartbeat within "
                f"TRD_LEASE_SECONDS = {self.lease_seconds}; set it to at most half of that"
            )
        return self

    @property
    def scratch_dir(self) -> Path:
        """Folder of the attempts' folders."""
        return self.data_dir / "scratch"
