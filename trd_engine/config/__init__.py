"""The engine's spec: one validated description of one run.

The field names are those of the service's job spec: a resolved job without its queue, priority and labels is a valid
`RunConfig`, with paths in the place of the service's ids. All checks are made at construction. Where a default is a
setting of the paper, that is Trajectory-Refined Distillation (arXiv 2606.08432).
"""

from trd_engine.config.parts import DataSource as DataSource
from trd_engine.config.parts import DiagnosisConfig as DiagnosisConfig
from trd_engine.config.parts import EvaluationConfig as EvaluationConfig
from trd_engine.config.parts import LoraConfig as LoraConfig
from trd_engine.config.parts import LossConfig as LossConfig
from trd_engine.config.parts import OptimConfig as OptimConfig
from trd_engine.config.parts import RefineConfig as RefineConfig
from trd_engine.config.parts import SamplerPoolConfig as SamplerPoolConfig
from trd_engine.config.parts import SamplingConfig as SamplingConfig
from trd_engine.config.parts import ServedTeacherConfig as ServedTeacherConfig
from trd_engine.config.parts import ServersConfig as ServersConfig
from trd_engine.config.parts import TeacherUpdateConfig as TeacherUpdateConfig
from trd_engine.config.parts import TokenWeightsConfig as TokenWeightsConfig
from trd_engine.config.run import RunConfig as RunConfig
from trd_engine.config.run import load_config as load_config
from trd_engine.config.run import parse_config as parse_config
