"""docs/reliability.md: the table of faults, the soak's line and the fleet's section, each replaced by itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.faults.harness.cases import CASES
from tests.faults.harness.deployment import QUICK
from tests.faults.harness.scene import Outcome

REPORT = Path(__file__).parents[3] / "docs" / "reliability.md"
HEAD = """# Reliability

A job that was accepted is done once in effect, whatever dies. `make faults` shows it: it starts PostgreSQL, Redis, an
S3 server, an API and two Celery workers with disjoint disks as processes of one machine, runs a job undisturbed, and
then does one fault after the other to jobs of the same spec. In rows marked `real` the engine trains the committed tiny
models; in rows marked `small` it trains a vector, and all around it is the same. After each,

- the job has ended `succeeded`;
- the figures of each step are of exactly one attempt, and no worker wrote while it did not hold the job's lease (a
  trigger in the database records who writes, and who holds the lease then);
- no metric, event, evaluation, probe sample or trajectory is missing, double or different from the undisturbed run's;
- the final weights, moments and random state, read from the store, are bitwise those of the undisturbed run.

Whoever stops answering is noticed when its lease expires. The table is measured with a lease of {lease} s and
heartbeats every {heartbeat} s; by default these are 30 s and 5 s. The time to recovery runs from the fault to the first
metric that the attempt which completes the job writes after it. It contains the start of the engine, most of which is
the import of its libraries. After a full disk, a store that fails for long, or too little memory, the next attempt
waits a minute on purpose, unless the attempt had taken steps that none had taken before.

`make faults` takes about half an hour and two cores, and mounting small disks takes root. `.ci/run` plays the cases in
bold with the small engine (`tests/faults/test_table.py`); the whole table, `make soak` and `make fleet` are commands of
their own, and not a tier of the tests. `python -m tests.faults --quick` makes the rows of the small engine
(`tests/faults/harness/quick_engine.py`) in a tenth of the time; words behind it choose cases.

{soak}

Faults that were found, and are fixed:

- If the connection was lost while a transaction was committed, its events or its checkpoint were recorded twice,
  because the worker repeated what may have been committed. Each write of an attempt has a number now, and none is
  applied twice.
- A read from the store that ended early or came damaged was taken for a damaged file: a good checkpoint was
  forgotten, or the job failed with `dataset_invalid`. It is read again now.
- A disk so full that the engine could not write why it ended counted as a crash, and used up the job's attempts
  within seconds. It is `disk_full` now, and the next attempt waits; also if something else has made room meanwhile.
- If the kernel killed the engine for lack of memory, the job had failed for good. It is `host_out_of_memory` now, and
  the job continues from its last checkpoint.
- A job with a field of a newer service failed for good if an older worker claimed it. It is `worker_outdated` now,
  and the job waits for a worker that knows the field.
- If a worker froze between two rows of a batch that it was writing to PostgreSQL, or after the batch, its job's row
  stayed locked until the worker ran on: no time-out of PostgreSQL ends such a connection. The reaper ends it now.
- If a run of several processes was resumed, the first file of its optimizer's moments listed the same tensors in
  another order, so that the file was not bitwise the undisturbed run's. `make fleet` showed it.
- A backup that copied the storage only after the database lacked every checkpoint that the job had replaced between the
  two, so that the job failed after the restore. The storage is copied before, too
  ([operations.md](operations.md#back-up-and-restore)).

Not shown: a real object store refuses requests of a clock that is 15 minutes off, where moto's does not; a worker
with such a clock ends its attempts with `storage_unavailable`. The times of events and metrics are of the worker's
clock, and of the engine's; their order does not depend on it, and leases are compared by the database's clock alone.

| fault | engine | outcome | attempts | time to recovery |
|---|---|---|---|---|
"""
FLEET = """
## A fleet in miniature

`make fleet` starts PostgreSQL, Redis, an S3 server, two APIs behind a proxy of TCP connections, four workers with
disjoint data folders, and a Ray cluster of a head and two nodes, which has a raylet each: all as processes of one
machine, and if it is root, in a separate network that has nothing but 127.0.0.1. One of the workers starts its runs
on the cluster; its jobs are of two processes, one a node. Ten clients submit a job each at the same time, two of them
for the cluster, and the real engine trains the tiny models. As soon as the first client has its answer, an API is
killed with signal 9; then a worker in the middle of a job; then a node of the cluster, with all its processes, in the
middle of a run. Each is started again at once, as a service manager does. In the end there must be one job for each
client, and each job is compared, as above, with an undisturbed run of its spec and its number of processes; that of two
processes was started by torchrun, without the cluster. If anything is missing, double or different, it is listed, and
the command exits with 1. `tests/faults/test_table.py` does the same with the small engine and without the cluster, and
`tests/e2e/test_ray.py` kills nodes and the head of a cluster.

"""
SOAK = re.compile(r"^\*\*Soak\*\*: (?P<result>.*)$", re.MULTILINE)
MEASURED_FLEET = re.compile(r"^\*\*Fleet\*\*: (?P<result>.*)\Z", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| (?:\*\*)?(?P<name>.+?)(?:\*\*)? \| (real|small) \| .+ \|$", re.MULTILINE)


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def row(outcome: Outcome, is_quick: bool) -> str:
    """Return the outcome's line of the table."""
    found = "succeeded, nothing lost" if outcome.is_good else "; ".join(outcome.problems).replace("\n", " ")
    seconds = "-" if outcome.recovery_seconds is None else f"{outcome.recovery_seconds:.0f} s"
    name = f"**{outcome.name}**" if outcome.name in {case.name for case in CASES if case.in_ci} else outcome.name
    engine = "small" if is_quick else "real"
    return f"| {name} | {engine} | {found} | {outcome.num_attempts} | {seconds} |"


def write_report(
    outcomes: Sequence[Outcome] = (), *, is_quick: bool = False, soak: str | None = None, fleet: str | None = None
) -> None:
    """Write the report with what was measured; everything else stays as it is."""
    text = REPORT.read_text(encoding="utf-8")
    rows = {found["name"]: found[0] for found in ROW.finditer(text)}
    for outcome in outcomes:
        if not is_quick or "| real |" not in rows.get(outcome.name, ""):
            rows[outcome.name] = row(outcome, is_quick)
    kept_soak, kept_fleet = SOAK.search(text), MEASURED_FLEET.search(text)
    soak = soak or (kept_soak["result"] if kept_soak else "not run yet.")
    fleet = fleet or (kept_fleet["result"].rstrip() if kept_fleet else "not run yet.")
    head = HEAD.format(
        soak=f"**Soak**: {soak}", lease=QUICK["TRD_LEASE_SECONDS"], heartbeat=QUICK["TRD_HEARTBEAT_SECONDS"]
    )
    table = "".join(f"{rows[case.name]}\n" for case in CASES if case.name in rows)
    REPORT.write_text(f"{head}{table}{FLEET}**Fleet**: {fleet}\n", encoding="utf-8")
