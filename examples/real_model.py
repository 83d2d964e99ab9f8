"""A TRD and an OPSD job on SmolLM2-135M-Instruct, through the service: ``python -m examples.real_model``.

The student is its own teacher and sees the reference solutions of generated word problems. On two cores this takes
about ten minutes, and a fifth of that with ``--steps 2 --batch-size 2 --max-new-tokens 32``, which cuts the answers
off. It shows that a real model runs through the same code, not that it becomes good.
"""

from __future__ import annotations

import argparse
import math
import shutil
from pathlib import Path
from typing import Any

from client import Client
from client.cli.watch import show_progress
from client.jobs import require_succeeded
from examples.answer import answer_with_transformers
from examples.local_service import local_service
from examples.word_problems import main as make_problems

MODEL_NAME = "smollm2-135m-instruct"


def main() -> None:
    """Run the jobs; raises if one of them has an unexpected result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, default=Path("models") / MODEL_NAME, help="made by examples.smollm2")
    parser.add_argument("--out", type=Path, default=Path("data/real-model"), help="folder for everything it makes")
    parser.add_argument("--modes", nargs="+", choices=("trd", "opsd"), default=["trd", "opsd"])
    parser.add_argument("--max-new-tokens", type=int, default=160, help="of each answer; most need some 100")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps")
    parser.add_argument(
        "--batch-size", type=int, default=4, help="trajectories a step; as many are held out, diagnosed"
    )
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    train, heldout = options.out / "train.jsonl", options.out / "heldout.jsonl"
    sizes = ["--size", str(options.steps * options.batch_size), "--heldout-size", str(options.batch_size)]
    make_problems(["--out", str(train), "--heldout", str(heldout), "--seed", "0", *sizes])
    settings = {"TRD_MODELS": f"{MODEL_NAME}={options.model.resolve()}"}
    with local_service(options.out / "service", settings=settings) as service:
        client = service.client
        train_id, heldout_id = (client.datasets.upload(path).id for path in (train, heldout))
        for mode in options.modes:
            job_id = client.jobs.create(job_spec(mode, train_id, heldout_id, options)).id
            show_progress(client, job_id)
            require_succeeded(client.jobs.get(job_id))
            _check_metrics(client, job_id, options.steps)
            target = options.out / mode
            client.checkpoints.download(client.checkpoints.manifest(job_id), target, folder="model")
            print(mode, "answers:", answer_with_transformers(target, ["What is 2 + 2?"])[0][:200])


def job_spec(mode: str, dataset: str, heldout: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the job's body: LoRA on all layers, one round of trajectories for all steps."""
    return {
        "mode": mode,
        "student": MODEL_NAME,
        "dataset": dataset,
        "task": "math",
        "sampling": {"max_prompt_tokens": 384, "max_new_tokens": options.max_new_tokens},
        "refine": {"max_prompt_tokens": 768, "max_new_tokens": options.max_new_tokens},
        "lora": {"rank": 16, "alpha": 32},
        "optim": {
            "learning_rate": 2e-4,
            "batch_size": options.batch_size,
            "max_steps": options.steps,
            "micro_batch_tokens": 2048,
        },
        "evaluation": {"dataset": heldout, "k": 1},
        "diagnosis": {"num_trajectories": options.batch_size},  # more would take as long as the training
        "name": f"SmolLM2 {mode}",
    }


def _check_metrics(client: Client, job_id: str, num_steps: int) -> None:
    """Check that losses are finite and that the held-out KL to the teacher fell."""
    losses = _values(client, job_id, "loss")
    forward_kl = _values(client, job_id, "heldout_forward_kl")
    print("loss", [round(loss, 3) for loss in losses], "held-out forward KL", [round(x, 4) for x in forward_kl])
    if len(losses) < num_steps or not all(math.isfinite(loss) for loss in losses):
        raise RuntimeError(f"{job_id}: the losses are {losses}")
    if not forward_kl[-1] < forward_kl[0]:
        raise RuntimeError(f"{job_id}: held-out forward KL went from {forward_kl[0]} to {forward_kl[-1]}")


def _values(client: Client, job_id: str, name: str) -> list[float]:
    (series,) = client.metrics.list(job_id, [name])
    return [value if value is not None else math.nan for value in series.values]


if __name__ == "__main__":
    main()
