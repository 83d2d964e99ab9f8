"""``make demo``: a job over HTTP, from its data to a better student that answers.

The teacher is another small model; the student reads one operation wrongly, so that the right path is
never in its own rollouts. ``--variant trd`` refines them first; the other variants train on them raw.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from examples import job_client
from examples.local_service import local_service
from testbed.make_data import main as make_data

VARIANTS = ("trd", "forward_kl", "forward_kl_clip", "reverse_kl", "reverse_kl_topk")
NUM_TRAIN = 1024
NUM_HELDOUT = 250


def main() -> None:
    """Run the demo; raises where a part of it does not work."""
    options = _parser().parse_args()
    began = time.monotonic()
    folder: Path = options.out / options.variant
    shutil.rmtree(folder, ignore_errors=True)
    make_data(["--out", str(folder / "data"), "--train", str(NUM_TRAIN), "--heldout", str(NUM_HELDOUT), "--seed", "0"])
    # Models of 0.4M parameters: a second thread only waits for the first.
    with local_service(folder / "service", settings={"OMP_NUM_THREADS": "1"}) as service:
        client = service.client
        print(f"API on {client.base_url}, worker beside it; logs in {service.data_dir}")
        spec = job_spec(
            options.variant,
            job_client.upload(client, folder / "data" / "train.jsonl"),
            job_client.upload(client, folder / "data" / "heldout.jsonl"),
        )
        print("POST /jobs", json.dumps(spec))
        job_id = job_client.submit(client, spec)
        job_client.watch(client, job_id)
        _print_scores(client, job_id)
        _print_diagnosis(client, job_id)
        num_bytes = job_client.download(client, job_id, "model", folder / "checkpoint")
        print(f"\ndownloaded {num_bytes:,} bytes to {folder / 'checkpoint'}; every sha256 is the manifest's")
    _use_checkpoint(folder / "checkpoint", folder / "data" / "heldout.jsonl")
    print(f"\ndone in {time.monotonic() - began:.0f} s")


def job_spec(variant: str, dataset: str, heldout: str) -> dict[str, Any]:
    """The job's body. The settings are small, as the models are; all else is the service's default."""
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
        "diagnosis": {"steps": "reference"},  # each problem of this data is worked in one way only
        "name": f"demo {variant}",
        "tags": ["demo"],
    }
    if variant == "trd":
        spec["refine"] = {"max_prompt_tokens": 192, "max_new_tokens": 128}
    if variant == "reverse_kl_topk":
        spec["loss"] = {"teacher_top_k": 8}  # of a vocabulary of 32
    return spec


def _print_scores(client: httpx.Client, job_id: str) -> None:
    rows = job_client.evaluations(client, job_id)
    before, after = rows[0], rows[-1]
    print(f"\n{'held-out problems: ' + str(after['num_problems']):<28}{'before':>10}{'after':>10}")
    for name, low, high in (("avg_at_k", "avg_low", "avg_high"), ("pass_at_k", "pass_low", "pass_high")):
        label = name.replace("_at_k", f"@{after['k']}")
        interval = f"   95 % interval after: {100 * after[low]:.1f} … {100 * after[high]:.1f}"
        print(f"{label:<28}{100 * before[name]:>9.1f}%{100 * after[name]:>9.1f}%{interval}")
    for label, share in _verifier_accuracies(client, job_id).items():
        print(f"{label:<28}{100 * share:>9.1f}%")
    for phase, seconds in _seconds_by_phase(client, job_id).items():
        print(f"{'wall time, ' + phase:<28}{seconds:>8.1f} s")


def _print_diagnosis(client: httpx.Client, job_id: str) -> None:
    """Prefix failure in figures: `docs/diagnosis.md` explains them."""
    report = client.get(f"/jobs/{job_id}/diagnosis").raise_for_status().json()["data"][0]["report"]
    wrong = report["first_wrong_step"]
    kl = " / ".join(f"{wrong[part]['forward_kl'] or 0.0:.2f}" for part in ("before", "within", "after"))
    print(f"KL per token of y_o, before / within / after its first wrong step   {kl}")
    masses = [report[view] and f"{1000 * report[view]['epistemic_mass']:.1f} ‰" for view in ("rollout", "refined")]
    print(f"the teacher's mass on 'wait', along y_o and along y_r               {masses[0]}, {masses[1] or 'none'}")


def _verifier_accuracies(client: httpx.Client, job_id: str) -> dict[str, float]:
    """Shares of right rollouts y_o and refined trajectories y_r, over all pages of the trajectories."""
    counts: Counter[str] = Counter()
    after = None
    while True:
        parameters = {"limit": "100"} | ({"after": after} if after else {})
        page = client.get(f"/jobs/{job_id}/trajectories", params=parameters).raise_for_status().json()
        for row in page["data"]:
            counts["all"] += 1
            counts["y_o"] += row["rollout_correct"]
            counts["y_r"] += row["refined_correct"] or False
            counts["refined"] += row["refined_correct"] is not None
        if not page["has_more"]:
            break
        after = page["data"][-1]["id"]
    shares = {"verifier accuracy of y_o": counts["y_o"] / counts["all"]}
    if counts["refined"]:
        shares["verifier accuracy of y_r"] = counts["y_r"] / counts["refined"]
    return shares


def _seconds_by_phase(client: httpx.Client, job_id: str) -> dict[str, float]:
    after = 0
    while True:
        page = client.get(f"/jobs/{job_id}/events", params={"after": after, "limit": 100}).raise_for_status().json()
        for event in page["data"]:
            after = event["sequence"]
            if "summary" in event["data"]:
                seconds: dict[str, float] = event["data"]["summary"]["seconds_by_phase"]
                return seconds
        if not page["has_more"]:
            return {}


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=VARIANTS, default="trd", help="the paper's variant to train with")
    parser.add_argument("--out", type=Path, default=Path("data/demo"), help="folder for everything it makes")
    return parser


if __name__ == "__main__":
    main()
