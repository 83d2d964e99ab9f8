"""Try: chat with a checkpoint, beside its base model and its teacher. The script streams the API's answers."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from contract.views.chats import ChatModel
from service.auth import Reader
from service.context import Context
from service.dashboard.job import find_job, job_values
from service.dashboard.pages import page

router = APIRouter(prefix="/ui/jobs/{job_id}/checkpoints", include_in_schema=False)


@router.get("/{step}/try")
def show(request: Request, context: Context, caller: Reader, job_id: str, step: str) -> Response:
    """Show the page with one question and each model's answer."""
    job = find_job(context, caller, job_id)
    checkpoint, _ = context.checkpoints.with_files(caller.owner, job_id, step)
    teacher = job.spec.get("teacher")
    models = {ChatModel.CHECKPOINT: f"step {checkpoint.step}", ChatModel.BASE: job.spec["student"]}
    if teacher is not None:
        models[ChatModel.TEACHER] = teacher["endpoint"] if isinstance(teacher, dict) else teacher
    return page(request, "try.html", **job_values(job, "checkpoints"), step=checkpoint.step, models=models)
