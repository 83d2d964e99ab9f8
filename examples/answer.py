"""Using a downloaded checkpoint: the same folder with transformers and with vLLM."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

MAX_NEW_TOKENS = 128


def answer_with_transformers(model: Path, problems: Sequence[str]) -> list[str]:
    """Greedy answers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model)
    answers = []
    for problem in problems:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": problem}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = network.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new_tokens = output[0, inputs["input_ids"].shape[1] :]
        answers.append(str(tokenizer.decode(new_tokens, skip_special_tokens=True)))
    return answers


def answer_with_vllm(model: Path, problems: Sequence[str]) -> list[str]:
    """Greedy answers, from an engine in this process."""
    os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"})
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams

    engine = LLM(str(model), dtype="float32", max_model_len=512, enforce_eager=True, generation_config="vllm")
    conversations = [[{"role": "user", "content": problem}] for problem in problems]
    outputs = engine.chat(conversations, SamplingParams(temperature=0.0, max_tokens=MAX_NEW_TOKENS), use_tqdm=False)
    return [output.outputs[0].text for output in outputs]
