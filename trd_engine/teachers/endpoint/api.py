"""A teacher behind an OpenAI-compatible server: it refines by text, and may score tokens.

Not a `Generator`: the server applies its own chat template. Where it is a vLLM it also says the token ids of what it
read and wrote; any other server's text becomes token ids here, by the student's tokenizer, and nowhere else is a
completion ever encoded from text. Such a server may spell out its answer's tokens with their log-probabilities: the
teacher's distribution at every token of the refined trajectory, in the very prompt that it was sampled from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trd_engine.generation.completions import ProgressMeter
from trd_engine.generation.protocol import TextRequest
from trd_engine.teachers.endpoint.client import Endpoint, EndpointClient, MalformedAnswerError
from trd_engine.teachers.endpoint.token_spelling import NotOneForOneError, Spelling, read_scores
from trd_engine.types import Completion, ProgressCallback, SamplingSettings, TokenScores

_OTHER_SHAPE = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What reading log-probabilities raises that are not spelled as OpenAI's are: an answer without them, not a bad one."""


@dataclass(frozen=True)
class Tokenized:
    """What a server's tokenizer makes of a text."""

    token_ids: tuple[int, ...]
    max_model_len: int
    """Tokens that the server takes at most, prompt and answer together."""


class EndpointTeacher:
    """Refines, and where the server is a vLLM scores, through one endpoint."""

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_of_turn_ids: Sequence[int],
        thinking: bool | None = None,
    ) -> None:
        """`tokenizer` is the student's, and `end_of_turn_ids` what its completions may end with, the usual one first.

        `thinking` goes to the server's chat template, where it is a vLLM; None leaves it to the template. Raises as
        `endpoint_address.pin_address`.
        """
        self._endpoint = endpoint
        self._client = EndpointClient(endpoint)
        self._tokenizer = tokenizer
        self._end_of_turn_ids = tuple(end_of_turn_ids)
        self._answer_top_k: int | None = None
        self._spelling: Spelling | None = None
        self._template_fields = {} if thinking is None else {"chat_template_kwargs": {"enable_thinking": thinking}}

    def score_answers(self, top_k: int) -> None:
        """From now on ask for the `top_k` best tokens at each token of an answer: completions then have scores."""
        self._answer_top_k, self._spelling = top_k, Spelling(self._tokenizer)

    def no_answer(self) -> Completion:
        """In the place of one that was not asked for; with scores of no token where the others have scores."""
        scores = None if self._answer_top_k is None else TokenScores.unscored((), self._answer_top_k)
        return Completion((), "", "length", scores=scores)

    def first_logprobs(
        self, message: str, sampling: SamplingSettings, top_k: int | None
    ) -> list[tuple[str, float]] | None:
        """What the server tells of the alternatives to an answer's first token; None where it tells nothing that can
        be read, or is not asked. One token is asked for. Raises as `complete`."""
        body = self._chat_body(TextRequest(message, seed=0), sampling) | {"max_tokens": 1, **_logprob_fields(top_k)}
        (found,) = self._client.post_all(
            "chat/completions", [body], lambda document, _: _first_logprobs(document), lambda _: None
        )
        return found

    def complete(
        self,
        requests: Sequence[TextRequest],
        sampling: SamplingSettings,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> list[Completion]:
        """One completion a request, in their order; `on_progress` may raise, as for `Generator.generate`.

        A text that is longer than `max_new_tokens` in the student's tokens is cut there. After `score_answers` each
        has the scores of its tokens, which tell nothing where the server's tokens are not the student's. Raises
        `TeacherUnreachableError` and `TeacherRefusedError`.
        """
        meter = ProgressMeter(on_progress, len(requests))

        def report(answers: Sequence[Completion]) -> None:
            meter.num_done = len(answers)
            meter.num_tokens = sum(len(answer.token_ids) for answer in answers)
            meter.report_if_due()

        bodies = [self._chat_body(request, sampling) for request in requests]
        completions = self._client.post_all(
            "chat/completions", bodies, lambda document, _: self._completion(document, sampling), report
        )
        meter.report()
        return completions

    def score(
        self,
        sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
        top_k: int,
        *,
        while_waiting: Callable[[], None] = lambda: None,
    ) -> list[TokenScores]:
        """The teacher's `top_k` best tokens at every completion token of each (prompt ids, completion ids).

        The ids must be the teacher's own: its tokenizer and the student's agree token for token. `top_k` is at most
        the student's vocabulary and the server's `max_logprobs`. `while_waiting` may raise, and ends it. Only for a
        vLLM server. Raises `TeacherUnreachableError` and `TeacherRefusedError`.
        """
        self._require_vllm("score")
        bodies = [self._score_body([*prompt, *completion], top_k) for prompt, completion in sequences]

        def scores(document: Any, number: int) -> TokenScores:
            prompt, completion = sequences[number]
            return _token_scores(_prompt_logprobs(document)[len(prompt) :], completion, top_k, len(self._tokenizer))

        return self._client.post_all("completions", bodies, scores, lambda _: while_waiting())

    def tokenize(self, texts: Sequence[str], *, as_chat: bool) -> list[Tokenized]:
        """What the server's tokenizer makes of each text: of a user's turn of a chat, in its template and ready for
        the answer, or of the bare text. Only for a vLLM server. Raises as `score`."""
        self._require_vllm("tokenize")
        bodies = [self._tokenize_body(text, as_chat=as_chat) for text in texts]
        return self._client.post_all("/tokenize", bodies, lambda document, _: _tokenized(document), lambda _: None)

    def _require_vllm(self, ability: str) -> None:
        if not self._endpoint.is_vllm:
            raise ValueError(
                f"teacher endpoint {self._endpoint.name} is not said to be a vLLM server: it cannot {ability}"
            )

    def _chat_body(self, request: TextRequest, sampling: SamplingSettings) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._endpoint.model,
            "messages": [{"role": "user", "content": request.message}],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": request.seed,
        }
        body |= _logprob_fields(self._answer_top_k)
        if self._endpoint.is_vllm:
            body |= {"top_k": max(sampling.top_k, 0), "return_token_ids": True, **self._template_fields}
        return body

    def _tokenize_body(self, text: str, *, as_chat: bool) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._endpoint.model}
        if as_chat:
            return body | {"messages": [{"role": "user", "content": text}], **self._template_fields}
        return body | {"prompt": text, "add_special_tokens": False}

    def _score_body(self, token_ids: list[int], top_k: int) -> dict[str, Any]:
        return {
            "model": self._endpoint.model,
            "prompt": token_ids,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": top_k,
        }

    def _completion(self, document: Any, sampling: SamplingSettings) -> Completion:
        choice = _only_choice(document)
        stopped = choice.get("finish_reason") == "stop"
        token_ids = _ids(choice.get("token_ids"))
        if token_ids is None:
            text = _text(choice)
            token_ids = _encode(self._tokenizer, text)
        else:
            text = str(self._tokenizer.decode(token_ids, skip_special_tokens=True))
        # An answer without a text gets no end either: nobody is to learn to say nothing.
        if stopped and token_ids and token_ids[-1] not in self._end_of_turn_ids:
            token_ids.append(self._end_of_turn_ids[0])
        is_whole = stopped and len(token_ids) <= sampling.max_new_tokens
        prompt_token_ids = _ids(document.get("prompt_token_ids"))
        completion = Completion(
            tuple(token_ids[: sampling.max_new_tokens]),
            text,
            "stop" if is_whole else "length",
            prompt_token_ids=None if prompt_token_ids is None else tuple(prompt_token_ids),
        )
        return completion if self._answer_top_k is None else self._scored(completion, choice, self._answer_top_k)

    def _scored(self, completion: Completion, choice: Mapping[str, Any], top_k: int) -> Completion:
        assert self._spelling is not None
        ids, ends = completion.token_ids, self._end_of_turn_ids
        try:
            scores = read_scores(_told(choice), ids, self._spelling, top_k, end_of_turn_ids=ends)
        except NotOneForOneError as error:
            reason = str(error)
        except _OTHER_SHAPE as error:
            reason = f"log-probabilities of another shape: {type(error).__name__}: {error}"
        else:
            return replace(completion, scores=scores)
        return replace(completion, scores=TokenScores.unscored(ids, top_k), unscored_reason=reason)


def _logprob_fields(top_k: int | None) -> dict[str, Any]:
    return {} if top_k is None else {"logprobs": True, "top_logprobs": top_k}


def _told(choice: Mapping[str, Any]) -> Any:
    """The answer's tokens with their log-probabilities; None where the server told none."""
    logprobs = choice.get("logprobs")
    return logprobs.get("content") if isinstance(logprobs, Mapping) else None


def _first_logprobs(document: Any) -> list[tuple[str, float]] | None:
    choice = _only_choice(document)
    try:
        return [(entry["token"], float(entry["logprob"])) for entry in _told(choice)[0]["top_logprobs"]]
    except _OTHER_SHAPE:
        return None


def _text(choice: Mapping[str, Any]) -> str:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else None
    if text is None and isinstance(message, Mapping) and choice.get("finish_reason") is not None:
        return ""  # the budget went into thoughts that the server keeps, or it refused, or the text was withheld
    if not isinstance(text, str):
        raise MalformedAnswerError("a choice without a message of text")
    return text.encode("utf-8", "replace").decode()  # JSON can spell half a character, which no tokenizer reads


def _ids(value: Any) -> list[int] | None:
    """Token ids, where the server says them."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(token_id, int) for token_id in value):
        raise MalformedAnswerError("token ids that are not whole numbers")
    return list(value)


def _tokenized(document: Any) -> Tokenized:
    tokens = _ids(document.get("tokens")) if isinstance(document, Mapping) else None
    length = document.get("max_model_len") if isinstance(document, Mapping) else None
    if tokens is None or not isinstance(length, int):
        raise MalformedAnswerError("no tokens or max_model_len: is the server a vLLM?")
    return Tokenized(tuple(tokens), length)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of foreign text, in which the spelling of a special token is mere text."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _only_choice(document: Any) -> Mapping[str, Any]:
    choices = document.get("choices") if isinstance(document, Mapping) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise MalformedAnswerError("not one choice")
    choice: Mapping[str, Any] = choices[0]
    return choice


def _prompt_logprobs(document: Any) -> list[Mapping[str, Any] | None]:
    positions = _only_choice(document).get("prompt_logprobs")
    if not isinstance(positions, list):
        raise MalformedAnswerError("no prompt_logprobs: is the server a vLLM?")
    return positions


def _token_scores(
    positions: Sequence[Mapping[str, Any] | None], completion: Sequence[int], top_k: int, num_vocabulary: int
) -> TokenScores:
    """Positions map token ids to log-probability and rank; beside the best they hold the token that was there."""
    if len(positions) != len(completion):
        raise MalformedAnswerError(f"prompt_logprobs of {len(positions)} tokens, not of {len(completion)}")
    rows, targets = [], []
    for position, target in zip(positions, completion, strict=True):
        if position is None or str(target) not in position:
            raise MalformedAnswerError(f"prompt_logprobs without the prompt's own token {target}")
        targets.append(float(position[str(target)]["logprob"]))
        best = sorted((entry["rank"], int(token_id), float(entry["logprob"])) for token_id, entry in position.items())
        known = [(token_id, logprob) for _, token_id, logprob in best if token_id < num_vocabulary][:top_k]
        # A padded vocabulary may put a token among the best that the student lacks: its place repeats another.
        rows.append(known + known[:1] * (top_k - len(known)))
    return TokenScores(
        torch.tensor([[token_id for token_id, _ in row] for row in rows], dtype=torch.int64),
        torch.tensor([[logprob for _, logprob in row] for row in rows], dtype=torch.float32),
        torch.tensor(targets, dtype=torch.float32),
    )
