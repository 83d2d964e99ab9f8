"""The model of a fleet agrees with queueing theory, and loses no job."""

from __future__ import annotations

import json
import random

import pytest
import simpy

from benchmarks.fleet import RESULTS
from benchmarks.fleet_model import (
    Cost,
    Draw,
    Fleet,
    FleetModel,
    Station,
    Steps,
    cost_of_write,
    costs_of,
    simulate_cycles,
)

COSTS = {
    name: Cost(database=0.002, client=0.001, wait=0.001)
    for name in ("claim", "finish", "heartbeat", "idle_poll", "webhook_poll", "reaper_turn", "flush_1")
} | {"flush_100": Cost(0.04, 0.02, 0.001)}


def mean_wait(draw: Draw, *, arrivals: float, service: float, seconds: float = 20_000.0) -> float:
    """Return the mean time in the queue of one processor with Poisson arrivals."""
    env, draws, waits = simpy.Environment(), random.Random(1), []
    station = Station(env, 1, draw)

    def customer() -> Steps:
        began = env.now
        yield from station.serve(service)
        waits.append(env.now - began)

    def source() -> Steps:
        while True:
            yield env.timeout(draws.expovariate(arrivals))
            env.process(customer())

    env.process(source())
    env.run(seconds)
    assert station.utilisation == pytest.approx(arrivals * service, rel=0.03)
    assert station.num_begun == station.num_ended + station.num_inside
    return sum(waits) / len(waits) - service


def test_one_processor_waits_as_theory_says() -> None:
    """M/M/1 waits rho / (1 - rho) services, M/D/1 half of that."""
    draws = random.Random(2)
    assert mean_wait(lambda mean: draws.expovariate(1 / mean), arrivals=0.6, service=1.0) == pytest.approx(1.5, rel=0.1)
    assert mean_wait(lambda mean: mean, arrivals=0.6, service=1.0) == pytest.approx(0.75, rel=0.1)


def test_a_fleet_begins_as_many_jobs_as_end_or_run() -> None:
    fleet = Fleet("small", num_workers=50, num_processors=2, job=2.0, step=0.5)
    model = FleetModel(fleet, COSTS)
    outcome = model.run()
    assert outcome.jobs_ended > 100
    assert 40 <= outcome.jobs_begun - outcome.jobs_ended <= 45, "the others are between two jobs"
    assert model.database.num_begun == model.database.num_ended + model.database.num_inside
    assert 0 < outcome.utilisation < 1
    assert outcome.quantile_ms("claim", 0.5) > 1000 * (COSTS["claim"].client + COSTS["claim"].wait)


def test_more_work_than_processors_is_seen() -> None:
    outcome = FleetModel(Fleet("too many", num_workers=2_000, num_processors=1), COSTS).run(2.0)
    assert outcome.is_overloaded
    assert outcome.utilisation <= 1


def test_costs_of_writes_are_on_a_line_and_clients_share_the_processors() -> None:
    assert cost_of_write(COSTS, 1) == COSTS["flush_1"]
    assert cost_of_write(COSTS, 100).database == pytest.approx(COSTS["flush_100"].database)
    alone, together = (simulate_cycles(COSTS, number, 2, 1.0) for number in (1, 64))
    each = 12 * (0.002 + 0.001)
    assert len(alone) / 60 == pytest.approx(1 / (each + 12 * 0.001), rel=0.1)
    assert len(together) / 60 == pytest.approx(2 / each, rel=0.1), "both processors are busy"


def test_the_committed_measurements_have_what_the_model_needs() -> None:
    costs = costs_of(json.loads((RESULTS / "scaling.json").read_text()))
    assert costs.keys() >= COSTS.keys()
    assert all(cost.database >= 0 for cost in costs.values())
