"""Triton kernels for the work between the matrix products of the loss.

Owns what runs on the GPU; `row_kernels` launches it and does the arithmetic on single numbers per row. A program takes
ROWS rows. In the loops over the vocabulary every lane keeps its own sums, and the lanes of a row meet once at its end,
so that no loop has a barrier. Import it only to run the kernels: Triton comes with torch's GPU builds.

A logit is soft_cap · tanh(scale · raw / soft_cap); SOFT_CAP 0 means no cap. INVERSE is 1 / temperature. KIND is 1 for
the forward KL, 2 for the reverse KL, 3 for the JSD and 4 for the sampled token. All arithmetic has the dtype ACC.
Numbers per row lie in tables [F, R], a line of R numbers for each quantity.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
# No `from __future__ import annotations` here: Triton reads the annotations.
import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e15)
"""A finite stand-in for minus infinity: the difference of two is 0, not NaN."""


@triton.jit
def _load_logits(
    raw, rows, ids, stride, num_rows, num_shared, SCALE: tl.constexpr, SOFT_CAP: tl.constexpr, ACC: tl.constexpr
):
    """Load the logits of `ids` in `rows`; beyond the vocabulary they are `LOWEST`."""
    is_inside = (rows < num_rows)[:, None] & (ids < num_shared)[None, :]
    logits = tl.load(raw + rows[:, None] * stride + ids[None, :], mask=is_inside, other=0.0).to(ACC) * SCALE
    if SOFT_CAP > 0:
        decay = tl.exp(tl.abs(logits) * (-2.0 / SOFT_CAP))
        size = SOFT_CAP * ((1.0 - decay) / (1.0 + decay))
        logits = tl.where(logits < 0, -size, size)
    return tl.where((ids < num_shared)[None, :], logits, LOWEST)


@triton.jit
def _load_number(table, line: tl.constexpr, rows, num_rows):
    """Load one number per row, as a column."""
    return tl.load(table + line * num_rows + rows, mask=rows < num_rows, other=0.0)[:, None]


@triton.jit
def model_sums(
    raw, skipped, sums, stride, num_shared, num_rows,
    SCALE: tl.constexpr, SOFT_CAP: tl.constexpr, INVERSE: tl.constexpr, MODES: tl.constexpr,
    ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write sums [4 or 6, R] of one model's logits [R, V]: the largest logit, Σ e^x and Σ x e^x with
    x = (logit − largest) / temperature, and the largest logit's token. With MODES also the two largest logits of tokens
    that are not `skipped` [V]."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    lanes = tl.arange(0, BLOCK)
    largest = tl.full((ROWS, BLOCK), LOWEST, ACC)
    total = tl.zeros((ROWS, BLOCK), ACC)
    moment = tl.zeros((ROWS, BLOCK), ACC)
    token = tl.zeros((ROWS, BLOCK), tl.int32)
    first = tl.full((ROWS, BLOCK), LOWEST, ACC)
    second = tl.full((ROWS, BLOCK), LOWEST, ACC)
    for start in range(0, num_shared, BLOCK):
        ids = start + lanes
        logits = _load_logits(raw, rows, ids, stride, num_rows, num_shared, SCALE, SOFT_CAP, ACC)
        # one exponential a logit: either the new term has weight 1, or the old sums keep theirs
        x = (logits - largest) * INVERSE
        is_larger = x > 0
        smaller = tl.exp(-tl.abs(x))
        moment = tl.where(is_larger, (moment - total * x) * smaller, moment + x * smaller)
        total = tl.where(is_larger, total * smaller + 1.0, total + smaller)
        token = tl.where(is_larger, ids[None, :], token)
        largest = tl.where(is_larger, logits, largest)
        if MODES:
            is_skipped = tl.load(skipped + ids, mask=ids < num_shared, other=1) != 0
            path = tl.where(is_skipped[None, :], LOWEST, logits)
            second = tl.maximum(second, tl.minimum(first, path))
            first = tl.maximum(first, path)
    top = tl.max(largest, 1)
    x = (largest - top[:, None]) * INVERSE
    weight = tl.exp(x)
    is_row = rows < num_rows
    tl.store(sums + rows, top, mask=is_row)
    tl.store(sums + num_rows + rows, tl.sum(total * weight, 1), mask=is_row)
    tl.store(sums + 2 * num_rows + rows, tl.sum((moment + total * x) * weight, 1), mask=is_row)
    likeliest = tl.min(tl.where(largest == top[:, None], token, num_shared), 1)
    tl.store(sums + 3 * num_rows + rows, likeliest.to(ACC), mask=is_row)
    if MODES:
        best = tl.max(first, 1)
        lane = tl.min(tl.where(first == best[:, None], lanes[None, :], BLOCK), 1)
        tl.store(sums + 4 * num_rows + rows, best, mask=is_row)
        after = tl.max(tl.where(lanes[None, :] == lane[:, None], second, first), 1)
        tl.store(sums + 5 * num_rows + rows, after, mask=is_row)


@triton.jit
def _log_m_over_p(log_q_over_p, LOG_ODDS: tl.constexpr, LOG_REST: tl.constexpr):
    """Return log m/p = log(1 − β) + log(1 + e^x) with x = log q/p + log β/(1−β), LOG_ODDS and LOG_REST = log(1 − β)."""
    x = log_q_over_p + LOG_ODDS
    small = tl.exp(-tl.abs(x))
    # log1p without losing the digits of a small argument: the rounding of 1 + small cancels in the quotient
    shifted = 1.0 + small
    is_lost = shifted == 1.0
    log1p = tl.where(is_lost, small, tl.log(shifted) * (small / tl.where(is_lost, 1.0, shifted - 1.0)))
    return tl.where(x > 0, x, 0.0) + log1p + LOG_REST


@triton.jit
def divergence_sums(
    student, teacher, numbers, sums, student_stride, teacher_stride, num_shared, num_rows,
    KIND: tl.constexpr, INVERSE: tl.constexpr, LOG_ODDS: tl.constexpr, LOG_REST: tl.constexpr,
    STUDENT_SCALE: tl.constexpr, STUDENT_CAP: tl.constexpr, TEACHER_SCALE: tl.constexpr, TEACHER_CAP: tl.constexpr,
    ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the divergence of each row to sums [2, R]; for the JSD Σ q log q/m and Σ p log p/m.

    `numbers` [4, R] holds the largest logit and log Σ e^x of student and teacher.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    student_max = _load_number(numbers, 0, rows, num_rows)
    student_log_sum = _load_number(numbers, 1, rows, num_rows)
    teacher_max = _load_number(numbers, 2, rows, num_rows)
    teacher_log_sum = _load_number(numbers, 3, rows, num_rows)
    first = tl.zeros((ROWS, BLOCK), ACC)
    second = tl.zeros((ROWS, BLOCK), ACC)
    for start in range(0, num_shared, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        s = _load_logits(student, rows, ids, student_stride, num_rows, num_shared, STUDENT_SCALE, STUDENT_CAP, ACC)
        t = _load_logits(teacher, rows, ids, teacher_stride, num_rows, num_shared, TEACHER_SCALE, TEACHER_CAP, ACC)
        log_p = (s - student_max) * INVERSE - student_log_sum
        log_q = (t - teacher_max) * INVERSE - teacher_log_sum
        if KIND == 1:
            first += tl.exp(log_q) * (log_q - log_p)
        if KIND == 2:
            first += tl.exp(log_p) * (log_p - log_q)
        if KIND == 3:
            log_m_over_p = _log_m_over_p(log_q - log_p, LOG_ODDS, LOG_REST)
            first += tl.exp(log_q) * ((log_q - log_p) - log_m_over_p)
            second -= tl.exp(log_p) * log_m_over_p
    tl.store(sums + rows, tl.sum(first, 1), mask=rows < num_rows)
    tl.store(sums + num_rows + rows, tl.sum(second, 1), mask=rows < num_rows)


@triton.jit
def write_gradient(
    student, teacher, token_ids, weights, numbers, student_stride, teacher_stride, num_shared, num_rows,
    KIND: tl.constexpr, INVERSE: tl.constexpr, LOG_ODDS: tl.constexpr, LOG_REST: tl.constexpr,
    STUDENT_SCALE: tl.constexpr, STUDENT_CAP: tl.constexpr, TEACHER_SCALE: tl.constexpr, TEACHER_CAP: tl.constexpr,
    ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient in the student's raw logits in their place; exactly 0 in rows of weight 0.

    `numbers` [6, R]: the largest logit and log Σ e^x of student and teacher, the factor of the gradient, and the number
    that its closed form subtracts: D for the reverse KL, Σ p log p/m for the JSD.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    s = _load_logits(student, rows, ids, student_stride, num_rows, num_shared, STUDENT_SCALE, STUDENT_CAP, ACC)
    log_p = (s - _load_number(numbers, 0, rows, num_rows)) * INVERSE - _load_number(numbers, 1, rows, num_rows)
    gradient = tl.exp(log_p)
    if KIND == 4:
        sampled = tl.load(token_ids + rows, mask=rows < num_rows, other=0)
        gradient -= tl.where(ids[None, :] == sampled[:, None], 1.0, 0.0)
    else:
        t = _load_logits(teacher, rows, ids, teacher_stride, num_rows, num_shared, TEACHER_SCALE, TEACHER_CAP, ACC)
        log_q = (t - _load_number(numbers, 2, rows, num_rows)) * INVERSE - _load_number(numbers, 3, rows, num_rows)
        subtracted = _load_number(numbers, 5, rows, num_rows)
        if KIND == 1:
            gradient -= tl.exp(log_q)
        if KIND == 2:
            gradient *= log_p - log_q - subtracted
        if KIND == 3:
            gradient *= -(_log_m_over_p(log_q - log_p, LOG_ODDS, LOG_REST) + subtracted)
    if STUDENT_CAP > 0:
        gradient *= 1.0 - (s / STUDENT_CAP) * (s / STUDENT_CAP)
    gradient *= _load_number(numbers, 4, rows, num_rows) * STUDENT_SCALE
    gradient = tl.where(_load_number(weights, 0, rows, num_rows) == 0, 0.0, gradient)
    is_inside = (rows < num_rows)[:, None] & (ids < num_shared)[None, :]
    tl.store(student + rows[:, None] * student_stride + ids[None, :], gradient, mask=is_inside)
