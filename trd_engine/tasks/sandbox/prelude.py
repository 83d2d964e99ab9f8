"""The names that a function's program may use without importing them, as in its benchmark's grader.

LeetCode's editor and the graders of LiveCodeBench and TACO put these imports before each solution. Here they lie
behind the built-in names: the program's own names come first, its line numbers are its own, and its first line may
import from `__future__`. Where the two graders differ, there are the names of both.
"""

from __future__ import annotations

import builtins
import functools
from contextlib import suppress
from typing import Any

_IMPORTS = """
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from typing import *
import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics, itertools, functools
import operator, io, sys, json, time, fractions
"""
"""In LiveCodeBench's order, which decides what `compress` or `search` is."""
RECURSION_LIMIT = 50_000
"""LiveCodeBench's."""


@functools.cache
def _imported() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(_IMPORTS, "prelude.py", "exec", dont_inherit=True), names)
    # The built-in names win: a solution means neither the `pow` of math nor the `exit` of sys.
    return names | vars(builtins)


def load_prelude() -> None:
    """Import the names once, before cases are forked from this process."""
    _imported()


def builtin_names(program: str) -> dict[str, Any]:
    """Return the `__builtins__` of a program."""
    names = dict(_imported())
    if "np." in program:  # TACO's; too slow to import for programs that do without
        with suppress(ImportError):
            import numpy as np

            names["np"] = np
    return names
