"""``python -m tests.faults``: play the table of faults, print it, and write docs/reliability.md.

With words it plays the cases whose names have one of them, and replaces their rows alone.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.faults.harness.cases import CASES
from tests.faults.harness.deployment import QUICK, Deployment
from tests.faults.harness.scene import Outcome, Theatre

REPORT = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD = """# Reliability

A job that was accepted is done once in effect, whatever dies. `make faults` shows it: it starts PostgreSQL, Redis, an
S3 server, an API and two Celery workers with disjoint disks as processes of one machine, runs a job undisturbed, and
then does one fault after the other to jobs of the same spec, with the real engine and the committed tiny models. After
each,

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
bold (`tests/faults/test_table.py`); the whole table and `make soak` are commands of their own, and not a tier of the
tests.

| fault | outcome | attempts | time to recovery |
|---|---|---|---|
"""
ROW = re.compile(r"^\| (?:\*\*)?(.+?)(?:\*\*)? \| (.+) \| (\d+) \| (.+) \|$", re.MULTILINE)


def main(arguments: list[str]) -> int:
    """Play the chosen cases; return 0 if no fault lost anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="play only the cases whose names have one of these words")
    parser.add_argument("--quick", action="store_true", help="try the cases with a small engine; write no report")
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
            say(f"{row(outcomes[-1])} {outcomes[-1].total_seconds:.0f} s in all")
            if not given.quick:
                write_report(outcomes)
    say(f"{sum(outcome.is_good for outcome in outcomes)} of {len(outcomes)} faults lost nothing")
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def row(outcome: Outcome) -> str:
    """Return the outcome's line of the table."""
    found = "succeeded, nothing lost" if outcome.is_good else "; ".join(outcome.problems).replace("\n", " ")
    seconds = "-" if outcome.recovery_seconds is None else f"{outcome.recovery_seconds:.0f} s"
    name = f"**{outcome.name}**" if outcome.name in {case.name for case in CASES if case.in_ci} else outcome.name
    return f"| {name} | {found} | {outcome.num_attempts} | {seconds} |"


def write_report(outcomes: Sequence[Outcome]) -> None:
    """Write the report, with the rows of cases that were not played as they are."""
    text = REPORT.read_text(encoding="utf-8") if REPORT.exists() else ""
    rows = {found[1]: found[0] for found in ROW.finditer(text)} | {outcome.name: row(outcome) for outcome in outcomes}
    head = HEAD.format(lease=QUICK["TRD_LEASE_SECONDS"], heartbeat=QUICK["TRD_HEARTBEAT_SECONDS"])
    table = "".join(f"{rows[case.name]}\n" for case in CASES if case.name in rows)
    REPORT.write_text(head + table, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
