"""Our vLLM generator compared with plain `LLM.generate`, on the same requests.

    python -m benchmarks.rollout                       # the tiny student
    python -m benchmarks.rollout --model models/smollm2-135m-instruct --dtype bf16 --requests 32 --new-tokens 64

One thread. All contenders run in one process and alternate within each repeat, so that other load affects all equally;
the first repeat is not counted. Every request has its own seed and samples exactly `--new-tokens` tokens. Both engines
get the same settings; chunked prefill is off for both, because vLLM 0.32 on a CPU fails on a seeded request whose
prompt is read in chunks. CPU seconds are those of the process, which other load affects less than wall time. Results
are written to one file per model and precision.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import argparse
import csv
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.machine import describe_machine
from trd_engine.generation.hf.generator import TransformersGenerator
from trd_engine.generation.vllm.generator import VllmGenerator, VllmSettings
from trd_engine.generation.vllm.runtime import import_vllm
from trd_engine.types import GenerationRequest, SamplingSettings

if TYPE_CHECKING:
    from vllm import LLM

RESULTS = Path(__file__).parent / "results"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MAX_MODEL_LEN = 512
MAX_NUM_SEQS = 256
KV_CACHE_BYTES = 1 << 30
TARGET = 0.95
"""Target, as a share of plain vLLM's tokens per second."""

Contender = Callable[[list[GenerationRequest], SamplingSettings], int]
"""Runs the requests and returns how many tokens were sampled."""


@dataclass
class Row:
    """Measurements of one contender with one sampling setting."""

    sampling: str
    contender: str
    num_tokens: int = 0
    wall_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def tokens_per_cpu_second(self) -> float:
        return self.num_tokens / statistics.median(self.cpu_seconds)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / statistics.median(self.wall_seconds)


def measure(
    contenders: dict[str, Contender], requests: list[GenerationRequest], num_new_tokens: int, repeats: int
) -> list[Row]:
    """Measure all contenders with each sampling setting."""
    rows = []
    for name, sampling in {
        "temperature 0.6, top-p 0.95, top-k 20": SamplingSettings(0.6, 0.95, 20, num_new_tokens, ()),
        "temperature 1": SamplingSettings(1.0, 1.0, -1, num_new_tokens, ()),
        "greedy": SamplingSettings(0.0, 1.0, -1, num_new_tokens, ()),
    }.items():
        group = [Row(name, contender) for contender in contenders]
        for repeat in range(repeats + 1):
            for row in group:
                wall_before, cpu_before = time.perf_counter(), time.process_time()
                row.num_tokens = contenders[row.contender](requests, sampling)
                wall, cpu = time.perf_counter() - wall_before, time.process_time() - cpu_before
                assert row.num_tokens == len(requests) * sampling.max_new_tokens
                if repeat > 0:  # the first one is a warm-up
                    row.wall_seconds.append(wall)
                    row.cpu_seconds.append(cpu)
            sys.stderr.write(f"{name}: repeat {repeat} of {repeats}\n")
        rows += group
    return rows


def _run_bare(llm: LLM, requests: list[GenerationRequest], sampling: SamplingSettings, *, with_text: bool) -> int:
    from vllm import SamplingParams

    llm.reset_prefix_cache()
    prompts = [{"prompt_token_ids": list(request.prompt_token_ids)} for request in requests]
    parameters = [
        SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=max(sampling.top_k, 0),
            max_tokens=sampling.max_new_tokens,
            ignore_eos=True,
            seed=request.seed,
            detokenize=with_text,
        )
        for request in requests
    ]
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)


def _run_ours(
    generator: VllmGenerator | TransformersGenerator, requests: list[GenerationRequest], sampling: SamplingSettings
) -> int:
    return sum(len(completion.token_ids) for completion in generator.generate(requests, sampling))


def write_table(rows: list[Row], path: Path, title: str) -> bool:
    """Write Markdown and CSV; return whether our generator reaches its target with every sampling setting."""
    bare = {row.sampling: row for row in rows if row.contender == "LLM.generate"}
    lines = [f"# {title}", "", *describe_machine(["torch", "transformers", "vllm"]), ""]
    lines += [
        "Medians; one thread. Ratios are of tokens a CPU second, to bare `LLM.generate`. "
        f"To reach: VllmGenerator at least {TARGET} ×.",
        "",
        "| sampling | contender | tokens/s | tokens/CPU s | × bare |",
        "|---|---|---:|---:|---:|",
    ]
    for row in rows:
        ratio = row.tokens_per_cpu_second / bare[row.sampling].tokens_per_cpu_second
        lines.append(
            f"| {row.sampling} | {row.contender} | {row.tokens_per_second:,.0f} | {row.tokens_per_cpu_second:,.0f} "
            f"| {ratio:.2f} |"
        )
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sampling", "contender", "num_tokens", "wall_seconds", "cpu_seconds"])
        for row in rows:
            for wall, cpu in zip(row.wall_seconds, row.cpu_seconds, strict=True):
                writer.writerow([row.sampling, row.contender, row.num_tokens, f"{wall:.3f}", f"{cpu:.3f}"])
    return all(
        row.tokens_per_cpu_second >= TARGET * bare[row.sampling].tokens_per_cpu_second
        for row in rows
        if row.contender == "VllmGenerator"
    )


def main() -> int:
    """Run the command line; return 1 if the target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollout", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("testbed/models/tiny-student"))
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    llm: LLM = import_vllm().LLM(
        str(options.model),
        dtype=str(DTYPES[options.dtype]).removeprefix("torch."),
        enforce_eager=True,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        enable_chunked_prefill=False,
    )
    settings = VllmSettings(
        dtype=DTYPES[options.dtype],
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        kv_cache_bytes=KV_CACHE_BYTES,
    )
    ours = VllmGenerator(options.model, settings)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=DTYPES[options.dtype]).eval()
    borrowed = TransformersGenerator(model, AutoTokenizer.from_pretrained(options.model))
    contenders = {
        "LLM.generate": lambda requests, sampling: _run_bare(llm, requests, sampling, with_text=True),
        "LLM.generate, ids only": lambda requests, sampling: _run_bare(llm, requests, sampling, with_text=False),
        "VllmGenerator": lambda requests, sampling: _run_ours(ours, requests, sampling),
        "TransformersGenerator": lambda requests, sampling: _run_ours(borrowed, requests, sampling),
    }
    vocabulary_size = len(AutoTokenizer.from_pretrained(options.model))
    numbers = random.Random(0)
    requests = [
        GenerationRequest(tuple(numbers.randrange(vocabulary_size) for _ in range(numbers.randint(20, 60))), seed)
        for seed in range(options.requests)
    ]
    rows = measure(contenders, requests, options.new_tokens, options.repeats)
    title = f"Rollout: {options.model.name}, {options.dtype}, {options.requests} requests × {options.new_tokens} tokens"
    reached = write_table(rows, RESULTS / f"rollout_{options.model.name}_{options.dtype}", title)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
