"""What a job reports to: Weights & Biases, MLflow, TensorBoard and trackio; and the hub that its result is pushed to.

A spec says which, and where within it. The address of each is the operator's, in the workers' environment; a key
is given by the name of a variable there, never itself.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contract.strict_model import WITHOUT_CONTROLS, StrictModel

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\w][\w .:-]*$"), WITHOUT_CONTROLS]
SecretName = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,99}$")]


class _Tracker(StrictModel):
    project: Name = "trd"
    """Project, or experiment of MLflow, that the job's run belongs to."""
    name: Name | None = None
    """Display name of the run; None: the job's name or id."""


class WandbIntegration(_Tracker):
    """A run of Weights & Biases, with the job's id. The workers' ``WANDB_`` variables apply."""

    type: Literal["wandb"]
    entity: Name | None = None
    """User or team; None: that of the key."""
    tags: Annotated[list[Name], Field(max_length=32)] = []  # noqa: RUF012 - pydantic copies it
    """Tags of the run."""
    api_key_env: SecretName | None = None
    """Name of a variable of the workers, one of ``TRD_INTEGRATION_SECRETS``; None: ``WANDB_API_KEY``."""


class MlflowIntegration(_Tracker):
    """A run on the MLflow server that the workers' ``MLFLOW_TRACKING_URI`` names, with the tag ``trd_job``."""

    type: Literal["mlflow"]
    api_key_env: SecretName | None = None
    """Name of a variable of the workers, one of ``TRD_INTEGRATION_SECRETS``; None: ``MLFLOW_TRACKING_TOKEN``."""


class TensorboardIntegration(StrictModel):
    """Event files in ``trackers/tensorboard`` of the worker's data folder, in a folder with the job's id."""

    type: Literal["tensorboard"]


class TrackioIntegration(_Tracker):
    """A run of trackio, in ``trackers/trackio`` of the worker's data folder unless ``TRACKIO_DIR`` names another."""

    type: Literal["trackio"]


class HubIntegration(StrictModel):
    """Pushes the last checkpoint of a run that succeeds to the Hugging Face hub, with its model card."""

    type: Literal["hub"]
    repo: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}$"), WITHOUT_CONTROLS
    ]
    """Repository, as ``owner/name``; it is made if the hub does not have it."""
    private: bool = True
    """Whether only its owner may see a repository that is made."""
    weights: Literal["model", "adapter"] = "model"
    """``model``: the full weights, with LoRA the merged ones; ``adapter``: LoRA's alone."""
    api_key_env: SecretName
    """Name of a variable of the workers with a token that may write, one of ``TRD_INTEGRATION_SECRETS``."""


Integration = Annotated[
    WandbIntegration | MlflowIntegration | TensorboardIntegration | TrackioIntegration | HubIntegration,
    Field(discriminator="type"),
]
