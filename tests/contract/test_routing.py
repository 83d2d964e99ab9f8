"""Which worker can run which job: each condition by itself, in a mixed fleet, and when little is known."""

from __future__ import annotations

import pytest

from contract.routing import Needs, Offer, would_wait_for

BOTH = frozenset("ab")
GPU = Offer(queues=("q",), num_nodes=1, num_devices=8, device_kind="h100", device_bytes=80 * 10**9, models=BOTH)
CPU = Offer(queues=("q",), num_nodes=1, device_kind="cpu", host_bytes=16 * 10**9, models=BOTH)
JOB = Needs(num_processes=2, num_devices=2, models=("a", "b"), gpu_bytes=30 * 10**9, cpu_bytes=60 * 10**9)


def offer(of: Offer = GPU, **changes: object) -> Offer:
    return of.model_copy(update=changes)


@pytest.mark.parametrize(
    ("needs", "offers", "reason"),
    [
        (JOB, [GPU], None),
        (JOB, [], "no_worker"),
        (JOB, [offer(queues=("other",))], "no_worker"),
        (JOB, [offer(models=frozenset("a"))], "model"),
        (JOB, [offer(num_devices=1)], "devices"),
        (JOB, [offer(device_bytes=30 * 10**9)], None),
        (JOB, [offer(device_bytes=30 * 10**9 - 1)], "memory"),
        (JOB, [CPU], "memory"),
        (JOB, [offer(CPU, host_bytes=60 * 10**9)], None),
        (JOB, [offer(CPU, device_kind=None)], None),  # its machine is being checked: it may have a GPU
        (JOB, [offer(device_bytes=None)], None),
        (JOB.model_copy(update={"gpu_bytes": None}), [offer(device_bytes=1)], None),
        (JOB, [offer(models=None, num_devices=None, device_bytes=None)], None),
        (Needs(), [GPU], None),
        (JOB, [Offer(queues=("q",))], None),
        (JOB, [offer(num_devices=1), offer(models=frozenset("a")), CPU, offer(device_bytes=1), GPU], None),
        # No two of them are of any use to each other.
        (JOB, [offer(num_devices=1), offer(models=frozenset("a")), offer(queues=("other",))], "devices"),
        (JOB, [offer(models=frozenset("a")), offer(models=frozenset("b"))], "model"),
        (JOB, [offer(num_devices=1), CPU], "memory"),
    ],
)
def test_a_job_waits_for_what_no_worker_has(needs: Needs, offers: list[Offer], reason: str | None) -> None:
    found = would_wait_for("q", needs, offers)
    assert (found and found.reason) == reason
    # A worker claims by the same rule: what is said of many is what each of them would do.
    assert (found is None) == any(would_wait_for("q", needs, [one]) is None for one in offers)


@pytest.mark.parametrize(
    ("offers", "words"),
    [
        ([], "no live worker serves the queue q"),
        ([offer(models=frozenset("a"))], "no live worker of the queue q has b"),
        (
            [offer(models=frozenset("a")), offer(models=frozenset("b"))],
            "has both a and b",
        ),
        ([offer(num_devices=1)], "no live worker of the queue q has 2 devices for it; the largest has 1"),
        (
            [offer(num_devices=1), offer(models=frozenset("a"))],
            "no live worker of the queue q with the job's models has 2 devices for it; the largest has 1",
        ),
        (
            [offer(num_devices=1), CPU],
            "no live worker of the queue q with enough devices has enough memory: weights, gradients and moments alone "
            "take an estimated 60.0 GB of the machine, and the largest has 16.0",
        ),
        ([CPU, offer(device_bytes=24 * 10**9)], "take an estimated 30.0 GB of each GPU, and the largest has 24.0"),
    ],
)
def test_the_message_says_what_is_needed_and_what_exists(offers: list[Offer], words: str) -> None:
    found = would_wait_for("q", JOB, offers)
    assert found is not None
    assert words in found.message


def test_figures_and_names_are_fields_too() -> None:
    devices = would_wait_for("q", JOB, [offer(num_devices=1)])
    models = would_wait_for("q", JOB, [offer(models=frozenset())])
    assert devices is not None
    assert (devices.needed, devices.largest) == (2, 1)
    assert models is not None
    assert models.models == ["a", "b"]


@pytest.mark.parametrize(
    ("num_processes", "num_devices", "per_node", "num_nodes"),
    [(1, 1, 8, 1), (8, 8, 8, 1), (9, 9, 8, 2), (16, 16, 8, 2), (4, 12, 8, 2), (2, 10, 4, None), (1, 3, 2, None)],
)
def test_processes_are_never_split_over_nodes(
    num_processes: int, num_devices: int, per_node: int, num_nodes: int | None
) -> None:
    needs = Needs(num_processes=num_processes, num_devices=num_devices)
    assert needs.num_nodes(per_node) == num_nodes
    cluster = Offer(queues=("q",), num_devices=per_node)
    found = would_wait_for("q", needs, [cluster])
    assert (found is None) == (num_nodes is not None), "a cluster of unknown size may grow"
    if num_nodes is not None:
        assert would_wait_for("q", needs, [offer(cluster, num_nodes=num_nodes)]) is None
        if num_nodes > 1:
            smaller = would_wait_for("q", needs, [offer(cluster, num_nodes=num_nodes - 1)])
            assert smaller is not None
            assert smaller.largest == per_node * (num_nodes - 1)


@pytest.mark.parametrize(
    "document",
    [None, 7, "text", [], {"num_devices": 0}, {"num_devices": "many"}, {"device_bytes": -1}, {"models": 3}],
)
def test_of_wrong_values_and_of_earlier_versions_nothing_is_known(document: object) -> None:
    assert Offer.read(["q"], document) == Offer(queues=("q",))


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"num_devices": 0}', '{"num_devices": "two"}'])
def test_a_damaged_row_of_a_job_needs_nothing_known(text: str | None) -> None:
    assert Needs.read(text) == Needs()


def test_fields_of_a_newer_version_are_no_obstacle() -> None:
    assert Offer.read(["q"], {"num_devices": 2, "colour": "red"}).num_devices == 2
    assert Needs.read('{"num_devices": 3, "colour": "red"}').num_devices == 3
    assert Needs.read(JOB.model_dump_json(exclude_none=True)) == JOB
