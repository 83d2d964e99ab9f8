"""From the client's words to a job spec, and refusals in the client's words."""

from __future__ import annotations

from typing import Any

import pytest
from openai import BadRequestError, OpenAI, RateLimitError

from tests.service.conftest import MakeClient
from tests.service.openai_compat.conftest import Service, serving
from tests.service.openai_compat.sdk_calls import create_job, native_of, upload_file

TEACHER = {"teacher": "small-teacher"}


def test_a_job_is_made_with_every_default_resolved(openai: OpenAI) -> None:
    file_id = upload_file(openai)
    job = create_job(openai, training_file=file_id)
    assert job.id.startswith("job_")
    assert (job.object, job.status, job.model, job.training_file) == ("fine_tuning.job", "queued", "small", file_id)
    assert (job.organization_id, job.seed, job.result_files, job.metadata) == ("admin", 0, [], {})
    assert (job.fine_tuned_model, job.finished_at, job.trained_tokens, job.error) == (None, None, None, None)
    hyperparameters = job.hyperparameters
    assert (hyperparameters.batch_size, hyperparameters.learning_rate_multiplier) == (128, 1.0)
    assert hyperparameters.n_epochs == 1
    native = native_of(job)
    assert (native["status"], native["mode"], native["queue_position"]) == ("queued", "trd", 1)
    assert native["spec"]["teacher"] == "small-teacher"
    assert native["spec"]["preset"] == "trd"
    assert openai.fine_tuning.jobs.retrieve(job.id) == job


OURS: Any = [
    {"type": "mlflow", "mlflow": {"project": "q"}},
    {"type": "hub", "repo": "ann/small", "api_key_env": "ANNS_TOKEN"},
]
"""Integrations of types that the client does not know, inside an object as its own are, and beside the type."""


def test_every_argument_finds_its_field(service: Service) -> None:
    openai = service.openai()
    evaluated = upload_file(openai)
    job = create_job(
        openai,
        method={
            "type": "opd",
            "opd": {
                **TEACHER,
                "loss": {"divergence": "jsd", "beta": 0.3},
                "sampling": {"temperature": 0.9},
                "lora": None,
                "optim": {"max_steps": 7},
                "evaluation": {"k": 2},
                "task": "exact",
            },
        },
        hyperparameters={"batch_size": 8, "learning_rate_multiplier": 200, "n_epochs": 2},
        validation_file=evaluated,
        seed=5,
        suffix="my run",
        metadata={"who": "me"},
        integrations=[{"type": "wandb", "wandb": {"project": "p", "name": "n", "tags": ["t"]}}, *OURS],
        extra_body={"tags": ["a"], "priority": 3},
    )
    spec = native_of(job)["spec"]
    assert (spec["mode"], spec["student"], spec["teacher"]) == ("opd", "small", "small-teacher")
    assert (spec["loss"]["divergence"], spec["loss"]["beta"]) == ("jsd", 0.3)
    assert (spec["sampling"]["temperature"], spec["lora"], spec["task"]) == (0.9, None, "exact")
    optim = spec["optim"]
    assert (optim["batch_size"], optim["epochs"], optim["max_steps"]) == (8, 2, 7)
    assert optim["learning_rate"] == pytest.approx(1e-3)
    assert (spec["evaluation"]["dataset"], spec["evaluation"]["k"]) == (evaluated, 2)
    assert (spec["seed"], spec["name"], spec["metadata"]) == (5, "my run", {"who": "me"})
    assert (spec["tags"], spec["priority"]) == (["a"], 3)
    wandb = {"type": "wandb", "project": "p", "name": "n", "tags": ["t"], "entity": None, "api_key_env": None}
    mlflow = {"type": "mlflow", "project": "q", "name": None, "api_key_env": None}
    hub = {"type": "hub", "repo": "ann/small", "private": True, "weights": "model", "api_key_env": "ANNS_TOKEN"}
    assert spec["integrations"] == [wandb, mlflow, hub]
    (shown,) = job.integrations or ()
    assert (shown.type, shown.wandb.project, shown.wandb.name, shown.wandb.tags) == ("wandb", "p", "n", ["t"])
    assert (job.validation_file, job.seed, job.metadata) == (evaluated, 5, {"who": "me"})
    assert job.hyperparameters.learning_rate_multiplier == pytest.approx(200)
    clone = service.native.post(f"/jobs/{job.id}/clone", json={"optim": {"max_steps": 9}}).json()
    assert clone["spec"] == {**spec, "optim": {**optim, "max_steps": 9}}


def test_auto_and_null_take_the_defaults_and_the_methods_hyperparameters_count(openai: OpenAI) -> None:
    auto: Any = {"batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": "auto"}
    job = create_job(openai, hyperparameters=auto, seed=None, suffix=None, metadata=None, validation_file=None)
    assert job.hyperparameters.model_dump() == {"batch_size": 128, "learning_rate_multiplier": 1.0, "n_epochs": 1}
    inside: Any = {"type": "trd", "trd": {**TEACHER, "hyperparameters": {**auto, "batch_size": 4}}}
    assert create_job(openai, method=inside).hyperparameters.batch_size == 4


def test_a_student_may_teach_itself(openai: OpenAI) -> None:
    for method in ({"type": "opsd"}, {"type": "opsd", "opsd": {}}, {"type": "trd"}):
        job = create_job(openai, method=method)
        assert native_of(job)["mode"] == method["type"]
        assert native_of(job)["spec"]["teacher"] is None


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"method": {"type": "supervised", "supervised": {}}}, "method.type", "method.type = supervised: this service"),
        ({"method": {"type": "dpo"}}, "method.type", "method.type = dpo: this service distils; choose one of opd"),
        ({"method": None}, "method", "OpenAI's default is supervised"),
        ({"method": {"type": "trd", "opd": {}}}, "method.opd", "put its fields in trd"),
        ({"method": {"type": "trd", "trd": {}, "more": 1}}, "method.more", "method.more: unknown field"),
        ({"method": {"type": "opd"}}, "method.opd.teacher", "method.opd.teacher = null: mode opd distils from another"),
        (
            {"method": {"type": "trd", "trd": {**TEACHER, "los": {}}}},
            "method.trd.los",
            "method.trd.los: unknown field; did you mean loss?",
        ),
        (
            {"method": {"type": "trd", "trd": {**TEACHER, "loss": {"beta": 2}}}},
            "method.trd.loss.beta",
            "method.trd.loss.beta = 2: input should be less than or equal to 1",
        ),
        (
            {"method": {"type": "trd", "trd": {**TEACHER, "optim": 3}}, "hyperparameters": {"n_epochs": 2}},
            "method.trd.optim",
            "method.trd.optim = 3: input should be an object",
        ),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "hyperparameters.n_epochs = 0: input"),
        ({"hyperparameters": {"learning_rate_multiplier": -1}}, "hyperparameters.learning_rate_multiplier", "= -1: "),
        (
            {"method": {"type": "trd", "trd": {**TEACHER, "hyperparameters": {"beta": 1}}}},
            "method.trd.hyperparameters.beta",
            "unknown field",
        ),
        ({"model": "gpt-4o-mini"}, "model", "model = gpt-4o-mini: there is no such model here; there are: "),
        ({"model": "foreign"}, "method.trd.teacher", "its tokenizer is not that of student foreign"),
        ({"training_file": "file-abc"}, "training_file", 'training_file = "file-abc": is no dataset\'s id'),
        ({"training_file": "ds_none"}, "training_file", "training_file = ds_none: there is no such dataset"),
        ({"validation_file": "ds_none"}, "validation_file", "validation_file = ds_none: there is no such dataset"),
        ({"seed": -1}, "seed", "seed = -1: input should be greater than or equal to 0"),
        ({"suffix": "x" * 65}, "suffix", "at most 64 characters"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": ""}}]}, "integrations.0.project", "at least 1"),
        ({"integrations": [{"type": "hub", "hub": {"repo": "x"}}]}, "integrations.0.repo", "pattern"),
        ({"integrations": [{"type": "comet"}]}, "integrations.0", "does not match any of the expected tags"),
        ({"extra_body": {"devices": 8}}, "devices", "devices = 8: jobs here may use at most 1"),
        ({"extra_body": {"n_epochs": 2}}, "n_epochs", "n_epochs: unknown field"),
        ({"extra_body": {"optim.epochs": 2}}, "optim.epochs", "optim.epochs: unknown field"),
        ({"method": "trd"}, "method", 'method = "trd": input should be an object'),
    ],
)
def test_a_refusal_names_what_the_client_sent(
    shared_service: Service, changes: dict[str, Any], param: str, words: str
) -> None:
    openai = shared_service.openai()
    with pytest.raises(BadRequestError) as refused:
        create_job(openai, **changes)
    assert refused.value.param == param
    assert words in refused.value.message
    assert refused.value.type == "invalid_request_error"
    assert openai.fine_tuning.jobs.list().data == []


@pytest.mark.parametrize(
    ("changes", "param", "other"),
    [
        ({"method": {"type": "trd", "trd": {**TEACHER, "student": "large"}}}, "model", "method.trd.student"),
        ({"extra_body": {"dataset": "ds_x"}}, "training_file", "dataset"),
        ({"extra_body": {"mode": "opd"}}, "method.type", "mode"),
        ({"extra_body": {"teacher": "small"}}, "teacher", "method.trd.teacher"),
        ({"extra_body": {"name": "a"}, "suffix": "b"}, "suffix", "name"),
        (
            {
                "method": {"type": "trd", "trd": {**TEACHER, "optim": {"epochs": 2}}},
                "hyperparameters": {"n_epochs": 3},
            },
            "hyperparameters.n_epochs",
            "method.trd.optim.epochs",
        ),
        (
            {
                "method": {"type": "trd", "trd": {**TEACHER, "hyperparameters": {"n_epochs": 2}}},
                "hyperparameters": {"n_epochs": 2},
            },
            "method.trd.hyperparameters.n_epochs",
            "hyperparameters.n_epochs",
        ),
    ],
)
def test_one_thing_is_said_in_one_place(
    shared_service: Service, changes: dict[str, Any], param: str, other: str
) -> None:
    with pytest.raises(BadRequestError, match="sets the same field; send only one of them") as refused:
        create_job(shared_service.openai(), **changes)
    assert refused.value.param == param
    assert f"{param}: {other} sets the same field" in refused.value.message


def test_all_faults_are_listed_in_the_clients_words(shared_service: Service) -> None:
    faulty: Any = {"type": "trd", "trd": {**TEACHER, "loss": {"beta": 2}, "rounds": 0}}
    with pytest.raises(BadRequestError) as refused:
        create_job(shared_service.openai(), method=faulty, hyperparameters={"batch_size": 0})
    assert isinstance(refused.value.body, dict)
    assert {error["param"] for error in refused.value.body["errors"]} == {
        "method.trd.loss.beta",
        "method.trd.rounds",
        "hyperparameters.batch_size",
    }


def test_the_quota_of_jobs_holds(make_client: MakeClient, sqlite_url: str) -> None:
    with serving(make_client(sqlite_url, max_queued_jobs=1)) as service:
        openai = service.openai(max_retries=2)
        create_job(openai)
        with pytest.raises(RateLimitError) as refused:
            create_job(openai)
        assert refused.value.code == "quota_exceeded"
        assert len(openai.fine_tuning.jobs.list().data) == 1


def test_a_lowered_budget_is_an_event(openai: OpenAI) -> None:
    job = create_job(openai)
    events = list(openai.fine_tuning.jobs.list_events(job.id, limit=2))
    assert events[-1].message == "The job is queued."
    assert any("sampling.max_new_tokens = 448" in event.message for event in events)
