"""The unmodified `openai` client: a file, a TRD job, its events, its checkpoints and its model.

    python -m examples.openai_client --out data/openai

starts a separate service; `distil` shows the code for a running service, with
``OpenAI(base_url="http://localhost:8000/v1", api_key=…)``.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from openai import BadRequestError, OpenAI
from openai.types.fine_tuning import FineTuningJob

from examples.local_service import local_service
from testbed.make_data import main as make_data

NUM_TRAIN = 256
OVER = ("succeeded", "failed", "cancelled")


def main() -> None:
    """Run the example; raises if a part of it fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/openai"), help="folder for everything it makes")
    options = parser.parse_args()
    folder: Path = options.out
    shutil.rmtree(folder, ignore_errors=True)
    make_data(["--out", str(folder / "data"), "--train", str(NUM_TRAIN), "--heldout", "0", "--seed", "0"])
    # Models of 0.4M parameters do not use a second thread.
    with (
        local_service(folder / "service", settings={"OMP_NUM_THREADS": "1"}) as service,
        OpenAI(base_url=f"{service.url}/v1", api_key=service.key) as client,
    ):
        print(f"client.base_url = {client.base_url}; logs in {service.data_dir}")
        distil(client, folder / "data" / "train.jsonl")


def distil(client: OpenAI, rows: Path) -> None:
    """Train on the problems in `rows`, and show the results."""
    show_a_bad_row(client, rows)
    with rows.open("rb") as stream:
        file = client.files.create(file=stream, purpose="fine-tune")
    client.files.wait_for_processing(file.id)
    print(f"files.create: {file.id}, {file.bytes:,} bytes")
    # Type checkers only accept OpenAI's methods; the client sends any value.
    method: Any = {
        "type": "trd",
        "trd": {
            "teacher": "tiny-teacher",
            "task": "exact",
            # Models this small answer before vLLM has started; leave the engine out for yours.
            "sampling": {"engine": "transformers", "max_prompt_tokens": 64, "max_new_tokens": 128},
            "refine": {"max_prompt_tokens": 192, "max_new_tokens": 128},
            "lora": None,
            "optim": {"learning_rate": 1e-3},
            "evaluation": {"holdout": 0.1, "k": 2},
            "checkpoints": {"every_steps": 3},
        },
    }
    job = client.fine_tuning.jobs.create(
        model="tiny-student",
        training_file=file.id,
        method=method,
        hyperparameters={"batch_size": 32, "n_epochs": "auto"},
        suffix="example",
        metadata={"example": "openai_client"},
    )
    print(f"fine_tuning.jobs.create: {job.id}")
    show_results(client, wait(client, job))


def show_a_bad_row(client: OpenAI, rows: Path) -> None:
    """Show that a file with a row without an answer is refused, with the row's number."""
    broken = rows.read_text(encoding="utf-8") + '{"problem": "1+1"}\n'
    try:
        client.files.create(file=("broken.jsonl", broken.encode()), purpose="fine-tune")
    except BadRequestError as error:
        print(f"files.create refuses a bad row: {error.code}: {error.message}")
    else:
        raise RuntimeError("a file with a bad row was accepted")


def wait(client: OpenAI, job: FineTuningJob, *, poll_seconds: float = 1.0) -> FineTuningJob:
    """Show the job's progress until it is over; returns it. Raises RuntimeError unless it succeeded."""
    shown = ""
    while job.status not in OVER:
        time.sleep(poll_seconds)
        job = client.fine_tuning.jobs.retrieve(job.id)
        native = native_of(job)
        line = f"{job.status} {native['phase'] or ''} step {native['step']}/{native['num_steps'] or '?'}"
        if line != shown:
            print(f"  {line}", flush=True)
            shown = line
    if job.status != "succeeded":
        raise RuntimeError(f"{job.id} {job.status}: {job.error}")
    return job


def show_results(client: OpenAI, job: FineTuningJob) -> None:
    """Print scores, checkpoints and the trained model's files."""
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=50))
    for event in reversed(events):  # the newest comes first
        if event.type == "metrics":
            print(f"  {event.message}")
    for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id):
        loss = checkpoint.metrics.train_loss
        print(f"checkpoint of step {checkpoint.step_number}: loss {loss:.3f}, {checkpoint.fine_tuned_model_checkpoint}")
    assert job.fine_tuned_model is not None, "a job that succeeded names its model"
    model = client.models.retrieve(job.fine_tuned_model)
    print(f"{model.id}, trained on {job.trained_tokens:,} tokens; its files:")
    for file in native_of(model)["files"]:
        print(f"  {file['num_bytes']:>10,} bytes  {file['url']}")


def native_of(answer: Any) -> dict[str, Any]:
    """Return this service's additional fields, which the client keeps as extra fields."""
    native: dict[str, Any] = answer.model_extra["native"]
    return native


if __name__ == "__main__":
    main()
