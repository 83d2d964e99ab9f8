"""Which worker can run which job: one rule, for the claim and for the message that no worker can.

The service works out what a job needs when it accepts the job, and a worker offers what it knows of its machine. A
value that is unknown on either side, as with earlier versions, is not compared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract.views.jobs import WouldWaitFor

logger = logging.getLogger(__name__)

GB = 10**9
Count = Annotated[int, Field(ge=1)]
CPU_KIND = "cpu"
"""Kind of device of a worker without a GPU (`trd_estimate.hardware`)."""


def endpoint_name(endpoint: str) -> str:
    """Return how a served teacher is named among the models."""
    return f"endpoint:{endpoint}"


class _Announced(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Needs(_Announced):
    """What a job needs of a worker."""

    num_processes: Count = 1
    """Training processes, which may be on several nodes."""
    num_devices: Count = 1
    """Devices of all processes."""
    models: tuple[str, ...] = ()
    """Names in the workers' TRD_MODELS, and of a served teacher `endpoint_name`."""
    gpu_bytes: int | None = None
    """What each training GPU holds at the least, estimated; None if the models' sizes are unknown."""
    cpu_bytes: int | None = None
    """What all processes together hold at the least on a machine without a GPU, estimated."""

    @classmethod
    def read(cls, text: str | None) -> Self:
        """Return the needs in a job's row; all are unknown for a job of an earlier version or a damaged row."""
        try:
            return cls() if text is None else cls.model_validate_json(text)
        except ValidationError as error:
            logger.warning("what a job needs cannot be read: %s", error)
            return cls()

    def num_nodes(self, devices_per_node: int) -> int | None:
        """Return the number of nodes; None if one process needs more devices than a node has."""
        processes_per_node = devices_per_node // -(-self.num_devices // self.num_processes)
        return -(-self.num_processes // processes_per_node) if processes_per_node else None


class Offer(_Announced):
    """What a live worker can run, as far as it is known."""

    queues: tuple[str, ...]
    num_nodes: Count | None = None
    """Machines that a job may use; None if the worker's cluster has no known limit."""
    num_devices: Count | None = None
    """Devices of each node; None if there is no limit, or none is known: processes share a CPU."""
    device_kind: str | None = None
    device_bytes: Count | None = None
    """Memory of one GPU."""
    host_bytes: Count | None = None
    """Memory of the worker's machine, or of its container."""
    models: frozenset[str] | None = None
    """Names that jobs may use, see `Needs.models`."""

    @classmethod
    def read(cls, queues: Sequence[str], document: object) -> Self:
        """Return the offer in a worker's row; only its queues are known for an earlier version or a damaged row."""
        try:
            return cls.model_validate({**(document if isinstance(document, dict) else {}), "queues": queues})
        except ValidationError as error:
            logger.warning("what a worker offers cannot be read: %s", error)
            return cls(queues=tuple(queues))

    def has_devices(self, needs: Needs) -> bool:
        """Return whether the job's processes fit the worker's nodes."""
        if self.num_devices is None:
            return True
        num_nodes = needs.num_nodes(self.num_devices)
        return num_nodes is not None and (self.num_nodes is None or num_nodes <= self.num_nodes)

    @property
    def most_devices(self) -> int:
        """Devices of all nodes, or of one if their number is unknown; 0 if even that is unknown."""
        return (self.num_devices or 0) * (self.num_nodes or 1)

    def memory(self, needs: Needs) -> tuple[int, int] | None:
        """Return the bytes that are needed and those that exist; None if one of them is unknown."""
        on_cpu = self.device_kind == CPU_KIND
        needed, there = (needs.cpu_bytes, self.host_bytes) if on_cpu else (needs.gpu_bytes, self.device_bytes)
        return None if needed is None or there is None else (needed, there)

    def has_memory(self, needs: Needs) -> bool:
        """Return whether the job may fit. False is as certain as the estimate, which is a lower bound."""
        memory = self.memory(needs)
        return memory is None or memory[0] <= memory[1]


def would_wait_for(queue: str, needs: Needs, offers: Iterable[Offer]) -> WouldWaitFor | None:
    """Return what no worker has; None if one of them can run the job, now or after its present one.

    Each condition is checked only for workers that meet the earlier ones: three workers may lack one thing each.
    """
    workers = [offer for offer in offers if queue in offer.queues]
    if not workers:
        return WouldWaitFor(reason="no_worker", message=f"no live worker serves the queue {queue}")
    those = f"no live worker of the queue {queue}"
    able = [offer for offer in workers if offer.models is None or offer.models.issuperset(needs.models)]
    if not able:
        missing = [name for name in needs.models if not any(name in (offer.models or ()) for offer in workers)]
        names = " and ".join(missing or needs.models)
        message = f"{those} has {names}" if missing else f"{those} has both {names}"
        return WouldWaitFor(reason="model", models=missing or list(needs.models), message=message)
    if len(able) < len(workers):
        those += " with the job's models"
    roomy = [offer for offer in able if offer.has_devices(needs)]
    if not roomy:
        largest = max(offer.most_devices for offer in able)
        message = f"{those} has {needs.num_devices} devices for it; the largest has {largest}"
        return WouldWaitFor(reason="devices", needed=needs.num_devices, largest=largest, message=message)
    if len(roomy) < len(able):
        those += " with enough devices"
    if any(offer.has_memory(needs) for offer in roomy):
        return None
    known = [(memory, offer) for offer in roomy if (memory := offer.memory(needs)) is not None]
    (needed, largest), best = max(known, key=lambda one: one[0][1] - one[0][0])
    where = "the machine" if best.device_kind == CPU_KIND else "each GPU"
    message = (
        f"{those} has enough memory: weights, gradients and moments alone take an estimated {needed / GB:.1f} GB of "
        f"{where}, and the largest has {largest / GB:.1f}"
    )
    return WouldWaitFor(reason="memory", needed=needed, largest=largest, message=message)
