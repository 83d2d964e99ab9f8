from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from contract.job_spec import JobSpec, Mode
from contract.loss_spec import Preset
from contract.spec_problems import MAX_PROBLEMS, MAX_SUGGESTIONS, field_problems
from contract.token_weights_spec import TokenWeightsSpec

BASE: dict[str, Any] = {"mode": "trd", "student": "s", "teacher": "t", "dataset": "ds_1"}


def problems(**changes: Any) -> dict[str, str]:
    """Return the messages, by field, of a spec that must be refused."""
    document = {key: value for key, value in {**BASE, **changes}.items() if value is not ...}
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(document)
    return {
        problem.param: problem.message for problem in field_problems(caught.value.errors(include_url=False), JobSpec)
    }


def spec(**changes: Any) -> JobSpec:
    return JobSpec.model_validate({**BASE, **changes})


@pytest.mark.parametrize("mode", ["opd", "opsd", "trd"])
def test_resolving_makes_every_default_explicit_once(mode: str) -> None:
    given = spec(mode=mode, teacher=None if mode == "opsd" else "t")
    resolved = given.resolved()
    assert resolved == resolved.resolved()
    assert resolved.preset is not None
    assert resolved.loss.teacher_context is not None
    assert resolved.refine.max_prompt_tokens is not None
    assert resolved.queue == "trd-default"


@pytest.mark.parametrize(
    "changes",
    [
        *({"mode": mode, "teacher": None if mode == "opsd" else "t"} for mode in Mode),
        *({"mode": "opd", "preset": preset} for preset in Preset if preset is not Preset.TRD),
        {"preset": "trd", "loss": {"teacher_context": "vanilla", "reverse_after": 0.5}},
        {"teacher": {"endpoint": "e"}, "loss": {"divergence": "cross_entropy"}},
        {"teacher": None, "lora": None, "teacher_update": {"kind": "ema"}, "teacher_precision": "fp32"},
        {"devices": 4, "sampling": {"placement": "separate", "tensor_parallel_size": 2}},
        {"queue": "mine", "tags": ["a"], "metadata": {"b": "c"}, "evaluation": {"dataset": "ds_2"}},
    ],
)
def test_what_is_resolved_is_a_legal_spec_and_reads_back_as_the_same(changes: dict[str, Any]) -> None:
    resolved = spec(**changes).resolved()
    assert JobSpec.model_validate(resolved.model_dump()) == resolved
    assert JobSpec.model_validate_json(resolved.model_dump_json()) == resolved
    assert JobSpec.model_validate(resolved.model_dump()).resolved() == resolved


def test_devices_that_only_sample_are_counted_and_choose_the_queue() -> None:
    resolved = spec(devices=2, sampling={"placement": "separate", "tensor_parallel_size": 3}).resolved()
    assert (resolved.num_devices, resolved.queue) == (8, "trd-default-8")
    assert spec(devices=2).num_devices == 2


@pytest.mark.parametrize(
    ("sampling", "field", "remedy"),
    [
        ({"tensor_parallel_size": 2}, "sampling.tensor_parallel_size", 'set sampling.placement to "separate"'),
        ({"placement": "separate", "engine": "transformers"}, "sampling.placement", 'set sampling.engine to "vllm"'),
        ({"gpu_memory_utilization": 1.0}, "sampling.gpu_memory_utilization", "0.98"),
    ],
)
def test_samplers_devices_that_cannot_be_are_refused(sampling: dict[str, Any], field: str, remedy: str) -> None:
    assert remedy in problems(sampling=sampling)[field]


def test_defaults_are_the_papers() -> None:
    resolved = spec().resolved()
    assert (resolved.sampling.temperature, resolved.sampling.top_p, resolved.sampling.top_k) == (0.6, 0.95, 20)
    assert (resolved.sampling.max_prompt_tokens, resolved.sampling.max_new_tokens) == (2048, 16384)
    assert resolved.refine.max_prompt_tokens == 18432
    assert spec(teacher=None).resolved().refine.max_prompt_tokens == 22528
    assert resolved.lora is not None
    assert (resolved.lora.rank, resolved.lora.alpha) == (64, 128)
    assert (resolved.optim.learning_rate, resolved.optim.betas) == (5e-6, (0.9, 0.95))


@pytest.mark.parametrize(
    ("preset", "mode", "divergence", "support", "clip", "context"),
    [
        ("forward_kl", "opd", "forward_kl", "full", 0.0, "vanilla"),
        ("forward_kl_clip", "opd", "forward_kl", "full", 0.1, "vanilla"),
        ("reverse_kl", "opsd", "reverse_kl", "full", 0.0, "vanilla"),
        ("reverse_kl_topk", "opsd", "reverse_kl", "top_k", 0.0, "vanilla"),
        ("trd", "trd", "forward_kl", "full", 0.0, "refine"),
    ],
)
def test_a_preset_fills_the_loss(
    preset: str, mode: str, divergence: str, support: str, clip: float, context: str
) -> None:
    loss = spec(preset=preset, mode=mode, teacher=None if mode == "opsd" else "t").resolved().loss
    assert (loss.divergence, loss.support, loss.token_clip, loss.teacher_context) == (
        divergence,
        support,
        clip,
        context,
    )


def test_a_field_given_beside_a_preset_wins() -> None:
    loss = spec(mode="opd", preset="forward_kl_clip", loss={"token_clip": 0.05}).resolved().loss
    assert (loss.token_clip, loss.divergence) == (0.05, "forward_kl")
    assert spec(loss={"teacher_context": "vanilla"}).resolved().loss.teacher_context == "vanilla"


def test_the_preset_goes_by_the_mode() -> None:
    assert spec().resolved_preset is Preset.TRD
    assert spec(mode="opd").resolved_preset is Preset.FORWARD_KL
    assert spec(teacher=None).is_privileged
    assert spec().refines
    assert not spec(mode=Mode.OPD).refines


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"mode": "opd", "teacher": None}, "teacher", ["teacher = null", "mode opd", "use mode opsd"]),
        ({"mode": "opsd"}, "teacher", ["teacher = t", "own step-0 weights", "leave teacher out"]),
        ({"mode": "opd", "preset": "trd"}, "preset", ["preset = trd", 'set mode to "trd"']),
        ({"preset": "reverse_kl"}, "preset", ["preset = reverse_kl", "it trains on the rollout"]),
        (
            {"mode": "opd", "loss": {"teacher_context": "refine"}},
            "loss.teacher_context",
            ["the rollout that it scores", "vanilla"],
        ),
        ({"loss": {"divergence": "jsd", "support": "top_k"}}, "loss.support", ["full vocabulary only"]),
        ({"loss": {"support": "sampled", "token_clip": 0.1}}, "loss.token_clip", ["Monte Carlo", "token_clip to 0"]),
        (
            {"mode": "opd", "preset": "forward_kl_clip", "loss": {"support": "sampled"}},
            "loss.token_clip",
            ["0.1", "Monte Carlo"],
        ),
        ({"mode": "opd", "refine": {"keep": "fail_to_pass"}}, "refine.keep", ["refines nothing", 'mode to "trd"']),
        (
            {"teacher_update": {"kind": "ema"}},
            "teacher_update.kind",
            ["= ema", "without a teacher model", "leave teacher out"],
        ),
        (
            {"teacher": None, "lora": None, "teacher_update": {"kind": "ema"}, "teacher_precision": "bf16"},
            "teacher_precision",
            ["too coarse", "use fp32"],
        ),
        ({"teacher": None, "teacher_precision": "bf16"}, "teacher_precision", ["no copy of it exists", "lora to null"]),
        ({"loss": {"divergence": "cross_entropy"}}, "loss.divergence", ["served teacher", 'use "forward_kl"']),
        (
            {"teacher": {"endpoint": "e"}, "loss": {"divergence": "cross_entropy", "temperature": 2}},
            "loss.temperature",
            ["leave it out"],
        ),
        (
            {
                "teacher": {"endpoint": "e"},
                "loss": {"divergence": "cross_entropy", "token_weights": {"drift_gamma": 1.0}},
            },
            "loss.token_weights.drift_gamma",
            ["log-probabilities"],
        ),
        ({"teacher": {"endpoint": "e"}, "teacher_precision": "bf16"}, "teacher_precision", ["the server chooses"]),
        ({"prompts": {"refine": "{problem}"}}, "prompts.refine", ["does not contain {attempt}", "write {attempt}"]),
        ({"optim": {"learning_rate": 0}}, "optim.learning_rate", ["= 0", "greater than 0"]),
        ({"samplign": {}}, "samplign", ["unknown field", "did you mean sampling?"]),
        ({"loss": {"divergance": "jsd"}}, "loss.divergance", ["did you mean divergence?"]),
        ({"student": ...}, "student", ["required"]),
        ({"dataset": "my-rows"}, "dataset", ["my-rows", "begins with ds_", "upload"]),
        ({"dataset": {"generator": "gcd", "size": 0}}, "dataset.size", ["= 0", "greater than or equal to 1"]),
        ({"dataset": {"hub": "no-owner"}}, "dataset.hub", ["no-owner"]),
        ({"teacher": {"endpoint": ""}}, "teacher.endpoint", ["at least 1 character"]),
        ({"tags": ["x" * 65]}, "tags.0", ["at most 64 characters"]),
        ({"metadata": {"a": 1}}, "metadata.a", ["string"]),
        ({"optim": {"learning_rate": float("nan")}}, "optim.learning_rate", ["finite"]),
    ],
)
def test_a_refusal_names_field_value_and_remedy(changes: dict[str, Any], field: str, words: list[str]) -> None:
    found = problems(**changes)
    assert field in found, found
    for word in words:
        assert word in found[field]


def test_every_wrong_field_is_named() -> None:
    found = problems(rounds=0, devices=0, colour="red")
    assert set(found) == {"rounds", "devices", "colour"}


def test_every_weight_on_the_token_loss_names_its_paper() -> None:
    fields = TokenWeightsSpec.model_fields
    assert [n for n, field in fields.items() if not re.search(r"arXiv \d{4}\.\d{5}|TIP", field.description or "")] == []


def test_weights_on_the_token_loss_are_checked() -> None:
    def weights(**changes: Any) -> dict[str, Any]:
        return {"loss": {"token_weights": changes}}

    assert (
        "nothing is left"
        in problems(**weights(prefix_tokens=5, skip_first_tokens=5))["loss.token_weights.skip_first_tokens"]
    )
    assert "which is not set" in problems(**weights(entropy_score="soft_or"))["loss.token_weights.entropy_score"]
    assert "samples_per_prompt" in problems(**weights(pass_rate=True))["loss.token_weights.pass_rate"]
    assert "loss.token_weights.entropy_share" in problems(**weights(entropy_share=1.0))
    assert "loss.token_weights.unknown" in problems(**weights(unknown=1))
    kept = spec(preset="trd", samples_per_prompt=4, **weights(pass_rate=True, drift_gamma=0.5)).resolved().loss
    assert (kept.teacher_context, kept.token_weights.pass_rate, kept.token_weights.drift_gamma) == ("refine", True, 0.5)


@pytest.mark.parametrize("changes", [{"preset": "reverse_kl"}, {"loss": {"divergence": "jsd"}}])
def test_a_schedule_starts_from_forward_kl(changes: dict[str, Any]) -> None:
    loss = {**changes.get("loss", {}), "reverse_after": 0.5}
    assert "starts with forward KL" in problems(**{"mode": "opd", **changes, "loss": loss})["loss.reverse_after"]
    assert spec(mode="opd", loss={"reverse_after": 0.5}).resolved().loss.reverse_after == 0.5


def test_the_first_of_many_wrong_fields_are_reported() -> None:
    found = problems(**{f"samplin{i:05}": 1 for i in range(30_000)})
    assert list(found) == [f"samplin{i:05}" for i in range(MAX_PROBLEMS)]
    assert found["samplin00000"].endswith("did you mean sampling?")
    assert sum("did you mean" in message for message in found.values()) == MAX_SUGGESTIONS
