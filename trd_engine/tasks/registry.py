"""Finds a task by the name that a spec gives."""

from __future__ import annotations

import importlib.util

from trd_engine.runtime.errors import SpecError
from trd_engine.tasks.protocol import Task
from trd_engine.tasks.verifier_pool.pool import verifier_confinement

TASK_NAMES = ("math", "exact", "choice", "code", "reasoning_gym")


def load_task(name: str) -> Task:
    """Return the task called `name`; raise SpecError if there is none or this machine may not run it."""
    # Imported here: the sandbox's and the verifiers' child processes import this package too, and stay small.
    if name in ("math", "reasoning_gym"):
        verifier_confinement()  # refuses before anything is trained
    if name == "math":
        from trd_engine.tasks.math.task import MathTask

        return MathTask()
    if name in ("exact", "choice"):
        from trd_engine.tasks.exact import ChoiceTask, ExactTask

        return ExactTask() if name == "exact" else ChoiceTask()
    if name == "code":
        from trd_engine.tasks.code.task import load_code_task

        return load_code_task()
    if name == "reasoning_gym":
        if importlib.util.find_spec("reasoning_gym") is None:
            raise SpecError(
                "task = reasoning_gym: its library is not installed here; pip install 'trd-service[gym]' installs it"
            )
        from trd_engine.tasks.reasoning_gym import ReasoningGymTask

        return ReasoningGymTask()
    raise SpecError(f"task: unknown task {name!r}; use one of {', '.join(TASK_NAMES)}")
