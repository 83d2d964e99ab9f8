"""Named tensors on disk that several processes hold as shards: each writes its shards, any number of processes reads.

A single process writes ``NAME.safetensors``; several write ``NAME-00001-of-00002.safetensors`` and so on, whose header
has the first row of each shard. Shards are of the first dimension, as FSDP2 makes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from trd_engine.models.fsdp import local_shard
from trd_engine.runtime.distributed import World
from trd_engine.runtime.errors import CheckpointCorruptError

_ROW_STARTS = "row_starts"


def write_parts(folder: Path, name: str, tensors: Mapping[str, Tensor], world: World) -> None:
    """Write this process's shards of `tensors`. The main process writes the tensors that are not sharded."""
    mine = {key: tensor for key, tensor in tensors.items() if isinstance(tensor, DTensor) or world.is_main}
    parts = {key: local_shard(tensor).detach().cpu().contiguous() for key, tensor in mine.items()}
    if world.size == 1:
        save_file(parts, folder / f"{name}.safetensors")
        return
    starts = {key: _first_row(tensor) for key, tensor in mine.items()}
    path = folder / f"{name}-{world.rank + 1:05d}-of-{world.size:05d}.safetensors"
    save_file(parts, path, metadata={_ROW_STARTS: json.dumps(starts, sort_keys=True)})


class PartsReader:
    """Reads the tensors that `write_parts` wrote, with any number of processes."""

    def __init__(self, folder: Path, name: str) -> None:
        """Index the parts' tensors; raise `CheckpointCorruptError` if a part is missing."""
        self._name = name
        self._places: dict[str, list[tuple[Path, int]]] = {}
        for path in _part_files(folder, name):
            with safe_open(path, framework="pt") as file:
                starts = json.loads((file.metadata() or {}).get(_ROW_STARTS, "{}"))
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    self._places.setdefault(key, []).append((path, starts.get(key, 0)))

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._places)

    @torch.no_grad()
    def read_into(self, key: str, target: Tensor) -> None:
        """Fill `target`, or this process's part of it; raises `CheckpointCorruptError` if the file has less."""
        local = local_shard(target)
        if local.ndim == 0:
            for rows, _ in self._parts(key):
                local.copy_(rows)
            return
        first, num_filled = _first_row(target), 0
        for rows, start in self._parts(key):
            low, high = max(first, start), min(first + len(local), start + len(rows))
            if low < high:
                local[low - first : high - first].copy_(rows[low - start : high - start])
                num_filled += high - low
        if num_filled != len(local):
            raise CheckpointCorruptError(f"{self._name} holds {num_filled} rows of {key!r}, not {len(local)}")

    def _parts(self, key: str) -> Iterator[tuple[Tensor, int]]:
        for path, start in self._places.get(key, ()):
            with safe_open(path, framework="pt") as file:
                yield file.get_tensor(key), start


def _part_files(folder: Path, name: str) -> list[Path]:
    whole = folder / f"{name}.safetensors"
    if whole.exists():
        return [whole]
    parts = sorted(folder.glob(f"{name}-*-of-*.safetensors"))
    wanted = int(parts[0].stem.rsplit("-of-", 1)[1]) if parts else 1
    if len(parts) != wanted:
        raise CheckpointCorruptError(f"{folder.name} holds {len(parts)} of {wanted} parts of {name}")
    return parts


def _first_row(tensor: Tensor) -> int:
    """Return the first row of this process's shard. FSDP2 splits as `torch.chunk` does: equal parts, the rest last."""
    if not isinstance(tensor, DTensor):
        return 0
    mesh = tensor.device_mesh
    rows_a_part = -(-tensor.shape[0] // mesh.size())
    return min(mesh.get_local_rank() * rows_a_part, tensor.shape[0])
