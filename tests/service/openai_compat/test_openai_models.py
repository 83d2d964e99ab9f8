from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from openai import NotFoundError, OpenAI

from tests.service.openai_compat.conftest import Service
from tests.service.openai_compat.sdk_calls import create_job, native_of
from tests.service.records import add_checkpoint, database_of, finish_job


def test_the_models_that_a_job_may_name_are_listed(openai: OpenAI, models_dir: Path) -> None:
    models = {model.id: model for model in openai.models.list()}
    assert {"small", "small-teacher", "large", "Org/Hub-Model"} <= set(models)
    small = models["small"]
    assert (small.object, small.owned_by) == ("model", "operator")
    assert small.created == int((models_dir / "small" / "config.json").stat().st_mtime)
    assert native_of(small)["context_tokens"] == 1024
    assert models["Org/Hub-Model"].created == 0
    for name in ("small", "Org/Hub-Model"):
        assert openai.models.retrieve(name) == models[name]


def test_a_trained_model_is_found_by_its_name_with_its_files(service: Service, openai: OpenAI, tmp_path: Path) -> None:
    job = create_job(openai, suffix="a/b")
    for step, content in ((2, b"two"), (4, b"four")):
        add_checkpoint(service.native, tmp_path / "storage", job.id, step, {"model/model.safetensors": content})
    finish_job(database_of(service.native), job.id)
    name = openai.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    assert name == f"ft:small:admin:a-b:{job.id}"
    newest = openai.models.retrieve(name)
    assert (newest.id, newest.owned_by, native_of(newest)["step"]) == (name, "admin", 4)
    for checkpoint in openai.fine_tuning.jobs.checkpoints.list(job.id):
        model = openai.models.retrieve(checkpoint.fine_tuned_model_checkpoint)
        assert native_of(model)["step"] == checkpoint.step_number
        assert weights_of(service.native, model) == {2: b"two", 4: b"four"}[checkpoint.step_number]


def weights_of(native: TestClient, model: object) -> bytes:
    (file,) = native_of(model)["files"]
    return native.get(file["url"]).content


def test_names_of_nothing_are_not_found(service: Service, tmp_path: Path) -> None:
    openai = service.openai()
    job = create_job(openai)
    add_checkpoint(service.native, tmp_path / "storage", job.id, 2, {"model/config.json": b"{}"})
    name = f"ft:small:admin::{job.id}"
    assert native_of(openai.models.retrieve(name))["step"] == 2, "also before the job is over"
    wrong = (
        "gpt-4o",
        f"ft:large:admin::{job.id}",
        f"ft:small:admin:other:{job.id}",
        f"{name}:ckpt-step-3",
        f"{name}:ckpt-step-02",
        f"{name}x",
        f"ft:small:admin::job_{'0' * 26}",
        "ft:small:admin::job_none",
    )
    for name in wrong:
        with pytest.raises(NotFoundError) as refused:
            openai.models.retrieve(name)
        assert refused.value.code == "model_not_found"
