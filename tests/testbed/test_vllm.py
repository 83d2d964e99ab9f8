"""A committed model in the real vLLM: it loads, and its greedy text is that of transformers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import testbed
from testbed.measure import complete, draw_problems, load_model
from testbed.tokenizer import encode_prompt

MODELS = Path(testbed.__file__).parent / "models"
NUM_PROBLEMS = 32

# A separate process: vLLM changes global state, and its warnings are not ours to make errors.
SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams
problems = json.loads(sys.argv[2])
llm = LLM(model=sys.argv[1], enforce_eager=True, dtype="float32", max_model_len=512)
chats = [[{"role": "user", "content": problem}] for problem in problems]
outputs = llm.chat(chats, SamplingParams(temperature=0, max_tokens=160), use_tqdm=False)
rows = [[list(o.prompt_token_ids), o.outputs[0].text, o.outputs[0].finish_reason] for o in outputs]
print("ROWS" + json.dumps(rows))
"""


@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
@pytest.mark.parametrize("name", ["tiny-teacher", "tiny-student"])
def test_vllm_and_transformers_agree(name: str) -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    problems = draw_problems(NUM_PROBLEMS, "validation", seed=4)
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [sys.executable, "-c", SCRIPT, str(MODELS / name), json.dumps(problems)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    answer = next(line for line in done.stdout.splitlines() if line.startswith("ROWS"))
    prompts, texts, reasons = zip(*json.loads(answer.removeprefix("ROWS")), strict=True)
    assert list(prompts) == [encode_prompt(problem) for problem in problems]
    assert set(reasons) == {"stop"}
    same = [a == b for a, b in zip(texts, complete(load_model(MODELS / name), problems), strict=True)]
    # Both in fp32, they differ by 1e-6 in log-probability: only an exact tie may fall otherwise.
    assert sum(same) >= NUM_PROBLEMS - 1
