"""``make demo``: a job over HTTP, from its data to a better student that answers.

The teacher is another small model. The student misreads one operation, so that its rollouts never contain the correct
path. ``--variant trd`` trains on refined trajectories, the other variants on rollouts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from client import Client
from client.cli.watch import show_progress
from client.jobs import require_succeeded
from examples.local_service import local_service
from testbed.make_data import main as make_data

VARIANTS = ("trd", "forward_kl", "forward_kl_clip", "reverse_kl", "reverse_kl_topk")
NUM_TRAIN = 1024
NUM_HELDOUT = 250


def main() -> None:
    """Run the demo; raises if a part of it fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=VARIANTS, default="trd", help="the paper's variant to train with")
    parser.add_argument("--out", type=Path, default=Path("data/demo"), help="folder for everything it makes")
    options = parser.parse_args()
    began = time.monotonic()
    folder: Path = options.out / options.variant
    shutil.rmtree(folder, ignore_errors=True)
    make_data(["--out", str(folder / "data"), "--train", str(NUM_TRAIN), "--heldout", str(NUM_HELDOUT), "--seed", "0"])
    # Models of 0.4M parameters do not use a second thread.
    with local_service(folder / "service", settings={"OMP_NUM_THREADS": "1"}) as service:
        client = service.client
        print(f"API on {service.url}, worker beside it; logs in {service.data_dir}")
        train, heldout = (client.datasets.upload(folder / "data" / f"{name}.jsonl").id for name in ("train", "heldout"))
        spec = job_spec(options.variant, train, heldout)
        print("POST /jobs", json.dumps(spec))
        job_id = client.jobs.create(spec).id
        show_progress(client, job_id)
        require_succeeded(client.jobs.get(job_id))
        _print_scores(client, job_id)
        _print_diagnosis(client, job_id)
        manifest = client.checkpoints.manifest(job_id)
        done = client.checkpoints.download(manifest, folder / "checkpoint", folder="model")
        print(f"\ndownloaded {done.num_bytes:,} bytes to {done.folder}; every sha256 matches the manifest")
    _use_checkpoint(folder / "checkpoint", folder / "data" / "heldout.jsonl")
    print(f"\ndone in {time.monotonic() - began:.0f} s")


def job_spec(variant: str, dataset: str, heldout: str) -> dict[str, Any]:
    """Return the job's body: settings for small models, and the service's defaults."""
    spec: dict[str, Any] = {
        "mode": "trd" if variant == "trd" else "opd",
        "preset": variant,
        "student": "tiny-student",
        "teacher": "tiny-teacher",
        "dataset": dataset,
        "task": "exact",
        "sampling": {"max_prompt_tokens": 64, "max_new_tokens": 128},
        "lora": None,
        "optim": {"learning_rate": 1e-3, "batch_size": 32},
        "evaluation": {"dataset": heldout, "k": 4},
        "diagnosis": {"steps": "reference"},  # each problem of this data has only one correct solution
        "name": f"demo {variant}",
        "tags": ["demo"],
    }
    if variant == "trd":
        spec["refine"] = {"max_prompt_tokens": 192, "max_new_tokens": 128}
    if variant == "reverse_kl_topk":
        spec["loss"] = {"teacher_top_k": 8}  # the vocabulary has 32 tokens
    return spec


def _print_scores(client: Client, job_id: str) -> None:
    rows = client.evaluations.list(job_id)
    before, after = rows[0], rows[-1]
    print(f"\n{'held-out problems: ' + str(after.num_problems):<28}{'before':>10}{'after':>10}")
    for name in ("avg", "pass"):
        first, last, low, high = (
            100 * getattr(row, f"{name}_{field}")
            for row, field in ((before, "at_k"), (after, "at_k"), (after, "low"), (after, "high"))
        )
        label = f"{name}@{after.k}"
        print(f"{label:<28}{first:>9.1f}%{last:>9.1f}%   95 % interval after: {low:.1f} … {high:.1f}")
    trajectories = list(client.trajectories.list(job_id))
    for label, verdicts in (
        ("verifier accuracy of y_o", [row.rollout_correct for row in trajectories]),
        ("verifier accuracy of y_r", [row.refined_correct for row in trajectories if row.refined_correct is not None]),
    ):
        if verdicts:
            print(f"{label:<28}{100 * sum(verdicts) / len(verdicts):>9.1f}%")
    summary = next(event.data["summary"] for event in client.events.list(job_id) if "summary" in event.data)
    for phase, seconds in summary["seconds_by_phase"].items():
        print(f"{'wall time, ' + phase:<28}{seconds:>8.1f} s")


def _print_diagnosis(client: Client, job_id: str) -> None:
    """Print the figures of prefix failure that `docs/diagnosis.md` explains."""
    report = next(client.diagnoses.list(job_id)).report
    wrong = report.first_wrong_step
    assert wrong is not None, "the task of this demo can check single steps"
    kl = " / ".join(f"{segment.forward_kl or 0.0:.2f}" for segment in (wrong.before, wrong.within, wrong.after))
    print(f"KL per token of y_o, before / within / after its first wrong step   {kl}")
    masses = [view and f"{1000 * (view.epistemic_mass or 0.0):.1f} ‰" for view in (report.rollout, report.refined)]
    print(f"the teacher's mass on 'wait', along y_o and along y_r               {masses[0]}, {masses[1] or 'none'}")


def _use_checkpoint(model: Path, problems: Path) -> None:
    from examples.answer import answer_with_transformers, answer_with_vllm

    with problems.open(encoding="utf-8") as file:
        rows = [json.loads(next(file)) for _ in range(3)]
    texts = [row["problem"] for row in rows]
    for name, answer in (("transformers", answer_with_transformers), ("vLLM", answer_with_vllm)):
        print(f"\nthe checkpoint answers, loaded with {name}:")
        for row, text in zip(rows, answer(model, texts), strict=True):
            right = "right" if text.endswith(f"{{{row['answer']}}}") else f"wrong, it is {row['answer']}"
            print(f"  {row['problem']}  ->  {text.replace(chr(10), '; ')}   ({right})")


if __name__ == "__main__":
    main()
