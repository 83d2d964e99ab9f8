"""Verdicts on completions, in a separate thread: completions are judged while the next ones are sampled.

Programs and hard comparisons may use their whole time limits, so that a round of them may take hours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from trd_engine.runtime.errors import EngineError
from trd_engine.runtime.events import Reporter
from trd_engine.tasks.protocol import Pair, Task
from trd_engine.types import Problem, Verdict

PART = 32
"""Completions that are judged together at most: enough to keep a verifier's processes busy side by side."""
_STOP_SECONDS = 0.5
"""Seconds between two checks for a stop while verdicts are awaited."""
_MAX_SHOWN = 500
"""Characters of a crash in a verdict."""


class Verifier:
    """Judges completions in the order in which they are begun. A verdict depends on problem and text alone."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="verifier")
        self._waiting: deque[tuple[Pair, Future[Verdict]]] = deque()
        self._begun: dict[tuple[str, str], Future[Verdict]] = {}
        self._failure: BaseException | None = None

    def begin(self, problem: Problem, text: str) -> Future[Verdict]:
        """Start to judge a completion, unless an equal one to the same problem was begun since the last `verdicts`."""
        future = self._begun.get((problem.id, text))
        if future is None:
            future = self._begun[problem.id, text] = Future()
            self._waiting.append(((problem, text), future))
            self._thread.submit(self._judge_part)
        return future

    def verdicts(self, pairs: Sequence[Pair], reporter: Reporter) -> list[Verdict]:
        """Return one verdict per pair, in order; raise `StopRequested` if this process was asked to stop, and what the
        task raised if it cannot judge at all.

        Call it within `Reporter.run_independently`: other processes are not asked.
        """
        futures = [self.begin(problem, text) for problem, text in pairs]
        try:
            for future in futures:
                while not future.done():
                    reporter.stop_if_asked()
                    wait([future], timeout=_STOP_SECONDS)
            return [future.result() for future in futures]
        finally:
            self._forget()

    def close(self) -> None:
        """End the thread; waits for the part in progress."""
        self._forget()
        self._thread.shutdown()

    def _forget(self) -> None:
        self._waiting.clear()
        self._begun.clear()

    def _judge_part(self) -> None:
        """Judge up to `PART` of the waiting completions; those before may have taken all."""
        part: list[tuple[Pair, Future[Verdict]]] = []
        while self._waiting and len(part) < PART:
            part.append(self._waiting.popleft())
        try:
            if self._failure is not None:
                raise self._failure
            found = _verdicts([pair for pair, _ in part], self._task) if part else []
        except BaseException as error:  # noqa: BLE001 - raised where the verdicts are awaited
            self._failure = error  # the others would fail alike, after the same wait
            for _, future in part:
                future.set_exception(error)
            return
        for (_, future), verdict in zip(part, found, strict=True):
            future.set_result(verdict)


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
