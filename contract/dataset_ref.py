"""Where a job's problems come from: an upload, a hub, a path on the server or a generator."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Discriminator, Field
from pydantic import Tag as PydanticTag
from pydantic_core import PydanticCustomError

from contract.strict_model import StrictModel

Columns = Annotated[
    dict[Annotated[str, Field(max_length=100)], Annotated[str, Field(min_length=1, max_length=500)]],
    Field(max_length=50),
]
"""Our field names to the rows' columns, or to paths into them such as ``reward_model.ground_truth``."""
HubId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w.-]+/[\w.-]+$")]
Config = Annotated[str, Field(min_length=1, max_length=100)]


class HubDataset(StrictModel):
    """A dataset on a Hugging Face hub, by the operator's allow-list."""

    hub: HubId
    """Its id, ``owner/name``."""
    config: Config | None = None
    """Which of its configurations to read; needed if it has several, as ``main`` of ``openai/gsm8k``."""
    split: Annotated[str, Field(min_length=1, max_length=100)] = "train"
    """Which split to read."""
    revision: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """Commit or tag to pin; None takes the newest at the time the job starts."""
    columns: Columns = {}  # noqa: RUF012 - pydantic copies it
    """Maps our fields to the rows' columns, as {"problem": "question"}; needed for rows of no known shape."""


class PathDataset(StrictModel):
    """A file or folder on the server, inside a root that the operator allows."""

    path: Annotated[str, Field(min_length=1, max_length=1000)]
    """JSON Lines, JSON, CSV or Parquet file, or a dataset folder."""
    config: Config | None = None
    """Which configuration of a dataset folder to read; needed if it has several."""
    columns: Columns = {}  # noqa: RUF012 - pydantic copies it
    """Maps our fields to the rows' columns, as {"problem": "question"}; needed for rows of no known shape."""


class GeneratedDataset(StrictModel):
    """Problems made by a `reasoning-gym` generator."""

    generator: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^\w+$")]
    """Its name in `reasoning-gym`."""
    size: Annotated[int, Field(ge=1, le=1_000_000)]
    """How many problems to make."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the generator."""


_ID = re.compile(r"ds_[0-9a-z]{1,64}")


def _as_id(value: str) -> str:
    if not _ID.fullmatch(value):
        raise PydanticCustomError("dataset_id", "is no dataset's id, which begins with ds_; upload the rows to get one")
    return value


DatasetId = Annotated[str, AfterValidator(_as_id), Field(json_schema_extra={"pattern": f"^{_ID.pattern}$"})]


def _dataset_kind(value: object) -> str:
    """Return the member of `DatasetRef` that a value means, so that its errors speak of that member alone."""
    for kind in ("hub", "generator", "path"):
        if (isinstance(value, dict) and kind in value) or hasattr(value, kind):
            return f"as_{kind}"
    return "as_path" if isinstance(value, dict) else "as_id"


DatasetRef = Annotated[
    Annotated[DatasetId, PydanticTag("as_id")]
    | Annotated[HubDataset, PydanticTag("as_hub")]
    | Annotated[PathDataset, PydanticTag("as_path")]
    | Annotated[GeneratedDataset, PydanticTag("as_generator")],
    Discriminator(_dataset_kind),
]
"""An uploaded dataset's id, or where else the rows come from."""
