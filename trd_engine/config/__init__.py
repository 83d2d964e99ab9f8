"""The engine's spec: one validated description of one run.

The field names are those of the service's job spec: a resolved job without its queue, priority and labels is a valid
`RunConfig`, with paths in the place of the service's ids. All checks are made at construction. Where a default is a
setting of the paper, that is Trajectory-Refined Distillation (arXiv 2606.08432).
"""

from trd_engine.config.parts import (
    CheckpointsConfig,
    DataSource,
    DiagnosisConfig,
    EvaluationConfig,
    LoraConfig,
    LossConfig,
    OptimConfig,
    PositiveInt,
    PromptsConfig,
    RefineConfig,
    SamplerPoolConfig,
    SamplingConfig,
    ServedTeacherConfig,
    ServersConfig,
    TeacherUpdateConfig,
    TokenWeightsConfig,
)
from trd_engine.config.run import RunConfig, load_config, parse_config

__all__ = [
    "CheckpointsConfig",
    "DataSource",
    "DiagnosisConfig",
    "EvaluationConfig",
    "LoraConfig",
    "LossConfig",
    "OptimConfig",
    "PositiveInt",
    "PromptsConfig",
    "RefineConfig",
    "RunConfig",
    "SamplerPoolConfig",
    "SamplingConfig",
    "ServedTeacherConfig",
    "ServersConfig",
    "TeacherUpdateConfig",
    "TokenWeightsConfig",
    "load_config",
    "parse_config",
]
