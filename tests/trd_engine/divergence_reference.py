"""The divergences again, from the formulas, in NumPy's float64, one position and one token at a time.

Shares nothing with `trd_engine`: no logits-level shortcuts, no vector operations, no autograd.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy

SETTINGS: list[dict[str, Any]] = [
    {"kind": kind, "support": support, "beta": beta, "temperature": temperature, "token_clip": token_clip}
    for (kind, support, beta), temperature, token_clip in itertools.product(
        [
            *itertools.product(("forward_kl", "reverse_kl"), ("full", "top_k", "sampled"), (0.5,)),
            *(("jsd", "full", beta) for beta in (0.0, 0.1, 0.5, 0.9, 1.0)),
        ],
        (0.7, 1.0, 2.0),
        (0.0, 0.1),
    )
]
"""Each kind × support × β × temperature × clip; a clip of 0.1 cuts some of the tests' tokens, and not others."""


def name_of(setting: dict[str, Any]) -> str:
    """Return the name of a setting in pytest."""
    return "-".join(str(value) for value in setting.values())


def divergences(
    student_logits: numpy.ndarray,
    teacher_logits: numpy.ndarray,
    token_ids: Sequence[int],
    *,
    kind: str,
    support: str,
    beta: float,
    temperature: float,
    token_clip: float,
    teacher_top_k: int,
) -> numpy.ndarray:
    """Return the divergence of each row."""
    num_shared = min(student_logits.shape[1], teacher_logits.shape[1])
    values = []
    for student, teacher, token_id in zip(student_logits, teacher_logits, token_ids, strict=True):
        tokens = list(range(num_shared))
        if support == "top_k":
            tokens = sorted(tokens, key=lambda token: -teacher[token])[:teacher_top_k]
        p = _softmax([float(student[token]) / temperature for token in tokens])
        q = _softmax([float(teacher[token]) / temperature for token in tokens])
        sampled = support == "sampled"
        value = _on_sampled(p[token_id], q[token_id], kind) if sampled else _on_support(p, q, kind, beta)
        values.append(min(value, token_clip) if token_clip > 0 else value)
    return numpy.array(values)


def _softmax(logits: list[float]) -> list[float]:
    largest = max(logits)
    weights = [math.exp(logit - largest) for logit in logits]
    return [weight / math.fsum(weights) for weight in weights]


def _kl(left: list[float], right: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(left, right, strict=True) if a > 0)


def _on_support(p: list[float], q: list[float], kind: str, beta: float) -> float:
    if kind == "forward_kl" or (kind == "jsd" and beta == 0):
        return _kl(q, p)
    if kind == "reverse_kl" or (kind == "jsd" and beta == 1):
        return _kl(p, q)
    m = [(1 - beta) * a + beta * b for a, b in zip(p, q, strict=True)]
    return beta * _kl(q, m) + (1 - beta) * _kl(p, m)


def _on_sampled(p_y: float, q_y: float, kind: str) -> float:
    if kind == "forward_kl":
        return math.log(q_y) - math.log(p_y)
    log_ratio = min(math.log(q_y / p_y), 20.0)
    return math.exp(log_ratio) - 1 - log_ratio
