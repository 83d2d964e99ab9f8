"""Triton kernels for the work between the matrix products of the loss.

Owns what runs on the GPU; `row_kernels` launches it and does the arithmetic on single numbers per row. A program takes
ROWS rows. In the loops over the vocabulary every lane keeps its own sums, and the lanes of a row meet once at its end,
so that no loop has a barrier. Import it only to run the kernels: Triton comes with torch's GPU builds.

A logit is soft_cap · tanh(scale · raw / soft_cap); SOFT_CAP 0 means no cap. INVERSE is 1 / temperature. KIND is 1 for
the forward KL, 2 for the reverse KL, 3 for the JSD and 4 for the sampled token. All arithmetic has the dtype ACC.
Numbers per row lie in tables [F, R], a line of R numbers for each quantity.

Bytes that are moved for one token of the vocabulary, with b the bytes of a logit: the normalizers take a read of each
model (2b), and the gradient, which needs them, another one and a write (3b). 5b is the floor of any scheme that does
not hold both models' rows, which take 0.6 MB for 151,936 tokens in bf16; a block of an H100 has 228 KB. Forward and
reverse KL are at it, 10 bytes in bf16 and 20 in fp32, with the statistics at temperature 1. The sampled token's
gradient needs no teacher: 4b. The JSD's gradient needs Σ p log p/m, which needs the normalizers: 7b. Statistics
beside another temperature read 2b more.
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
def _grow(logits, largest, total, moment, INVERSE: tl.constexpr):
    """Add logits to the sums of their lanes. Also return x, their distance from the old largest ones, and the weight of
    either side: with one exponential a logit, either the new term has weight 1, or the old sums keep theirs."""
    x = (logits - largest) * INVERSE
    smaller = tl.exp(-tl.abs(x))
    is_larger = x > 0
    moment = tl.where(is_larger, (moment - total * x) * smaller, moment + x * smaller)
    grown = tl.where(is_larger, total * smaller + 1.0, total + smaller)
    return tl.where(is_larger, logits, largest), grown, moment, x, smaller


@triton.jit
def _cross(cross, total, x, smaller, other_x):
    """Add weight · (x − other x) of new logits to a lane's sum; both are distances from the largest logits so far."""
    shift, other_shift = tl.where(x > 0, x, 0.0), tl.where(other_x > 0, other_x, 0.0)
    moved = cross + total * (other_shift - shift)
    term = (x - shift) - (other_x - other_shift)
    return tl.where(x > 0, moved * smaller + term, moved + term * smaller)


@triton.jit
def _store_sums(
    sums, line: tl.constexpr, rows, num_rows, num_shared, largest, total, moment, token, INVERSE: tl.constexpr
):
    """Join the lanes of each row, and store largest logit, Σ e^x, Σ x e^x and the largest logit's token. Return the
    distance of each lane's largest logit from the row's, and its exponential."""
    is_row = rows < num_rows
    top = tl.max(largest, 1)
    x = (largest - top[:, None]) * INVERSE
    weight = tl.exp(x)
    tl.store(sums + line * num_rows + rows, top, mask=is_row)
    tl.store(sums + (line + 1) * num_rows + rows, tl.sum(total * weight, 1), mask=is_row)
    tl.store(sums + (line + 2) * num_rows + rows, tl.sum((moment + total * x) * weight, 1), mask=is_row)
    likeliest = tl.min(tl.where(largest == top[:, None], token, num_shared), 1)
    tl.store(sums + (line + 3) * num_rows + rows, likeliest.to(total.dtype), mask=is_row)
    return x, weight


@triton.jit
def pair_sums(
    student, teacher, skipped, sums, student_stride, teacher_stride, num_shared, num_rows,
    KIND: tl.constexpr, INVERSE: tl.constexpr, MODES: tl.constexpr,
    STUDENT_SCALE: tl.constexpr, STUDENT_CAP: tl.constexpr, TEACHER_SCALE: tl.constexpr, TEACHER_CAP: tl.constexpr,
    ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write sums [9 or 11, R] over the logits [R, V] of both models, each read once.

    Of the student and then of the teacher: the largest logit, Σ e^x and Σ x e^x with x = (logit − largest) /
    temperature, and the largest logit's token. Then, with y the teacher's x: Σ e^y (y − x) for the forward KL, Σ e^x
    (x − y) for the reverse KL. With MODES also the teacher's two largest logits of tokens that are not `skipped` [V].
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    lanes = tl.arange(0, BLOCK)
    s_largest = tl.full((ROWS, BLOCK), LOWEST, ACC)
    s_total = tl.zeros((ROWS, BLOCK), ACC)
    s_moment = tl.zeros((ROWS, BLOCK), ACC)
    s_token = tl.zeros((ROWS, BLOCK), tl.int32)
    t_largest = tl.full((ROWS, BLOCK), LOWEST, ACC)
    t_total = tl.zeros((ROWS, BLOCK), ACC)
    t_moment = tl.zeros((ROWS, BLOCK), ACC)
    t_token = tl.zeros((ROWS, BLOCK), tl.int32)
    cross = tl.zeros((ROWS, BLOCK), ACC)
    first = tl.full((ROWS, BLOCK), LOWEST, ACC)
    second = tl.full((ROWS, BLOCK), LOWEST, ACC)
    for start in range(0, num_shared, BLOCK):
        ids = start + lanes
        s = _load_logits(student, rows, ids, student_stride, num_rows, num_shared, STUDENT_SCALE, STUDENT_CAP, ACC)
        t = _load_logits(teacher, rows, ids, teacher_stride, num_rows, num_shared, TEACHER_SCALE, TEACHER_CAP, ACC)
        s_token = tl.where(s > s_largest, ids[None, :], s_token)
        t_token = tl.where(t > t_largest, ids[None, :], t_token)
        s_before, t_before = s_total, t_total
        s_largest, s_total, s_moment, x, s_smaller = _grow(s, s_largest, s_total, s_moment, INVERSE)
        t_largest, t_total, t_moment, y, t_smaller = _grow(t, t_largest, t_total, t_moment, INVERSE)
        if KIND == 1:
            cross = _cross(cross, t_before, y, t_smaller, x)
        if KIND == 2:
            cross = _cross(cross, s_before, x, s_smaller, y)
        if MODES:
            is_skipped = tl.load(skipped + ids, mask=ids < num_shared, other=1) != 0
            path = tl.where(is_skipped[None, :], LOWEST, t)
            second = tl.maximum(second, tl.minimum(first, path))
            first = tl.maximum(first, path)
    x, s_weight = _store_sums(sums, 0, rows, num_rows, num_shared, s_largest, s_total, s_moment, s_token, INVERSE)
    y, t_weight = _store_sums(sums, 4, rows, num_rows, num_shared, t_largest, t_total, t_moment, t_token, INVERSE)
    is_row = rows < num_rows
    if KIND == 1:
        tl.store(sums + 8 * num_rows + rows, tl.sum((cross + t_total * (y - x)) * t_weight, 1), mask=is_row)
    if KIND == 2:
        tl.store(sums + 8 * num_rows + rows, tl.sum((cross + s_total * (x - y)) * s_weight, 1), mask=is_row)
    if MODES:
        best = tl.max(first, 1)
        lane = tl.min(tl.where(first == best[:, None], lanes[None, :], BLOCK), 1)
        tl.store(sums + 9 * num_rows + rows, best, mask=is_row)
        after = tl.max(tl.where(lanes[None, :] == lane[:, None], second, first), 1)
        tl.store(sums + 10 * num_rows + rows, after, mask=is_row)


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
def jsd_sums(
    student, teacher, numbers, sums, student_stride, teacher_stride, num_shared, num_rows,
    INVERSE: tl.constexpr, LOG_ODDS: tl.constexpr, LOG_REST: tl.constexpr,
    STUDENT_SCALE: tl.constexpr, STUDENT_CAP: tl.constexpr, TEACHER_SCALE: tl.constexpr, TEACHER_CAP: tl.constexpr,
    ACC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write Σ q log q/m and Σ p log p/m of each row to sums [2, R]. The mixture m needs both normalizers first.

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
