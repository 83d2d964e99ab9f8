"""Verdicts on many completions, with a look at the stop request every few.

Programs and hard comparisons may take their whole time limits: a round's worth of them takes hours at the worst.
"""

from __future__ import annotations

from collections.abc import Sequence

from trd_engine.runtime.errors import EngineError
from trd_engine.runtime.events import Reporter
from trd_engine.tasks.protocol import Pair, Task
from trd_engine.types import Verdict

PART = 32
"""Completions between two looks: enough to keep a verifier's processes busy side by side."""
_MAX_SHOWN = 500
"""Characters of a crash in a verdict."""


def verify_all(pairs: Sequence[Pair], task: Task, reporter: Reporter) -> list[Verdict]:
    """Verify all pairs, in order; call within `Reporter.run_independently`, since it checks this process's stop only.

    Raises `StopRequested`.
    """
    verdicts: list[Verdict] = []
    for start in range(0, len(pairs), PART):
        verdicts += _verdicts(pairs[start : start + PART], task)
        reporter.stop_if_asked()
    return verdicts


def _verdicts(pairs: Sequence[Pair], task: Task) -> list[Verdict]:
    """A verifier that crashes on a completion has judged it: the round's hours of sampling are worth more."""
    try:
        return task.verify_many(pairs)
    except EngineError:
        raise
    except Exception as error:  # noqa: BLE001 - texts of a model reach code of many libraries
        if len(pairs) == 1:
            detail = f"error: the verifier crashed: {type(error).__name__}: {error}"
            return [Verdict(False, detail[:_MAX_SHOWN], "error")]
        # One by one, so that the others have the verdicts that they would have had without it.
        return [verdict for pair in pairs for verdict in _verdicts([pair], task)]
