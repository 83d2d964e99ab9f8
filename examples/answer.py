"""Use a downloaded checkpoint: load the same folder with transformers and with vLLM."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAX_NEW_TOKENS = 128


def answer_with_transformers(model: Path, problems: Sequence[str]) -> list[str]:
    """Return greedy answers of transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model)
    answers = []
    for problem in problems:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": problem}], add_generation_prompt=True, tokenize=False
        )
        prompt = torch.tensor([tokenizer.encode(str(text), add_special_tokens=False)])
        output = network.generate(  # type: ignore[misc]  # the stub of its self argument
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=MAX_NEW_TOKENS, do_sample=False
        )
        new_tokens = output[0, prompt.shape[1] :].tolist()
        answers.append(str(tokenizer.decode(new_tokens, skip_special_tokens=True)))
    return answers


def answer_with_vllm(model: Path, problems: Sequence[str]) -> list[str]:
    """Return greedy answers of a vLLM engine in this process."""
    os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"})
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore", FutureWarning)  # raised by vLLM's imports
    from vllm import LLM, SamplingParams

    engine = LLM(str(model), dtype="float32", max_model_len=512, enforce_eager=True, generation_config="vllm")
    conversations: list[Any] = [[{"role": "user", "content": problem}] for problem in problems]
    outputs = engine.chat(conversations, SamplingParams(temperature=0.0, max_tokens=MAX_NEW_TOKENS), use_tqdm=False)
    return [output.outputs[0].text for output in outputs]
