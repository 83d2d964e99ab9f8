"""The English words around a sum that give it another meaning; `equality_context` says where each is looked for."""

from __future__ import annotations

import re


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


OTHER_COUNTING = re.compile(
    r"\b(?:binary|ternary|octal|hex|hexadecimal|modul[oi]|modular|modulus|mod|congruen\w*|residues?|xor|bitwise|clock)\b"
    r"|\\[pb]?mod|\\equiv|≡|ℤ|(?-i:\b[ZF]_|\bGF\()|\\mathbb\s?\{?\s?[ZF]\s?\}?\s?[_/]"
    r"|\bbase[\s-]?\$?(?:\d|two|three|four|five|six|seven|eight|nine|ten|twelve|sixteen)|\b(?:in|to|from) base\b"
    r"|\bconcatenat|\bvectors?\b|\bsymbol\b[^.\n]{0,20}\b(?:means|stands|denotes|represents)\b"
    r"|\bdefin\w{0,9}\b[^.\n]{0,40}\boperat|\boperat\w{0,9}\b[^.\n]{0,40}\bdefin",
    re.IGNORECASE,
)
"""Modular arithmetic, other bases, vectors, and operations of the problem's own."""

UNSAID = _set(
    "imagine pretend contrary impossible absurd false wrong wrongly incorrect incorrectly error invalid fail fails"
    " claim claims claimed not no never cannot nor neither unless whether would otherwise instead rather about around"
    " roughly nearly almost might may think thinks thought seem seems appear appears"
)
"""In the same sentence, before or behind: it is not claimed, or not exactly."""
UNSAID_STEMS = ("suppos", "assum", "hypothe", "contradict", "mistake", "erroneous", "approx", "round", "estimat")
REFUTED = re.compile(r"contradict|impossib|absurd", re.IGNORECASE)
"""In the next sentence too: ``Then 2 + 2 = 5. Contradiction.``"""

TAKES_ALL = _set(
    "log ln lg exp sqrt root roots power factorial floor ceil ceiling abs absolute gcd hcf lcm max maximum min minimum"
    " average mean median half halves halving twice thrice double doubles doubled doubling percent percentage"
    " reciprocal inverse opposite remainder quotient range sine cosine tangent if when whenever let say"
)
"""In the same clause, before the equality: a function or a fraction of what follows, or a condition."""
TAKES_ALL_STEMS = ("squar", "cube", "cubing", "tripl", "quadrupl")
TRIGONOMETRY = re.compile(r"(?:arc|a)?(?:sin|cos|tan|cot|sec|csc)h?")
PART_OF = re.compile(r"%|\d\$?\s{1,3}of\b")
TAKES_NEXT = _set(
    "of by than over per negative plus minus times add subtract mod choose divided multiplied from between through step"
    " steps part case question problem exercise equation eq line option page pages chapter section figure fig number"
    " numbers version row column rule example day week year level grade room item test less away"
)
"""Right before the equality: its first number belongs to the word."""
WHOLE = re.compile(r"(?:total|sum) of\Z", re.IGNORECASE)
JOINS = _set("and to with into or in on at for")
"""The same, where a number stands before the word: ``the sum of 5 and 3 + 4``, ``add 5 to 3 + 4``."""
NUMBER_WORDS = _set(
    "one two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty sixty hundred"
    " thousand million billion dozen third thirds quarter quarters fourth fourths fifth fifths tenth tenths"
)

TAKES_LAST = _set(
    "in times plus minus over by squared cubed factorial to of per more less fewer greater base mod choose point if"
    " when divided multiplied raised am pm o off below above before after past"
)
"""Right behind the equality: its last number belongs to the word."""
IN_TOTAL = re.compile(r"in (?:total|all)\b", re.IGNORECASE)
AND_A_PART = re.compile(r"and (?:an?|half|one|two|three|\d+/\d)(?![A-Za-z])", re.IGNORECASE)
GOES_ON = _set(
    "so then thus hence therefore and but which that because since wait total altogether now is are was as for we he"
    " she it they this these also with or left remaining"
)
"""Words behind a number that are no things which it counts."""

COMMANDS = _set(
    "quad qquad Rightarrow rightarrow implies therefore to Longrightarrow longrightarrow iff checkmark because"
)
"""LaTeX that belongs to neither side of it."""
