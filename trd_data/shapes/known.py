"""All shapes of rows, in the order in which they are tried, and the data sets that have them."""

from __future__ import annotations

from trd_data.shapes.choice import LETTERS, OPTIONS, from_choice_row
from trd_data.shapes.code import from_humaneval_row, from_mbpp_row, from_taco_row, from_tested_row
from trd_data.shapes.evalplus import from_evalplus_row
from trd_data.shapes.fields import ANSWER, INPUT, PROBLEM, SOLUTION, Shape
from trd_data.shapes.livecodebench import from_livecodebench_row
from trd_data.shapes.plain import from_alpaca_row, from_entry_row, from_plain_row
from trd_data.shapes.turns import from_messages_row, from_prompt_row, from_sharegpt_row, from_verl_row

_TEXTS = (PROBLEM, ANSWER, SOLUTION)
_ANY = "math, exact, choice"

CODE_SHAPES = (
    Shape(
        "problem and tests",
        frozenset({"tests"}),
        from_tested_row,
        (PROBLEM, ("tests",), SOLUTION),
        "code",
    ),
    Shape(
        "TACO, APPS",
        frozenset({"input_output"}),
        from_taco_row,
        (PROBLEM, ("input_output",), ("starter_code",), ("solutions",), SOLUTION),
        "code",
        ignores=("name", "difficulty", "tags", "skill_types", "url", "time_limit", "memory_limit", "picture_num"),
    ),
    Shape(
        "LiveCodeBench",
        frozenset({"public_test_cases"}),
        from_livecodebench_row,
        (
            ("question_content", *PROBLEM),
            *(("public_test_cases",), ("private_test_cases",), ("starter_code",), ("metadata",), SOLUTION),
        ),
        "code",
        ignores=("question_title", "platform", "contest_id", "contest_date", "difficulty"),
    ),
    Shape(
        "EvalPlus (HumanEval+, MBPP+)",
        frozenset({"entry_point", "base_input"}),
        from_evalplus_row,
        (("prompt",), ("entry_point",), ("canonical_solution",), ("base_input",), ("plus_input",), ("atol",)),
        "code",
        ignores=("contract", "assertion"),
    ),
    Shape(
        "HumanEval",
        frozenset({"entry_point", "test"}),
        from_humaneval_row,
        (("prompt",), ("entry_point",), ("test",), ("canonical_solution",)),
        "code",
    ),
    Shape(
        "MBPP",
        frozenset({"test_list"}),
        from_mbpp_row,
        (
            *(("text", "prompt", "problem"), ("code",), ("test_list",)),
            *(("test_setup_code",), ("test_imports",), ("test",)),
        ),
        "code",
        ignores=("challenge_test_list", "source_file"),
    ),
)

ENTRY = Shape(
    "reasoning-gym",
    frozenset({"metadata"}),
    from_entry_row,
    (*_TEXTS, ("metadata",), ("generated",)),
    "reasoning_gym",
    recognised_by="the task, or a column `generated`",
)
MESSAGES = Shape(
    "OpenAI chat",
    frozenset({"messages"}),
    from_messages_row,
    (("messages",), ANSWER, SOLUTION),
    _ANY,
    ignores=("name",),
    by_task=True,
)
SHAREGPT = Shape(
    "ShareGPT",
    frozenset({"conversations"}),
    from_sharegpt_row,
    (("conversations",), ("system",), ANSWER, SOLUTION),
    _ANY,
    recognised_by="no column of a problem",
    by_task=True,
)
VERL = Shape(
    "verl",
    frozenset({"prompt", "reward_model"}),
    from_verl_row,
    (("prompt",), ("reward_model",), SOLUTION),
    f"{_ANY}, code",
    ignores=("ability", "extra_info", "agent_name"),
    by_task=True,
)
TRL = Shape(
    "TRL",
    frozenset({"prompt"}),
    from_prompt_row,
    (("prompt",), ("completion",), ANSWER, SOLUTION),
    _ANY,
    recognised_by="`completion`, or a list of turns as `prompt`",
    by_task=True,
)
CHOICE = Shape(
    "choices (MMLU, MMLU-Pro, ARC, C-Eval)",
    frozenset(),
    from_choice_row,
    (PROBLEM, (*OPTIONS, "A"), *((letter,) for letter in LETTERS[1:]), ANSWER, SOLUTION),
    "choice",
    ignores=("subject", "category", "src", "answer_index", "cot_content"),
    recognised_by="`choices`, `options`, or columns `A`, `B` and so on",
)
ALPACA = Shape(
    "Alpaca",
    frozenset({"instruction"}),
    from_alpaca_row,
    (("instruction",), INPUT, ("output",), ANSWER, SOLUTION),
    _ANY,
    ignores=("text",),
    recognised_by="`input` or `output`, and no other column of a problem",
    by_task=True,
)
PLAIN = Shape("problem and answer", frozenset(), from_plain_row, _TEXTS, _ANY, recognised_by="all other rows")
PLAIN_DATASETS = (
    Shape("DeepScaleR", frozenset({"problem", "answer", "solution"}), from_plain_row, _TEXTS, _ANY),
    Shape(
        "GSM8K",
        frozenset({"question", "answer"}),
        from_plain_row,
        _TEXTS,
        _ANY,
        recognised_by="`####` before the answer at the end of the worked solution",
    ),
    Shape(
        "MATH, MATH-500, Minerva",
        frozenset({"problem", "solution"}),
        from_plain_row,
        _TEXTS,
        _ANY,
        ignores=("subject", "level", "type", "unique_id"),
        recognised_by="without an answer, the last box of the solution",
    ),
)
"""Members of `PLAIN` that people look for by name."""

ALL_SHAPES = (PLAIN, *PLAIN_DATASETS, ALPACA, MESSAGES, SHAREGPT, VERL, TRL, CHOICE, ENTRY, *CODE_SHAPES)
