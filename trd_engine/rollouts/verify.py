"""Verdicts on many completions, with a check for a request to stop every few of them.

Programs and hard comparisons may use their whole time limits, so that a round of them may take hours.
"""

from __future__ import annotations

from collections.abc import Sequence

from trd_engine.runtime.errors import EngineError
from trd_engine.runtime.events import Reporter
from trd_engine.tasks.protocol import Pair, Task
from trd_engine.types import Verdict

PART = 32
"""Completions between two checks for a stop: enough to keep a verifier's processes busy side by side."""
_MAX_SHOWN = 500
"""Characters of a crash in a verdict."""


def verify_all(pairs: Sequence[Pair], task: Task, reporter: Reporter) -> list[Verdict]:
    """Return one verdict per pair, in order; raise `StopRequested` if this process was asked to stop.

    Call it within `Reporter.run_independently`: other processes are not asked.
    """
    verdicts: list[Verdict] = []
    for start in range(0, len(pairs), PART):
        verdicts += _verdicts(pairs[start : start + PART], task)
        reporter.stop_if_asked()
    return verdicts


def _verdicts(pairs: Sequence[Pair], task: Task) -> list[Verdict]:
    """Return verdicts; a verifier that crashes on a completion counts as a failed one, which does not end the run."""
    try:
        return task.verify_many(pairs)
    except EngineError:
        raise
    except Exception as error:  # noqa: BLE001 - texts of a model reach code of many libraries
        if len(pairs) == 1:
            detail = f"error: the verifier crashed: {type(error).__name__}: {error}"
            return [Verdict(False, detail[:_MAX_SHOWN], "error")]
        # One by one, so that the other completions keep their verdicts.
        return [verdict for pair in pairs for verdict in _verdicts([pair], task)]
