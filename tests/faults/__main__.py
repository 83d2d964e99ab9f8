"""``python -m tests.faults``: play the table of faults, print it, and write docs/reliability.md.

With words it plays the cases whose names have one of them, and replaces their rows alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.harness.cases import CASES
from tests.faults.harness.deployment import Deployment
from tests.faults.harness.report import row, say, write_report
from tests.faults.harness.scene import Theatre


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
            write_report(outcomes, is_quick=given.quick)
    say(f"{sum(outcome.is_good for outcome in outcomes)} of {len(outcomes)} faults lost nothing")
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
