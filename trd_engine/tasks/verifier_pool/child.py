"""The child side of `pool`: judges each request on standard input in a process of the request's own.

Libraries evaluate expressions out of a model's text, some by Python's own `eval`, and whatever such a text changes in
its process would outlive it. Therefore the process that loads the libraries evaluates no answer. It forks for each
request; the fork puts on the last layers, judges, writes one reply and ends, and with it all that the answer did. What
remains possible for an answer that gets code to run is to choose its own verdict: see `evaluated`, which keeps programs
from the scorers that would run them. A scorer that only compares texts, which costs less than a fork, needs none.
"""

from __future__ import annotations

import difflib
import functools
import gc
import json
import logging
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from trd_data.plain_json import plain_json
from trd_engine.tasks.sandbox import kernel, landlock, seccomp
from trd_engine.tasks.sandbox.confinement import DEVICES, Confinement, enter_confinement, readable_paths
from trd_engine.tasks.sandbox.drain import Drained, Pipe, drain
from trd_engine.tasks.sandbox.limits import MIB, Limits
from trd_engine.tasks.verifier_pool.evaluated import may_be_evaluated

_MAX_ADDRESS_BYTES = 4 * 2**30
_MAX_VERDICT_BYTES = 2**16
_MAX_ENTRIES_BYTES = 256 * MIB


@dataclass(frozen=True)
class _Verifier:
    judge: Callable[[Any, dict[str, Any]], Any]
    """Called in the request's own process, with what `prepare` returned."""
    prepare: Callable[[dict[str, Any]], Any] = lambda shared: None
    """Called before the fork with the part of a request that no answer is in; what it keeps serves later requests."""
    only_compares: Callable[[Any], bool] = lambda prepared: False
    """Whether `judge` compares an answer as text and nothing else, given what `prepare` returned: it is not forked."""
    max_reply_bytes: int = _MAX_VERDICT_BYTES


def main(arguments: Sequence[str]) -> None:
    """Serve a verifier: its name, the limit in seconds, the layers as JSON, an empty folder for a root."""
    name, limit_seconds = arguments[0], float(arguments[1])
    layers = json.loads(arguments[2])
    confinement = Confinement(**layers) if layers else None
    # A private copy; the descriptor itself is silenced, because libraries may print.
    replies = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.close(silence)
    try:
        verifier = _load(name)
        if confinement is not None:
            enter_confinement(confinement, arguments[3], Limits(scratch_bytes=MIB))
            if confinement.landlock:
                landlock.restrict_files(readable_paths(), None, DEVICES)
    except Exception as error:  # noqa: BLE001 - whatever keeps it from starting is reported instead of a greeting
        _write(replies, {"failure": f"{type(error).__name__}: {error}"[:5000]})
        return
    gc.freeze()  # what is loaded stays out of the forks' collections, which would copy its pages
    if seccomp.is_supported():
        seccomp.filter_without_signals()  # built once
    _write(replies, {"ready": True})
    for shared in sys.stdin.buffer:
        deadline = time.monotonic() + limit_seconds
        request = sys.stdin.buffer.readline()
        try:
            prepared = verifier.prepare(json.loads(shared))
        except Exception as error:  # noqa: BLE001 - a generator may raise anything
            _write(replies, _failure(error))
            continue
        if verifier.only_compares(prepared):
            _write(replies, _judged(verifier, prepared, request))
            continue
        replies.write(_judged_in_fork(verifier, prepared, request, deadline, confinement) + b"\n")
        replies.flush()


def _judged_in_fork(
    verifier: _Verifier, prepared: Any, request: bytes, deadline: float, confinement: Confinement | None
) -> bytes:
    """Return the reply of a fork that judges the request: a line of JSON, though the fork may have written any."""
    output = Pipe(verifier.max_reply_bytes)
    child = os.fork()
    if child == 0:
        _judge_and_exit(verifier, prepared, request, output.writer, confinement)
    os.close(output.writer)
    drained = drain([output], deadline, None, 0)
    os.kill(child, signal.SIGKILL)  # it may have closed its end and live on
    _, status = os.waitpid(child, 0)
    if drained is Drained.TIME_OUT:
        return b'{"failure": "time-out"}'
    if drained is not Drained.ENDED or not output.data or b"\n" in output.data:
        reason = drained.value if drained is not Drained.ENDED else f"exit code {os.waitstatus_to_exitcode(status)}"
        return json.dumps({"failure": f"error: the verifier died: {reason}"}).encode()
    return bytes(output.data)


def _judge_and_exit(
    verifier: _Verifier, prepared: Any, request: bytes, result: int, confinement: Confinement | None
) -> None:
    """Judge in the fork: keep no descriptor but the result's, add all layers, write the verdict. Never returns."""
    try:
        _leave_parent(result)
        _confine_self(confinement)
        data = json.dumps(_judged(verifier, prepared, request)).encode()
        while data:
            data = data[os.write(result, data) :]
    finally:
        os._exit(0)


def _judged(verifier: _Verifier, prepared: Any, request: bytes) -> dict[str, Any]:
    try:
        return {"value": verifier.judge(prepared, json.loads(request))}
    except Exception as error:  # noqa: BLE001 - whatever a library throws at a model's text is a verdict
        return _failure(error)


def _leave_parent(result: int) -> None:
    """Keep the result's descriptor alone: the others reach other requests and the engine."""
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(silence, descriptor)
    os.closerange(3, result)
    os.closerange(result + 1, 4096)


def _confine_self(confinement: Confinement | None) -> None:
    for kind, value in (
        (resource.RLIMIT_AS, _MAX_ADDRESS_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    if confinement is not None:
        kernel.die_with_parent()
        kernel.set_seccomp_filter(seccomp.filter_without_signals())
    elif sys.platform.startswith("linux") and seccomp.is_supported():
        # The operator allows this machine to do without layers; those that it has cost nothing.
        kernel.die_with_parent()
        with suppress(OSError):
            kernel.forbid_new_privileges()
            kernel.set_seccomp_filter(seccomp.filter_without_signals())


def _failure(error: Exception) -> dict[str, Any]:
    return {"failure": f"error: {type(error).__name__}: {error}"[:5000]}


def _write(replies: BinaryIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()


def _load(name: str) -> _Verifier:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if name == "math":
        return _load_math()
    if name == "reasoning_gym":
        return _load_reasoning_gym()
    assert name == "reasoning_gym_entries", name
    return _load_reasoning_gym_entries()


def _load_math() -> _Verifier:
    from latex2sympy2_extended import NormalizationConfig  # type: ignore[import-untyped]
    from math_verify import (  # type: ignore[import-untyped]
        ExprExtractionConfig,
        LatexExtractionConfig,
        parse,
        verify,
    )

    # Its table of units takes letters off a product: 3t would be 3.
    spelling = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    forms = [LatexExtractionConfig(normalization_config=spelling), ExprExtractionConfig()]

    def compare(prepared: None, request: dict[str, Any]) -> bool:
        """Return whether two texts are equal; of a single one, whether it can be read."""
        # Without time limits: they need the main thread's signals, and the parent has a harder one.
        read = [
            list(map(_with_imaginary_unit, parse(f"\\boxed{{{text}}}", forms, parsing_timeout=None)))
            for text in request.values()
        ]
        if len(read) == 1:
            return any(not isinstance(found, str) for found in read[0])
        is_equal = bool(verify(*read, timeout_seconds=None, allow_set_relation_comp=True))
        return is_equal and not _differ_in_scale(read[0][0], read[1][0])

    for reference, answer in _WARMING_PAIRS:
        compare(None, {"reference": reference, "answer": answer})
    return _Verifier(compare)


def _with_imaginary_unit(parsed: Any) -> Any:
    """Return an expression with the number i for the symbol that math-verify makes of it."""
    import sympy  # type: ignore[import-untyped]

    symbols = [symbol for symbol in getattr(parsed, "free_symbols", ()) if symbol.name == "i"]
    return parsed.subs(dict.fromkeys(symbols, sympy.I)) if symbols else parsed


def _differ_in_scale(gold: Any, answer: Any) -> bool:
    """Return whether two tiny numbers differ, which math-verify compares to so many decimals that both are zero."""
    try:
        sizes = [abs(complex(parsed.evalf(20))) for parsed in (gold, answer)]
    except (AttributeError, TypeError, ValueError):
        return False
    return 0 < max(sizes) < _TINY and abs(sizes[0] - sizes[1]) > _SAME_SCALE * max(sizes)


_TINY = 1e-6
_SAME_SCALE = 1e-4
_WARMING_PAIRS = (
    (r"\frac{1}{2}", "0.5"), (r"2\sqrt{3}", r"\sqrt{12}"), ("(x+1)^2", "x^2+2x+1"), (r"\{1,2\}", r"\{2,1\}"),
    (r"[0,1)\cup(2,\infty)", r"[0,1)"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
    ("x=5", "5"), ("1<x<2", "(1,2)"), (r"3+2i", "3-2i"), (r"\sin(x)", r"\cos(x)"), (r"\log_2 8", "3"),
)  # fmt: skip
"""Compared before the first request: forks inherit the grammar, the modules and the caches that these load."""


def _load_reasoning_gym() -> _Verifier:
    import reasoning_gym  # type: ignore[import-untyped]
    import sympy
    from reasoning_gym.dataset import ProceduralDataset  # type: ignore[import-untyped]

    sympy.simplify(sympy.parse_expr("sin(x)**2 + x**2/2 - 1"))  # loads what scorers use, once for all forks
    dataset_of = functools.lru_cache(64)(reasoning_gym.create_dataset)

    @functools.lru_cache(256)
    def prepare(name: str, index: int | None, sizes: tuple[tuple[str, int], ...]) -> tuple[str, Any, Any]:
        dataset = dataset_of(name, **dict(sizes))
        return name, dataset, None if index is None else dataset[index]

    def score(prepared: tuple[str, Any, Any], request: dict[str, Any]) -> float:
        (name, dataset, made_again), entry = prepared, request["entry"]
        if not may_be_evaluated(name, request["answer"]):
            return 0.0
        # Made again if that gives the same: the one sent has lost its tuples and sets to JSON.
        if made_again is not None and plain_json(made_again["question"]) == entry["question"]:
            entry = made_again
        return float(dataset.score_answer(request["answer"], entry))

    def only_compares(prepared: tuple[str, Any, Any]) -> bool:
        return type(prepared[1]).score_answer is ProceduralDataset.score_answer

    return _Verifier(
        score, lambda shared: prepare(shared["name"], shared["index"], tuple(shared["sizes"].items())), only_compares
    )


def _load_reasoning_gym_entries() -> _Verifier:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS  # type: ignore[import-untyped]

    def make(prepared: None, request: dict[str, Any]) -> list[Any]:
        name = request["generator"]
        if name not in DATASETS:
            close = difflib.get_close_matches(name, DATASETS, n=3)
            there = f"the closest are {', '.join(close)}" if close else f"it has {', '.join(sorted(DATASETS))}"
            raise ValueError(f"reasoning-gym has no such generator; {there}")
        dataset = reasoning_gym.create_dataset(name, size=request["size"], seed=request["seed"])
        return [plain_json(dataset[index]) for index in range(request["start"], request["stop"])]

    return _Verifier(make, max_reply_bytes=_MAX_ENTRIES_BYTES)
