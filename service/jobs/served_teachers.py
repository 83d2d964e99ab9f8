"""Fits the loss to a served teacher: to what its endpoint can return. The job gets a notice of each change."""

from __future__ import annotations

from typing import Any

from contract.job_spec import JobSpec, Mode
from contract.server_groups import TeacherEndpoint
from contract.views import NoticeView
from service.bodies import validated
from service.errors import refusal


def fit_loss(spec: JobSpec, name: str, endpoint: TeacherEndpoint) -> tuple[JobSpec, list[NoticeView]]:
    """Return the spec with a loss that endpoint `name` supports, and a notice if the spec gives another.

    Raises `InvalidRequestError` if the user requests something that the endpoint cannot return.
    """
    if spec.resolved_loss.divergence == "cross_entropy":
        return spec, []
    loss, why = _on_scores(spec, name, endpoint) if endpoint.serves_logprobs else _on_text(spec, name, endpoint)
    fitted = _with_loss(spec, loss)
    if loss == spec.resolved_loss.model_dump(mode="json"):
        return fitted, []
    remedy = "set the fields of loss to these values if they are what you want, or name a teacher of GET /models"
    return fitted, [NoticeView(code="loss_fitted", message=why, remedy=remedy)]


def _with_loss(spec: JobSpec, loss: dict[str, Any]) -> JobSpec:
    """Validate again: other fields that the user set may not fit the chosen loss. Unset fields stay unset."""
    given = spec.model_dump(mode="json", exclude_unset=True)
    return validated(JobSpec, {**given, "loss": loss})


def _on_text(spec: JobSpec, name: str, endpoint: TeacherEndpoint) -> tuple[dict[str, Any], str]:
    """Fit the loss to an endpoint that returns text.

    Its answers may carry log-probabilities. The run finds out, and uses the cross-entropy if they do not, so the loss
    must be one that the cross-entropy can replace.
    """
    why = f"teacher endpoint {name} returns no log-probabilities"
    if spec.mode is not Mode.TRD:
        remedy = "use mode trd, in which the teacher refines by text, or a teacher of GET /models"
        raise refusal("teacher.endpoint", name, f"{why}, and mode {spec.mode} needs them to score the rollout", remedy)
    loss = spec.resolved_loss
    asks_for_full = "support" in spec.loss.model_fields_set and spec.loss.support == "full"
    may_score = loss.teacher_context == "refine" and not asks_for_full
    legal = {"divergence": ("forward_kl",), "support": ("full", "top_k"), "reverse_after": (None,)} if may_score else {}
    for field in ("divergence", "support", "reverse_after"):
        given = getattr(spec.loss, field)
        if field in spec.loss.model_fields_set and given not in legal.get(field, (None, "full")):
            more = " for any text but its answers" if may_score else ""
            raise refusal(f"loss.{field}", given, why + more, "leave it out: the loss is then the cross-entropy")
    on_text = {**loss.model_dump(mode="json"), "divergence": "cross_entropy", "support": "full"}
    _with_loss(spec, on_text)
    if not may_score:
        return on_text, f"loss.divergence = cross_entropy, on the refined trajectory: {why}"
    fitted = {**on_text, "divergence": "forward_kl", "support": "top_k", "teacher_top_k": _top_k(spec, name, endpoint)}
    return fitted, (
        f"loss.support = top_k with loss.teacher_top_k = {fitted['teacher_top_k']} if the answers of teacher "
        f"endpoint {name} carry log-probabilities, else loss.divergence = cross_entropy on the refined trajectory; "
        "the run finds out and reports which"
    )


def _top_k(spec: JobSpec, name: str, endpoint: TeacherEndpoint) -> int:
    """Return the tokens per position; raise if the user requests more than the endpoint returns."""
    asked, most = spec.resolved_loss.teacher_top_k, endpoint.max_logprobs
    if "teacher_top_k" in spec.loss.model_fields_set and asked > most:
        why = f"teacher endpoint {name} scores at most {most} tokens per position, not the whole vocabulary"
        raise refusal("loss.teacher_top_k", asked, why, f"set it to at most {most}, or leave it out")
    return min(asked, most)


def _on_scores(spec: JobSpec, name: str, endpoint: TeacherEndpoint) -> tuple[dict[str, Any], str]:
    loss, most = spec.resolved_loss, endpoint.max_logprobs
    why = f"teacher endpoint {name} scores at most {most} tokens per position, not the whole vocabulary"
    if loss.divergence == "jsd":
        raise refusal("loss.divergence", "jsd", f"{why}, which JSD needs", "use forward_kl or reverse_kl")
    if "support" in spec.loss.model_fields_set and loss.support != "top_k":
        raise refusal("loss.support", loss.support, why, "set it to top_k, or leave it out")
    top_k = _top_k(spec, name, endpoint)
    fitted = {**loss.model_dump(mode="json"), "support": "top_k", "teacher_top_k": top_k}
    return fitted, f"loss.support = top_k with loss.teacher_top_k = {top_k}: {why}"
