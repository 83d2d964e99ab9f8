"""The compared variants as parts of an engine spec: the paper's five and the controls.

Every variant uses fields that any user can set; the engine has no special case for any of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TEACHER_TOP_K = 8
"""The paper uses 32 with a vocabulary of 152k; the small models have only 32 symbols."""


@dataclass(frozen=True)
class Variant:
    """One way of distilling."""

    refines: bool
    """True: mode trd. False: mode opd or opsd, depending on the teacher."""
    loss: dict[str, Any]
    refine: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    summary: str = ""


MAIN: dict[str, Variant] = {
    "forward_kl": Variant(False, {}, summary="y_o, forward KL"),
    "forward_kl_clip": Variant(False, {"token_clip": 0.1}, summary="y_o, forward KL, each token's clamped at 0.1"),
    "reverse_kl": Variant(False, {"divergence": "reverse_kl"}, summary="y_o, reverse KL"),
    "reverse_kl_topk": Variant(
        False,
        {"divergence": "reverse_kl", "support": "top_k", "teacher_top_k": TEACHER_TOP_K},
        summary=f"y_o, reverse KL on the teacher's top {TEACHER_TOP_K}",
    ),
    "trd": Variant(True, {"teacher_context": "refine"}, summary="y_r, forward KL, scored in the refine context"),
}
"""The paper's five variants."""

BASELINES = tuple(name for name, variant in MAIN.items() if not variant.refines)

CONTROLS: dict[str, Variant] = {
    "kd_teacher_samples": Variant(
        True,
        {"teacher_context": "vanilla"},
        prompts={"refine": "{problem}", "privileged_refine": "{problem}R{solution}"},
        summary="the teacher's own samples (its prompt does not show y_o), forward KL",
    ),
    "ce_refined": Variant(
        True,
        {"support": "sampled", "teacher_context": "refine"},
        summary="y_r, cross-entropy (forward Monte-Carlo: the same gradient)",
    ),
    "trd_vanilla": Variant(True, {"teacher_context": "vanilla"}, summary="y_r, scored in the vanilla context"),
    "trd_fail_to_pass": Variant(
        True,
        {"teacher_context": "refine"},
        refine={"keep": "fail_to_pass"},
        summary="trd on the trajectories that failed and were corrected, and on no others",
    ),
}
"""Controls that separate the parts of TRD's gain."""

VARIANTS = MAIN | CONTROLS
