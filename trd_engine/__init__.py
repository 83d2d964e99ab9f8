"""The refine-and-distil loop of Trajectory-Refined Distillation (arXiv 2606.08432).

Usable as a library and alone (``python -m trd_engine run spec.json --out DIR``). Knows nothing of HTTP, Celery or SQL:
it takes a spec and problems, and writes events, trajectories and checkpoints to a folder.

The public names are loaded when they are first used, so that a spec is checked without loading torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trd_engine.config import RunConfig as RunConfig
    from trd_engine.distillation.losses.divergence import Divergence as Divergence
    from trd_engine.distillation.losses.linear_divergence import Projection as Projection
    from trd_engine.distillation.losses.linear_divergence import linear_divergence as linear_divergence
    from trd_engine.evaluation.evaluate_folder import evaluate as evaluate
    from trd_engine.runtime.errors import EngineError as EngineError
    from trd_engine.tasks.protocol import PromptTemplates as PromptTemplates
    from trd_engine.tasks.protocol import Task as Task
    from trd_engine.training.loop import distil as distil
    from trd_engine.types import Problem as Problem
    from trd_engine.types import Verdict as Verdict

_MODULES = {
    "RunConfig": "config",
    "distil": "training.loop",
    "evaluate": "evaluation.evaluate_folder",
    "linear_divergence": "distillation.losses.linear_divergence",
    "Projection": "distillation.losses.linear_divergence",
    "Divergence": "distillation.losses.divergence",
    "Problem": "types",
    "PromptTemplates": "tasks.protocol",
    "Task": "tasks.protocol",
    "Verdict": "types",
    "EngineError": "runtime.errors",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
