"""``python -m trd_engine evaluate SPEC FOLDER --out DIR``: any model's scores on the evaluation problems of a spec.

Sampled as a run of the spec samples, with its seeds: a checkpoint gets the scores that its run reported. Trains
nothing, and loads no teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from trd_engine.config import LoraConfig, RunConfig
from trd_engine.data.problem_sets import PromptBudgets, load_evaluation_problems
from trd_engine.evaluation.evaluate import evaluate_student
from trd_engine.generation.choice import choose_and_report, sampling_settings
from trd_engine.generation.hf.generator import TransformersGenerator
from trd_engine.generation.samplers import Samplers
from trd_engine.generation.vllm.engines import vllm_generators
from trd_engine.models.folders import FoundModel, find_model, local_folder
from trd_engine.models.loading import end_of_turn_ids, load_model, load_tokenizer, make_prompt_builder, require_context
from trd_engine.models.lora import load_adapter
from trd_engine.rollouts.collect import Collector
from trd_engine.rollouts.verify import Verifier
from trd_engine.runtime.distributed import ALONE
from trd_engine.runtime.errors import SpecError
from trd_engine.runtime.events import Reporter
from trd_engine.runtime.hardware import choose_compute_dtype, choose_device
from trd_engine.runtime.seeds import seed_everything
from trd_engine.tasks.protocol import Task
from trd_engine.tasks.registry import load_task
from trd_engine.types import Problem, ScoreRow


def evaluate(
    config: RunConfig,
    folder: Path,
    out_dir: Path,
    *,
    problems: Iterable[Problem | Mapping[str, Any]] | None = None,
    task: Task | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> ScoreRow:
    """Score the model in `folder`: a checkpoint, a model or an adapter. `out_dir` gets the events and every answer.

    Of `config` only `dataset`, `task`, `prompts`, `sampling`, `evaluation`, `seed`, `device` and `precision` are used.
    `problems`, `task`, `on_event` and `stop` are as in `training.loop.distil`; all given problems are evaluated.

    Raises:
        EngineError: `code` and message are for the user.
    """
    if any((out_dir / name).exists() for name in ("evaluations", "checkpoints")):
        raise SpecError(f"{out_dir} holds a run or an evaluation already; give another folder")
    found = find_model(folder)
    # Nothing is refined and there is no teacher, so that samplers reserve memory for the student alone.
    config = config.model_copy(
        update={"mode": "opd", "student": local_folder(found.source), "teacher": None, "lora": None, "devices": 1}
    )
    with Reporter(out_dir, stop=stop, world=ALONE, on_event=on_event) as reporter:
        reporter.enter("preparing")
        seed_everything(config.seed)
        transformers_logging.disable_progress_bar()
        task, tokenizer = task or load_task(config.task), load_tokenizer(config.student)
        prompts = make_prompt_builder(tokenizer, config.student, task.prompts, config)
        budgets = PromptBudgets(prompts, config.sampling.max_prompt_tokens)
        kept, name = load_evaluation_problems(
            config.dataset, config.evaluation, config.task, config.seed, budgets, reporter, given=problems
        )
        collector = Collector(_samplers(config, found, tokenizer, reporter), prompts, Verifier(task), reporter)
        try:
            reporter.enter("evaluating")
            row = evaluate_student(kept, collector, config.evaluation, dataset=name, step=0, seed=config.seed)
        finally:
            collector.close()
        reporter.finished(0, {"scores": [asdict(row)]})
    return row


def _samplers(config: RunConfig, found: FoundModel, tokenizer: PreTrainedTokenizerBase, reporter: Reporter) -> Samplers:
    wanted = config.sampling
    require_context(
        "model",
        config.student,
        prompt_tokens=wanted.max_prompt_tokens,
        new_tokens=wanted.max_new_tokens,
        fields="sampling.max_prompt_tokens + sampling.max_new_tokens",
    )
    device = choose_device(config.device)
    dtype = choose_compute_dtype(config.precision, device)
    adapter_dtype = None if found.adapter is None else dtype
    engine = choose_and_report(wanted, [config.student], device, reporter, adapter_dtype=adapter_dtype)
    if engine == "vllm":
        if found.adapter is not None:
            lora = LoraConfig() if found.adapter_rank is None else LoraConfig(rank=found.adapter_rank)
            config = config.model_copy(update={"lora": lora})
        generator, _ = vllm_generators(config, device, dtype, ALONE)
        if found.adapter is not None:
            generator.use_adapter(found.adapter)
    else:
        model = load_model(config.student, dtype=dtype, device=device)
        adapted = model if found.adapter is None else load_adapter(model, found.adapter)
        generator = TransformersGenerator(adapted, tokenizer)
    settings = sampling_settings(wanted, end_of_turn_ids(config.student, tokenizer))
    return Samplers(generator, generator, None, settings, settings)
