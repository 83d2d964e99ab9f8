"""``python -m worker.launchers.ray_driver ATTEMPT_DIR DEVICES_PER_NODE``: runs an attempt on nodes of a Ray cluster.

It is the worker's child, in the place of the engine. An actor a node (`worker.launchers.ray_node`) starts the engine's
processes, which meet by torchrun's static rendezvous. No folder is shared: the attempt's inputs are copied to each
node's disk, and events, trajectories and checkpoints come back from the first node's, each file before the event that
names it. Nothing is detached: if this process or the worker ends, Ray ends the actors, and with them the engine.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from worker.engine_process import EXIT_CODE_FILE, STOP_FILE, StopRequest
from worker.failures import STOPPED_EXIT_CODE
from worker.launchers.ray_node import NodeAgent

NAMESPACE = "trd"
CHUNK_BYTES = 2**25
"""Part of a file that is in one message."""
POLL_SECONDS = 0.3
ANSWER_SECONDS = 60.0
"""A node that takes longer to answer is taken as lost."""
PLACEMENT_SECONDS = 300.0
"""A cluster without room for so long ends the attempt; the next one begins a minute later."""
CLOSE_SECONDS = 10.0
"""How long the nodes may take to end the engine and to remove its files."""
OTHERS_SECONDS = 20.0
"""How long the others may take to end after the first node's processes have ended, or another's have failed."""
_INPUTS = ("run", "engine.log", "spec.json", STOP_FILE, EXIT_CODE_FILE)
"""Files of the attempt's folder that are no inputs, or are written anew by each node."""


class ClusterError(Exception):
    """The cluster cannot run the attempt, or lost a part of it; `code` is the failure's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def processes_per_node(spec: dict[str, Any], devices_per_node: int) -> list[int]:
    """Return how many of the engine's processes each node has: as many as its devices allow, the rest on the last."""
    sampling, num_processes = spec["sampling"], int(spec["devices"])
    most = max(1, devices_per_node // _devices_of_a_process(sampling))
    return [min(most, num_processes - first) for first in range(0, num_processes, most)]


def _devices_of_a_process(sampling: dict[str, Any]) -> int:
    return 1 + int(sampling.get("tensor_parallel_size") or 1) if sampling.get("placement") == "separate" else 1


class Nodes:
    """The actors of one attempt, the first of which has the run's main process."""

    def __init__(self, attempt: str, spec: dict[str, Any], counts: Sequence[int], stop: StopRequest) -> None:
        """Reserve the nodes and start an actor on each. Raises `ClusterError` and `InterruptedError`."""
        self._counts = counts
        self._group = self._reserve(attempt, spec, stop)
        actor: Any = ray.remote(NodeAgent)  # its types do not know that every method has `remote`
        self.actors: list[Any] = [
            actor.options(
                name=f"{attempt}-node-{number}",
                num_cpus=count,
                num_gpus=self._gpus(spec, count),
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=number),
            ).remote(f"{attempt}-node-{number}")
            for number, count in enumerate(counts)
        ]

    def _gpus(self, spec: dict[str, Any], count: int) -> int:
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        return count * _devices_of_a_process(spec["sampling"]) if has_gpus else 0

    def _reserve(self, attempt: str, spec: dict[str, Any], stop: StopRequest) -> PlacementGroup:
        bundles = [
            {name: float(n) for name, n in (("CPU", count), ("GPU", self._gpus(spec, count))) if n}
            for count in self._counts
        ]
        group: PlacementGroup = placement_group(bundles, strategy="STRICT_SPREAD", name=attempt)
        deadline = time.monotonic() + PLACEMENT_SECONDS
        while not group.wait(1):
            if stop():
                raise InterruptedError("stopped while the attempt waited for nodes")
            if time.monotonic() > deadline:
                message = f"the Ray cluster had no room for {bundles} on separate nodes"
                raise ClusterError("cluster_unavailable", message)
        return group

    def all(self, method: str, *arguments: Any, timeout: float = ANSWER_SECONDS) -> list[Any]:
        """Call a method of every actor and return the answers."""
        return ray.get([getattr(actor, method).remote(*arguments) for actor in self.actors], timeout=timeout)

    def first(self, method: str, *arguments: Any) -> Any:
        """Call a method of the first node's actor and return its answer."""
        return ray.get(getattr(self.actors[0], method).remote(*arguments), timeout=ANSWER_SECONDS)

    def copy_inputs(self, folder: Path, spec: dict[str, Any]) -> dict[str, str]:
        """Copy everything that the engine reads to every node; return the names of these places on the nodes."""
        replaced = {str(path): path.name for path in folder.iterdir() if path.name not in _INPUTS}
        named = [
            source["path"]
            for source in (spec["dataset"], spec["evaluation"].get("dataset"))
            if isinstance(source, dict) and "path" in source
        ]
        for number, path in enumerate(named):
            replaced.setdefault(path, f"server-data-{number}{''.join(Path(path).suffixes)}")
        for place, name in replaced.items():
            for path, below in _files(Path(place)):
                self._copy(path, f"{name}/{below}" if below else name)
        return replaced

    def _copy(self, path: Path, name: str) -> None:
        offset = 0
        with path.open("rb") as file:
            while (content := file.read(CHUNK_BYTES)) or offset == 0:
                self.all("write", name, ray.put(content), offset)  # Ray brings one copy to each node
                offset += len(content)
                if not content:
                    return

    def start(self, spec: dict[str, Any], replaced: dict[str, str]) -> None:
        """Start the engine's processes on all nodes."""
        num_nodes, meeting = len(self.actors), list[str]()
        if num_nodes > 1:
            address, port = self.first("meeting_place")
            meeting = [f"--nnodes={num_nodes}", f"--master-addr={address}", f"--master-port={port}"]
        starts = [
            actor.start.remote(spec, replaced, count, [*meeting, f"--node-rank={number}"] if meeting else [])
            for number, (actor, count) in enumerate(zip(self.actors, self._counts, strict=True))
        ]
        ray.get(starts, timeout=ANSWER_SECONDS)

    def close(self) -> None:
        """End what runs, and free the nodes. How the run ended is known by now: a lost node changes nothing."""
        with suppress(RayError):
            ends = [actor.close.remote() for actor in self.actors]
            ray.wait(ends, num_returns=len(ends), timeout=CLOSE_SECONDS)
            for actor in self.actors:
                ray.kill(actor)
            remove_placement_group(self._group)


def _files(place: Path) -> Iterator[tuple[Path, str]]:
    """Yield the file itself, or all files below a folder with their names in it; links are followed."""
    if place.is_file():
        yield place, ""
    for path in sorted(place.rglob("*")):
        if path.is_file():
            yield path, path.relative_to(place).as_posix()


def append_event(folder: Path, line: bytes) -> None:
    """Append an event for the worker that follows the attempt's folder."""
    path = folder / "run" / "events.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.write(line + b"\n")


class Follower:
    """Copies what the nodes report to the attempt's folder on the worker's disk."""

    def __init__(self, nodes: Nodes, folder: Path) -> None:
        self._nodes = nodes
        self._folder = folder
        self._offsets = [[0, 0] for _ in nodes.actors]
        self._rest = [b"" for _ in nodes.actors]
        self.failures: list[bytes] = []
        """Failures that processes of other nodes than the first have reported."""
        self.has_failed = False
        """Whether the first node's process has reported the run's failure."""

    def poll(self) -> list[int | None]:
        """Copy what is new, and return each node's exit code; None while its processes run."""
        reports = ray.get(
            [actor.poll.remote(*offsets) for actor, offsets in zip(self._nodes.actors, self._offsets, strict=True)],
            timeout=ANSWER_SECONDS,
        )
        has_more = False
        for number, (_, events, log) in enumerate(reports):
            self._offsets[number][0] += len(events)
            self._offsets[number][1] += len(log)
            has_more = has_more or bool(events or log)
            sys.stdout.buffer.write(log)
            sys.stdout.flush()
            *lines, self._rest[number] = (self._rest[number] + events).split(b"\n")
            for line in filter(None, lines):
                self._take(number, line)
        # A long file comes in parts: the ends count once nothing is left to read.
        return [None if has_more else code for code, _, _ in reports]

    def _take(self, number: int, line: bytes) -> None:
        event = json.loads(line)
        if number > 0:  # the engine reports to the first node only, except for its failure
            self.failures += [line] if event["type"] == "failed" else []
            return
        self.has_failed = self.has_failed or event["type"] == "failed"
        if event["type"] in ("checkpoint", "trajectories"):
            self._fetch(f"run/{event['path']}")
        if event["type"] == "checkpoint":
            self._nodes.first("remove", f"run/{event['path']}")
        append_event(self._folder, line)

    def _fetch(self, name: str) -> None:
        for file_name, num_bytes in self._nodes.first("files", name):
            path = self._folder / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                while file.tell() < num_bytes:
                    file.write(self._nodes.first("read", file_name, file.tell(), CHUNK_BYTES))


def run(folder: Path, devices_per_node: int, stop: StopRequest) -> int:
    """Run the attempt to its end and return the exit code of the run's main process.

    Raises `ClusterError`, `InterruptedError` and errors of Ray.
    """
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    attempt = f"{folder.parent.name}-{folder.name}"
    nodes = Nodes(attempt, spec, processes_per_node(spec, devices_per_node), stop)
    try:
        nodes.start(spec, nodes.copy_inputs(folder, spec))
        return _follow(nodes, Follower(nodes, folder), folder, stop)
    finally:
        nodes.close()


def _follow(nodes: Nodes, follower: Follower, folder: Path, stop: StopRequest) -> int:
    is_stopping, first_end_at = False, None
    while True:
        codes = follower.poll()
        if stop() and not is_stopping:
            is_stopping = True
            nodes.all("stop")
        if codes[0] is not None or any(code not in (None, 0, STOPPED_EXIT_CODE) for code in codes):
            first_end_at = first_end_at or time.monotonic()
            if None not in codes or time.monotonic() - first_end_at > OTHERS_SECONDS:
                for line in follower.failures[:1] if not follower.has_failed else []:
                    append_event(folder, line)
                return codes[0] if codes[0] is not None else 1
        time.sleep(POLL_SECONDS)


def main(folder: Path, devices_per_node: int) -> int:
    """Connect to the cluster that RAY_ADDRESS names, run the attempt and return the exit code."""
    stop = StopRequest(folder)
    code, failure = 1, None
    try:
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        failure = ClusterError("cluster_unavailable", f"the Ray cluster cannot be reached: {error}".split("\n")[0])
    else:
        try:
            code = run(folder, devices_per_node, stop)
        except InterruptedError:
            code = STOPPED_EXIT_CODE
        except ClusterError as error:
            failure = error
        except (RayError, GetTimeoutError) as error:
            failure = ClusterError("worker_lost", f"the Ray cluster lost a node of the attempt: {error}".split("\n")[0])
    if failure is not None:
        event = {"type": "failed", "at": time.time(), "code": failure.code, "message": str(failure), "traceback": None}
        append_event(folder, json.dumps(event).encode())
    (folder / EXIT_CODE_FILE).write_text(str(code), encoding="ascii")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
