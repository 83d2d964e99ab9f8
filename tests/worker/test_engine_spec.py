"""Every resolved job spec becomes a spec that the engine takes."""

from __future__ import annotations

from typing import Any

import pytest

from contract.job_spec import JobSpec
from contract.model_catalog import CatalogEntry
from contract.server_groups import SamplerPool, TeacherEndpoint
from trd_engine.config import RunConfig, SamplerPoolConfig, ServedTeacherConfig, parse_config
from worker.engine_spec import dataset_ids, engine_document
from worker.failures import JobFailedError

CATALOG = {
    "small": CatalogEntry("small", "/models/small"),
    "big": CatalogEntry("big", "owner/big"),
    "pinned": CatalogEntry("pinned", "owner/pinned", "v1.2"),
}
ENDPOINTS = {
    "judge": TeacherEndpoint(
        url="https://judge.test/v1",
        model="owner/judge",
        api="vllm",
        api_key_env="JUDGE_API_KEY",
        network="private",
        timeout_seconds=30,
    ),
    "plain": TeacherEndpoint(url="https://plain.test/v1", model="gpt"),
}
POOLS = {
    "fleet": SamplerPool(
        url="https://one.test/v1", replicas=("https://two.test/v1",), model="small", api_key_env="POOL_API_KEY"
    ),
    "judges": SamplerPool(url="http://127.0.0.1:8001/v1", model="big", network="loopback"),
}
DATASETS = {
    "ds_train": {"path": "/scratch/ds_train", "columns": {"problem": "frage"}},
    "ds_test": {"path": "/scratch/ds_test", "columns": {}},
    "/root/rows.parquet": {"path": "/data/rows.parquet"},
    "/root/sums": {"path": "/data/sums"},
}


def config_of(**spec: Any) -> RunConfig:
    resolved = JobSpec.model_validate({"student": "small", "dataset": "ds_train", **spec}).resolved()
    return parse_config(engine_document(resolved, CATALOG, DATASETS, ENDPOINTS, POOLS))


def test_names_become_places() -> None:
    config = config_of(mode="opd", teacher="big")
    assert (config.student, config.teacher) == ("/models/small", "owner/big")
    assert (config.student_name, config.teacher_name) == ("small", "big")
    assert (config.dataset.path, config.dataset.columns) == ("/scratch/ds_train", {"problem": "frage"})
    assert config.evaluation.dataset is None


def test_a_pinned_model_stays_pinned() -> None:
    assert config_of(mode="opd", teacher="pinned").teacher == "owner/pinned@v1.2"


@pytest.mark.parametrize("preset", ["forward_kl", "forward_kl_clip", "reverse_kl", "reverse_kl_topk"])
def test_each_preset_reaches_the_engine(preset: str) -> None:
    spec = {"mode": "opsd", "preset": preset}
    resolved = JobSpec.model_validate({"student": "small", "dataset": "ds_train", **spec}).resolved()
    assert config_of(**spec).loss.model_dump() == resolved.loss.model_dump()


def test_trd_scores_in_the_refine_context() -> None:
    assert config_of(mode="trd", teacher="big").loss.teacher_context == "refine"
    assert config_of(mode="trd").refine.max_prompt_tokens == 22_528


def test_every_setting_of_the_user_arrives() -> None:
    spec = {
        "mode": "opsd",
        "task": "exact",
        "sampling": {
            "engine": "transformers",
            "temperature": 0.9,
            "top_k": -1,
            "max_new_tokens": 64,
            "thinking": False,
            "gpu_memory_utilization": 0.4,
        },
        "prompts": {"solve": "Solve {problem}"},
        "loss": {
            "reverse_after": 0.5,
            "token_weights": {
                "skip_special_tokens": True,
                "skip_first_tokens": 1,
                "prefix_tokens": 9,
                "entropy_share": 0.5,
                "entropy_score": "soft_or",
                "drift_gamma": 0.5,
                "pass_rate": True,
            },
        },
        "lora": None,
        "teacher_update": {"kind": "periodic", "every_steps": 3},
        "teacher_precision": "bf16",
        "optim": {"learning_rate": 1e-3, "batch_size": 4, "max_steps": 7, "micro_batch_tokens": 512},
        "precision": "bf16",
        "rounds": 2,
        "samples_per_prompt": 3,
        "evaluation": {"holdout": 0.1, "k": 2, "every_steps": 5},
        "checkpoints": {"every_steps": 9, "keep": 1, "merged": False},
        "seed": 11,
    }
    document = config_of(**spec).model_dump()
    for name, value in spec.items():
        if isinstance(value, dict):
            assert {key: document[name][key] for key in value} == value, name
        else:
            assert document[name] == value, name


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ({"hub": "owner/data", "split": "test"}, {"hub": "owner/data", "split": "test"}),
        ({"hub": "owner/data", "config": "main"}, {"hub": "owner/data", "split": "train", "config": "main"}),
        ({"hub": "owner/data", "revision": "abc"}, {"hub": "owner/data", "split": "train", "revision": "abc"}),
        ({"path": "/root/rows.parquet"}, {"path": "/data/rows.parquet"}),
        ({"path": "/root/sums", "config": "main"}, {"path": "/data/sums", "config": "main"}),
        ({"generator": "gsm_symbolic", "size": 50, "seed": 3}, {"generator": "gsm_symbolic", "size": 50, "seed": 3}),
    ],
)
def test_data_from_elsewhere_is_named_as_the_engine_names_it(
    reference: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = config_of(mode="opsd", dataset=reference, evaluation={"dataset": reference})
    for source in (config.dataset, config.evaluation.dataset):
        assert source is not None
        assert source.model_dump(include=set(expected)) == expected


def test_uploaded_datasets_are_listed_once() -> None:
    spec = {"mode": "opsd", "student": "small", "dataset": "ds_train"}
    assert dataset_ids(JobSpec.model_validate({**spec, "evaluation": {"dataset": "ds_test"}})) == [
        "ds_train",
        "ds_test",
    ]
    assert dataset_ids(JobSpec.model_validate({**spec, "evaluation": {"dataset": "ds_train"}})) == ["ds_train"]
    assert dataset_ids(JobSpec.model_validate({**spec, "dataset": {"path": "/data/x.jsonl"}})) == []


def test_a_served_teacher_brings_its_address_and_the_name_of_its_secret() -> None:
    loss = {"support": "top_k", "teacher_top_k": 20}
    config = config_of(mode="trd", teacher={"endpoint": "judge"}, loss=loss)
    assert config.served_teacher == ServedTeacherConfig(
        endpoint="judge",
        base_url="https://judge.test/v1",
        model="owner/judge",
        api="vllm",
        api_key_env="JUDGE_API_KEY",
        network="private",
        timeout_seconds=30.0,
    )
    assert config.teacher_name is None
    config = config_of(mode="trd", teacher={"endpoint": "plain"}, loss={"divergence": "cross_entropy"})
    assert config.served_teacher is not None
    assert config.served_teacher.api == "openai"


def test_a_pool_brings_its_addresses_and_the_name_of_its_secret() -> None:
    config = config_of(mode="trd", teacher="big", sampling={"pool": "fleet"}, refine={"pool": "judges"})
    assert config.sampling.pool == SamplerPoolConfig(
        name="fleet",
        base_url="https://one.test/v1",
        replicas=("https://two.test/v1",),
        api_key_env="POOL_API_KEY",
    )
    assert config.refine.pool == SamplerPoolConfig(
        name="judges", base_url="http://127.0.0.1:8001/v1", network="loopback"
    )
    with pytest.raises(JobFailedError, match="TRD_SAMPLER_POOLS; it has: fleet, judges"):
        config_of(mode="opsd", sampling={"pool": "other"})


def test_an_endpoint_that_this_worker_does_not_know_is_refused() -> None:
    with pytest.raises(JobFailedError, match="TRD_TEACHER_ENDPOINTS; it has: judge, plain") as caught:
        config_of(mode="opd", teacher={"endpoint": "other"})
    assert caught.value.failure.code == "invalid_spec"


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(JobFailedError, match="it has: big, pinned, small") as caught:
        config_of(mode="opd", teacher="absent")
    assert caught.value.failure.code == "model_not_found"
