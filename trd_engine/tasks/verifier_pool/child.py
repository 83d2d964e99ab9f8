"""The child side of `pool`: answers requests on standard input until it ends.

Runs libraries that evaluate expressions out of a model's text, some by Python's own `eval`: it puts itself
under the sandbox's layers, keeps limits and holds nothing worth taking.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from trd_data.plain_json import plain_json
from trd_engine.tasks.sandbox.confinement import confine_verifier

_MAX_ADDRESS_BYTES = 4 * 2**30
Verifier = Callable[[dict[str, Any]], Any]


def main(arguments: Sequence[str]) -> None:
    """Serve the verifier named first, with the limit in seconds named second."""
    name, limit_seconds = arguments[0], float(arguments[1])
    replies = _claim_standard_output()
    try:
        verify = _load(name)
        _limit_self()
    except Exception as error:  # noqa: BLE001 - whatever keeps it from starting is reported instead of a greeting
        _write(replies, {"failure": f"{type(error).__name__}: {error}"[:5000]})
        return
    _write(replies, {"ready": True})
    for line in sys.stdin.buffer:
        # Should the parent die while we hang, nobody else would end us: SIGALRM's default action does.
        signal.setitimer(signal.ITIMER_REAL, limit_seconds + 5)
        _write(replies, _answer(verify, json.loads(line)))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _claim_standard_output() -> BinaryIO:
    """Return a private copy of standard output, whose own descriptor is silenced: libraries may print."""
    replies = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.close(silence)
    return replies


def _limit_self() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_ADDRESS_BYTES, _MAX_ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    confine_verifier()


def _load(name: str) -> Verifier:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if name == "math":
        return _load_math()
    if name == "reasoning_gym":
        return _load_reasoning_gym()
    assert name == "reasoning_gym_entries", name
    return _load_reasoning_gym_entries()


def _answer(verify: Verifier, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"value": verify(request)}
    except Exception as error:  # noqa: BLE001 - whatever a library throws at a model's text is a verdict
        return {"failure": f"error: {type(error).__name__}: {error}"[:5000]}


def _write(replies: BinaryIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


def _load_math() -> Verifier:
    from math_verify import parse, verify  # type: ignore[import-untyped]

    def compare(request: dict[str, Any]) -> bool:
        # No time limits of its own: they need the main thread's signals, and the parent has a harder one.
        gold, answer = (parse(f"\\boxed{{{request[name]}}}", parsing_timeout=None) for name in ("reference", "answer"))
        return bool(verify(gold, answer, timeout_seconds=None))

    compare({"reference": "\\frac{1}{2}", "answer": "0.5"})  # loads the grammar now, outside any time limit
    return compare


def _load_reasoning_gym() -> Verifier:
    import reasoning_gym  # type: ignore[import-untyped]

    datasets: dict[str, Any] = {}

    def score(request: dict[str, Any]) -> float:
        entry, made_by = request["entry"], request.get("generated")
        key = json.dumps(made_by or entry["metadata"]["source_dataset"])
        if key not in datasets:
            name = made_by["generator"] if made_by else entry["metadata"]["source_dataset"]
            sizes = {"size": made_by["size"], "seed": made_by["seed"]} if made_by else {}
            datasets[key] = reasoning_gym.create_dataset(name, **sizes)
        if made_by:
            # Made again where that gives the same: the one sent has lost its tuples and sets to JSON.
            again = datasets[key][made_by["index"]]
            entry = again if plain_json(again["question"]) == entry["question"] else entry
        return float(datasets[key].score_answer(request["answer"], entry))

    return score


def _load_reasoning_gym_entries() -> Verifier:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS  # type: ignore[import-untyped]

    def make(request: dict[str, Any]) -> list[Any]:
        name = request["generator"]
        if name not in DATASETS:
            close = difflib.get_close_matches(name, DATASETS, n=3)
            there = f"the closest are {', '.join(close)}" if close else f"it has {', '.join(sorted(DATASETS))}"
            raise ValueError(f"reasoning-gym has no such generator; {there}")
        dataset = reasoning_gym.create_dataset(name, size=request["size"], seed=request["seed"])
        return [plain_json(dataset[index]) for index in range(request["start"], request["stop"])]

    return make
