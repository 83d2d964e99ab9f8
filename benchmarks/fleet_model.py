"""A discrete-event model of a fleet: thousands of workers, one PostgreSQL, and what each operation takes as measured.

The database is a number of processors with one queue. An operation takes PostgreSQL's CPU time that was measured for
it, exponentially distributed, and the time in which nobody computes: the commit's way to the disk. Workers do what
`worker/` does, at the intervals of their settings. The model has no locks of rows (a job's row is written by its own
worker alone), no vacuum, no checkpoints of PostgreSQL and no network. `benchmarks.fleet` runs it.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import simpy

from benchmarks.scaling_load import CYCLE_STEPS

WARM_UP_SECONDS = 5.0
SECONDS = 10.0
"""Simulated time that the results count."""
CYCLE_SECONDS = 60.0

Steps = Generator[simpy.Event, Any, None]
Draw = Callable[[float], float]
"""A service time with the given mean."""


@dataclass(frozen=True)
class Cost:
    """Seconds that one operation takes."""

    database: float
    """Seconds of one processor of the database."""
    client: float = 0.0
    """Seconds of the client's processor."""
    wait: float = 0.0
    """Seconds in which no processor is used."""


@dataclass
class Station:
    """Processors that share one queue, and what they did since the count began."""

    env: simpy.Environment
    num_processors: int
    draw: Draw
    speed: float = 1.0
    """Share of each processor that is free for this model."""
    busy_seconds: float = 0.0
    num_begun: int = 0
    num_ended: int = 0

    def __post_init__(self) -> None:
        self._processors = simpy.Resource(self.env, self.num_processors)
        self._counted_from = 0.0

    def serve(self, mean_seconds: float) -> Steps:
        """Wait for a processor and use it."""
        self.num_begun += 1
        with self._processors.request() as turn:
            yield turn
            seconds = self.draw(mean_seconds) / self.speed
            began = self.env.now
            yield self.env.timeout(seconds)
            self.busy_seconds += self.env.now - max(began, self._counted_from)
        self.num_ended += 1

    def count_from_now(self) -> None:
        """Begin the count: what came before was warm-up. Operations in progress stay counted as begun."""
        self._counted_from, self.busy_seconds = self.env.now, 0.0
        self.num_begun, self.num_ended = self.num_begun - self.num_ended, 0

    @property
    def num_inside(self) -> int:
        """Operations that wait or are served."""
        return self._processors.count + len(self._processors.queue)

    @property
    def utilisation(self) -> float:
        """Share of the processors' time that is used; what is still being served is not in it."""
        return self.busy_seconds / ((self.env.now - self._counted_from) * self.num_processors)


def costs_of(document: Mapping[str, Any]) -> dict[str, Cost]:
    """Return the measured costs of the operations, from single clients; a write's depends on its rows."""
    costs = {
        row["operation"]: Cost(
            row["database_ms"] / 1000,
            row["client_ms"] / 1000,
            max(0.0, row["min_ms"] - row["database_ms"] - row["client_ms"]) / 1000,
        )
        for row in document["operations"]["figures"]["figures"]
        if row["num_clients"] == 1 and row["operation"] != "cycle"
    }
    both, claim = costs.pop("claim_and_finish"), costs.pop("claim_backlog")
    database, client = max(0.0, both.database - claim.database), max(0.0, both.client - claim.client)
    return {**costs, "claim": claim, "finish": Cost(database, client, max(0.0, both.wait - claim.wait))}


def cost_of_write(costs: Mapping[str, Cost], num_steps: float) -> Cost:
    """Return the cost of a write of progress, on the line through the measured ones of 1 and of 100 steps."""
    one, hundred = costs["flush_1"], costs["flush_100"]
    share = (num_steps - 1) / 99
    database = one.database + share * (hundred.database - one.database)
    return Cost(database, one.client + share * (hundred.client - one.client), one.wait)


@dataclass(frozen=True)
class Comparison:
    """Jobs in fast motion: measured, and simulated from the costs of single operations."""

    num_clients: int
    measured_a_second: float
    simulated_a_second: float
    measured_p50_ms: float
    simulated_p50_ms: float

    @property
    def error(self) -> float:
        """Relative error of the rate."""
        return self.simulated_a_second / self.measured_a_second - 1


def compare(document: Mapping[str, Any]) -> list[Comparison]:
    """Simulate the measured jobs in fast motion. Clients and database share the processors, as they did when they were
    measured, of which other programs left what single operations of many clients used together."""
    costs, num_processors = costs_of(document), document["num_processors"]
    rows = document["operations"]["figures"]["figures"]
    most = max(row["num_clients"] for row in rows)
    crowds = [row["cores"] for row in rows if row["num_clients"] == most and row["operation"] != "cycle"]
    speed, found = min(1.0, statistics.median(crowds) / num_processors), []
    for row in rows:
        if row["operation"] == "cycle":
            seconds = simulate_cycles(costs, row["num_clients"], num_processors, speed)
            middle = 1000 * statistics.median(seconds)
            rate = len(seconds) / CYCLE_SECONDS
            found.append(Comparison(row["num_clients"], row["a_second"], rate, row["p50_ms"], middle))
    return found


def simulate_cycles(costs: Mapping[str, Cost], num_clients: int, num_processors: int, speed: float) -> list[float]:
    """Return the seconds of each job that ended."""
    env, draws = simpy.Environment(), random.Random(0)
    machine = Station(env, num_processors, lambda mean: mean * draws.expovariate(1.0), speed)
    parts = [costs["claim"], *[costs["heartbeat"], costs["flush_1"]] * CYCLE_STEPS, costs["finish"]]
    seconds: list[float] = []

    def client() -> Steps:
        while True:
            began = env.now
            for cost in parts:
                yield from machine.serve(cost.client + cost.database)
                yield env.timeout(cost.wait)
            seconds.append(env.now - began)

    for _ in range(num_clients):
        env.process(client())
    env.run(CYCLE_SECONDS)
    return seconds


@dataclass(frozen=True)
class Fleet:
    """Workers and their settings; intervals in seconds."""

    name: str
    num_workers: int = 10_000
    num_processors: int = 8
    """Processors of the database."""
    step: float = 10.0
    job: float = 3600.0
    busy_share: float = 0.9
    """Share of the workers that run a job; the others look for one."""
    heartbeat: float = 5.0
    progress: float = 1.0
    poll: float = 3.0
    webhook: float = 1.0
    reaper: float = 10.0
    metrics_a_step: int = 18

    @property
    def write_interval(self) -> float:
        """Between two writes of a worker's progress."""
        return max(self.step, self.progress)

    @property
    def rows_a_second(self) -> float:
        """Metric points of all workers."""
        return self.num_workers * self.busy_share * self.metrics_a_step / self.step


@dataclass
class Outcome:
    """The results of a simulated fleet."""

    fleet: Fleet
    utilisation: float = 0.0
    num_operations: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """The times of each operation, by its name."""
    jobs_begun: int = 0
    jobs_ended: int = 0

    def quantile_ms(self, operation: str, share: float) -> float:
        """Return a quantile of the operation's time."""
        ordered = sorted(self.seconds[operation])
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def is_overloaded(self) -> bool:
        """Whether the queue grows for as long as the load lasts."""
        return self.utilisation > 0.98


class FleetModel:
    """All processes of one simulated fleet."""

    def __init__(self, fleet: Fleet, costs: Mapping[str, Cost], seed: int = 0) -> None:
        self.env, self._draws = simpy.Environment(), random.Random(seed)
        self.database = Station(self.env, fleet.num_processors, lambda mean: mean * self._draws.expovariate(1.0))
        self.outcome, self._fleet, self._costs = Outcome(fleet), fleet, costs
        self._write = cost_of_write(costs, max(1.0, fleet.progress / fleet.step))

    def run(self, seconds: float = SECONDS) -> Outcome:
        """Simulate the fleet; return the results after the warm-up."""
        fleet = self._fleet
        for number in range(fleet.num_workers):
            self.env.process(self._every(fleet.webhook, "webhook", self._costs["webhook_poll"]))
            self.env.process(self._every(fleet.reaper, "reaper", self._costs["reaper_turn"]))
            if number < fleet.num_workers * fleet.busy_share:
                self.env.process(self._busy_worker())
            else:
                self.env.process(self._every(fleet.poll, "poll", self._costs["idle_poll"]))
        self.env.run(WARM_UP_SECONDS)
        self.database.count_from_now()
        self.outcome.seconds.clear()
        self.env.run(WARM_UP_SECONDS + seconds)
        self.outcome.utilisation, self.outcome.num_operations = self.database.utilisation, self.database.num_ended
        return self.outcome

    def _operation(self, name: str, cost: Cost) -> Steps:
        began = self.env.now
        yield from self.database.serve(cost.database)
        yield self.env.timeout(cost.wait + cost.client)
        self.outcome.seconds.setdefault(name, []).append(self.env.now - began)

    def _every(self, interval: float, name: str, cost: Cost, until: float = float("inf")) -> Steps:
        """Repeat the operation at an interval, as `worker.periodic.Periodic` does; begin at a random time in it."""
        pause = self._draws.uniform(0, interval)
        while self.env.now + pause < until:
            yield self.env.timeout(pause)
            yield from self._operation(name, cost)
            pause = interval

    def _busy_worker(self) -> Steps:
        """Run one job after the other; the first is somewhere in its course."""
        outcome, fleet = self.outcome, self._fleet
        left = self._draws.expovariate(1 / fleet.job)
        outcome.jobs_begun += 1
        while True:
            end = self.env.now + left
            beats = self.env.process(self._every(fleet.heartbeat, "heartbeat", self._costs["heartbeat"], end))
            writes = self.env.process(self._every(fleet.write_interval, "write", self._write, end))
            yield self.env.timeout(left)
            yield beats & writes
            yield from self._operation("finish", self._costs["finish"])
            outcome.jobs_ended += 1
            yield from self._operation("claim", self._costs["claim"])
            outcome.jobs_begun += 1
            left = self._draws.expovariate(1 / fleet.job)


def demanded_processors(fleet: Fleet, costs: Mapping[str, Cost]) -> dict[str, float]:
    """Return the database's processors that each operation would use, without any queue."""
    busy, idle = fleet.num_workers * fleet.busy_share, fleet.num_workers * (1 - fleet.busy_share)
    write = cost_of_write(costs, max(1.0, fleet.progress / fleet.step))
    return {
        "heartbeat": busy / fleet.heartbeat * costs["heartbeat"].database,
        "write": busy / fleet.write_interval * write.database,
        "claim": busy / fleet.job * (costs["claim"].database + costs["finish"].database),
        "poll": idle / fleet.poll * costs["idle_poll"].database,
        "webhook": fleet.num_workers / fleet.webhook * costs["webhook_poll"].database,
        "reaper": fleet.num_workers / fleet.reaper * costs["reaper_turn"].database,
    }
