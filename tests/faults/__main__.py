"""``python -m tests.faults``: play the table of faults, print it, and write docs/reliability.md.

With words it plays the cases whose names have one of them, and replaces their rows alone.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults.harness.cases import CASES
from tests.faults.harness.deployment import QUICK, Deployment
from tests.faults.harness.scene import Outcome, Theatre

REPORT = Path(__file__).parents[2] / "docs" / "reliability.md"
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
bold with the small engine (`tests/faults/test_table.py`); the whole table and `make soak` are commands of their own,
and not a tier of the tests. `python -m tests.faults --quick` makes the rows of the small engine
(`tests/faults/harness/quick_engine.py`) in a tenth of the time; words behind it choose cases.

{soak}

Faults that were found, and are fixed:

- If the connection was lost while a transaction was committed, its events or its checkpoint were recorded twice,
  because the worker repeated what may have been committed. Each write of an attempt has a number now, and none is
  applied twice.
- A read from the store that ended early or came damaged was taken for a damaged file: a good checkpoint was
  forgotten, or the job failed with `dataset_invalid`. It is read once more now.
- A disk so full that the engine could not write why it ended counted as a crash, and used up the job's attempts
  within seconds. It is `disk_full` now, and the next attempt waits; also if something else has made room meanwhile.
- If the kernel killed the engine for lack of memory, the job had failed for good. It is `host_out_of_memory` now, and
  the job goes on from its last checkpoint.
- A job with a field of a newer service failed for good if an older worker claimed it. It is `worker_outdated` now,
  and the job waits for a worker that knows the field.
- If a worker froze between two rows of a batch that it was writing to PostgreSQL, its job's row stayed locked until
  the worker went on: PostgreSQL's time-outs do not count such a connection as idle. The reaper ends it now.

Not shown: a real object store refuses requests of a clock that is 15 minutes off, where moto's does not; a worker
with such a clock ends its attempts with `storage_unavailable`. The times of events and metrics are of the worker's
clock, and of the engine's; their order does not depend on it, and leases are compared by the database's clock alone.

| fault | engine | outcome | attempts | time to recovery |
|---|---|---|---|---|
"""
SOAK = re.compile(r"^\*\*Soak\*\*: .*$", re.MULTILINE)
ROW = re.compile(r"^\| (?:\*\*)?(?P<name>.+?)(?:\*\*)? \| (real|small) \| .+ \|$", re.MULTILINE)


def main(arguments: list[str]) -> int:
    """Play the chosen cases; return 0 if no fault lost anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="play only the cases whose names have one of these words")
    parser.add_argument("--quick", action="store_true", help="with the small engine; replaces no row of the real one")
    given = parser.parse_args(arguments)
    words = given.words
    chosen = [case for case in CASES if not words or any(word in case.name for word in words)]
    folder = Path(tempfile.mkdtemp(prefix="trd-faults-", dir="/tmp"))
    say(f"{len(chosen)} cases; the processes' logs are in {folder}")
    outcomes = []
    application = "tests.faults.harness.quick_worker" if given.quick else "worker.celery_app"
    with Deployment(folder, application=application) as deployment:
        theatre = Theatre(deployment)
        for case in chosen:
            outcomes.append(theatre.play(case))
            say(f"{row(outcomes[-1], given.quick)} {outcomes[-1].total_seconds:.0f} s in all")
            write_report(outcomes, given.quick)
    say(f"{sum(outcome.is_good for outcome in outcomes)} of {len(outcomes)} faults lost nothing")
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


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


def write_report(outcomes: Sequence[Outcome], is_quick: bool) -> None:
    """Write the report, with the rows of cases that were not played as they are."""
    text = REPORT.read_text(encoding="utf-8") if REPORT.exists() else ""
    rows = {found["name"]: found[0] for found in ROW.finditer(text)}
    for outcome in outcomes:
        if not is_quick or "| real |" not in rows.get(outcome.name, ""):
            rows[outcome.name] = row(outcome, is_quick)
    soak = SOAK.search(text)
    _write(rows, soak[0] if soak else "**Soak**: not run yet.")


def write_soak(result: str) -> None:
    """Write the soak's result into the report."""
    text = REPORT.read_text(encoding="utf-8") if REPORT.exists() else ""
    _write({found["name"]: found[0] for found in ROW.finditer(text)}, f"**Soak**: {result}")


def _write(rows: Mapping[str, str], soak: str) -> None:
    head = HEAD.format(soak=soak, lease=QUICK["TRD_LEASE_SECONDS"], heartbeat=QUICK["TRD_HEARTBEAT_SECONDS"])
    table = "".join(f"{rows[case.name]}\n" for case in CASES if case.name in rows)
    REPORT.write_text(head + table, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
