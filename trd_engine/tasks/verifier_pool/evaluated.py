"""Which scorers of reasoning-gym evaluate an answer as Python, and which answers may reach them.

Code that runs in a scorer's process decides what that process says, so that no separation of processes could make the
verdict on an answer that is a program trustworthy. A right answer is no program: it is a list of numbers and texts, or
an expression of numbers, names and elementary functions. Anything else is wrong without being evaluated.
"""

from __future__ import annotations

import ast
from typing import Literal

EVALUATING_SCORERS: dict[str, Literal["python", "sympy"]] = {
    "binary_matrix": "python",
    "n_queens": "python",
    "spiral_matrix": "python",
    "string_insertion": "python",
    "countdown": "sympy",
    "intermediate_integration": "sympy",
    "polynomial_multiplication": "sympy",
    "puzzle24": "sympy",
    "simple_integration": "sympy",
}
"""How each evaluates: by `eval`, after comparing the texts, or by sympy's `parse_expr`, which rewrites the text before
Python's `eval`."""
_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc", "sinh", "cosh", "tanh",
    "coth", "asinh", "acosh", "atanh", "acoth", "exp", "log", "ln", "sqrt", "cbrt", "root", "Abs", "sign", "erf",
    "Rational",
}  # fmt: skip
_ARITHMETIC = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.UAdd, ast.USub, ast.Load)


def may_be_evaluated(scorer: str, answer: str) -> bool:
    """Return whether `answer` is a plain expression, or goes to a scorer that does not evaluate it."""
    way = EVALUATING_SCORERS.get(scorer)
    if way is None:
        return True
    try:
        tree = ast.parse(answer.strip(), mode="eval")
    except SyntaxError:
        # `eval` refuses it likewise; sympy may rewrite it into something that is valid.
        return way == "python"
    except (ValueError, RecursionError, MemoryError):
        return False
    allowed = _is_literal if way == "python" else _is_formula
    return all(isinstance(node, _ARITHMETIC) or allowed(node) for node in ast.walk(tree))


def _is_literal(node: ast.AST) -> bool:
    # A bare name is an answer of letters, whose evaluation fails or finds a value.
    return isinstance(node, ast.List | ast.Tuple | ast.Constant | ast.Name)


def _is_formula(node: ast.AST) -> bool:
    """Return whether it is a formula and not a text: sympy's functions evaluate the texts that they are given."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float | complex)
    if isinstance(node, ast.Name):
        return not node.id.startswith("_")
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _FUNCTIONS
        and not node.keywords
    )
