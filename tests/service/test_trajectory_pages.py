"""The pages of trajectories and samples, as HTML; `tests/browser` opens them in a browser."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from contract.views.trajectories import AlignmentView
from service.dashboard.trajectories import lines_of
from service.runs.token_views import aligned
from tests.service.records import add_probe_sample, add_trajectory, submit

HOSTILE = "<script>alert(1)</script>\"'><img src=x>{{ 7 * 7 }}"


def html(client: TestClient, path: str, status: int = 200) -> str:
    response = client.get(path, headers={"accept": "text/html"})
    assert response.status_code == status, response.text
    return response.text


@pytest.mark.parametrize("values", [{}, {"verdicts": (True, None)}, {"rollout": "", "refined": ""}])
def test_a_trajectory_with_the_least_that_a_run_records_has_a_page(client: TestClient, values: dict[str, Any]) -> None:
    job_id = submit(client)
    add_trajectory(client, job_id, 0, **values)
    shown = html(client, f"/ui/jobs/{job_id}/trajectories/0:0")
    assert "is not in it" in shown, "its tokens were not recorded"
    assert f"/ui/jobs/{job_id}/trajectories/0:0" in html(client, f"/ui/jobs/{job_id}/trajectories?min_tokens=&text=")
    html(client, f"/ui/jobs/{job_id}/trajectories/0:1", status=404)
    html(client, f"/ui/jobs/{job_id}/trajectories?step=x", status=422)


def test_texts_of_models_and_data_are_escaped(client: TestClient) -> None:
    job_id = submit(client)
    texts = dict.fromkeys(("prompt", "answer", "rollout", "refined", "problem_id"), HOSTILE)
    add_trajectory(client, job_id, 0, **texts, detail={"rollout_verdict": HOSTILE})
    add_probe_sample(client, job_id, 0, prompt=HOSTILE, completion=HOSTILE)
    for path in ("trajectories", "trajectories/0:0", "trajectories?text=<script>", "samples"):
        shown = html(client, f"/ui/jobs/{job_id}/{path}")
        assert "&lt;script&gt;" in shown
        assert "<script>" not in shown
        assert "<img src=x" not in shown


def test_aligned_texts_stand_line_by_line() -> None:
    left, right = ["a\n", "b", "\n", "old one\n", "end"], ["a\n", "b", "\n", "new\n", "and more\n", "end"]
    shown = lines_of(AlignmentView(unit="word", rollout=left, refined=right, stretches=aligned(left, right)))
    assert [["".join(part.text for part in side) for side in (line.rollout, line.refined)] for line in shown] == [
        ["a\n", "a\n"],
        ["b\n", "b\n"],
        ["old one\n", "new\nand more\n"],
        ["end", "end"],
    ]
    long = [f"{i} " for i in range(600)]
    (line,) = lines_of(AlignmentView(unit="word", rollout=long, refined=long, stretches=aligned(long, long)))
    assert [(part.start, part.end) for part in line.rollout] == [(0, 256), (256, 512), (512, 600)]


def test_samples_show_the_nearest_evaluation_beside_the_baseline(client: TestClient) -> None:
    job_id = submit(client)
    assert "No samples yet" in html(client, f"/ui/jobs/{job_id}/samples")
    for step in (0, 10, 20):
        add_probe_sample(client, job_id, step, completion=f"answer at {step}")
    shown = html(client, f"/ui/jobs/{job_id}/samples?step=11")
    assert "answer at 10" in shown
    assert "answer at 0" in shown
    assert "answer at 20" not in shown
    assert "answer at 20" in html(client, f"/ui/jobs/{job_id}/samples")
