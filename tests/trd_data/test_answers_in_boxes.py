r"""Finding the last ``\boxed{}``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trd_data.answers import last_boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} or rather \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\text{a } \sqrt{\frac{x^{2}}{y_{1}}}} and {more}", r"\text{a } \sqrt{\frac{x^{2}}{y_{1}}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{ 7 }", "7"),
        (r"\fbox{3}", "3"),
        (r"\fboxed{3}", "3"),
        (r"\boxed {4}", "4"),
        (r"$\boxed 5$.", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{1} then cut off \boxed{\frac{1}{", None),
        (r"\boxed{\}", None),
        (r"\boxed", None),
        ("no box", None),
    ],
)
def test_last_box(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


BALANCED = st.recursive(
    st.text(alphabet="ab1+ ", max_size=5).map(str.strip),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda parts: "".join("{" + p + "}" for p in parts)),
)


@given(st.text(alphabet="xy {}\\", max_size=20), BALANCED, st.text(alphabet="xy {}", max_size=20))
def test_balanced_content_is_found_in_any_surroundings(before: str, content: str, after: str) -> None:
    assert last_boxed(f"{before} \\boxed{{{content}}}{after}") == content


@given(st.text(alphabet="\\boxed{}5 $", max_size=60))
def test_no_text_breaks_the_search(text: str) -> None:
    found = last_boxed(text)
    assert found is None or found in text
