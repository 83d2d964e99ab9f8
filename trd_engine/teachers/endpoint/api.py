"""A teacher behind an OpenAI-compatible server: it refines by text, and may score tokens.

Not a `Generator`: the server applies its own chat template. A vLLM server also returns the token ids of prompt and
answer. Another server's text is encoded here by the student's tokenizer; this is the only place where a completion is
encoded from text. Such a server may return the bytes and log-probabilities of its answer's tokens: the teacher's
distribution at every token of the refined trajectory, after the prompt that it was sampled from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trd_engine.generation.completions import ProgressMeter
from trd_engine.generation.protocol import TextRequest
from trd_engine.generation.served.client import Endpoint, EndpointClient, MalformedAnswerError
from trd_engine.teachers.endpoint.token_spelling import NotOneForOneError, Spelling, read_scores
from trd_engine.types import Completion, CompletionCallback, ProgressCallback, SamplingSettings, TokenScores

_NEUTRAL = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0}
"""For these, vLLM takes the values of the model's generation_config.json where a request has none."""
_UNEXPECTED_FORM = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""Errors of reading log-probabilities in another form than OpenAI's. The answer counts as one without them."""


@dataclass(frozen=True)
class Tokenized:
    """A text as a server's tokenizer encodes it."""

    token_ids: tuple[int, ...]
    max_model_len: int
    """Upper bound on the tokens of prompt and answer together."""


class EndpointTeacher:
    """Refines through one endpoint, and scores if the server is vLLM."""

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_of_turn_ids: Sequence[int],
        thinking: bool | None = None,
    ) -> None:
        """Resolve the endpoint. `tokenizer` is the student's; completions may end with one of `end_of_turn_ids`, the
        usual one first. `thinking` is passed to a vLLM server's chat template; None: the template's default.

        Raises the errors of `servers.pin_address`.
        """
        self._endpoint = endpoint
        self._client = EndpointClient(endpoint)
        self.tokenizer = tokenizer
        self._end_of_turn_ids = tuple(end_of_turn_ids)
        self._answer_top_k: int | None = None
        self._spelling: Spelling | None = None
        self._template_fields = {} if thinking is None else {"chat_template_kwargs": {"enable_thinking": thinking}}

    def score_answers(self, top_k: int) -> None:
        """Request the `top_k` most likely tokens with each token of all later answers, which then have scores."""
        self._answer_top_k, self._spelling = top_k, Spelling(self.tokenizer)

    def no_answer(self) -> Completion:
        """Return an empty completion for a prompt that was not sent, with empty scores if the others have scores."""
        scores = None if self._answer_top_k is None else TokenScores.unscored((), self._answer_top_k)
        return Completion((), "", "length", scores=scores)

    def first_logprobs(
        self, message: str, sampling: SamplingSettings, top_k: int | None
    ) -> list[tuple[str, float]] | None:
        """Request one token, and return the log-probabilities of its alternatives; None if they are not requested or
        cannot be read. Raises the errors of `complete`."""
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
        on_completion: CompletionCallback | None = None,
    ) -> list[Completion]:
        """Return one completion per request, in order; `on_progress` may raise, as for `Generator.generate`.

        A text longer than `max_new_tokens` of the student's tokens is cut there. After `score_answers` completions have
        scores, with unscored tokens if the server's tokens do not map to the student's. Raises
        `TeacherUnreachableError` and `TeacherRefusedError`.
        """
        meter = ProgressMeter(on_progress, len(requests))

        def read(document: Any, number: int) -> Completion:
            completion = self._completion(document, sampling)
            if on_completion is not None:
                on_completion(number, completion)
            return completion

        bodies = [self._chat_body(request, sampling) for request in requests]
        completions = self._client.post_all("chat/completions", bodies, read, meter.count)
        meter.report()
        return completions

    def score(
        self,
        sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
        top_k: int,
        *,
        while_waiting: Callable[[], None] = lambda: None,
    ) -> list[TokenScores]:
        """Return the teacher's `top_k` most likely tokens at every completion token of (prompt ids, completion ids).

        Both tokenizers must agree on the ids. `top_k` is at most the student's vocabulary and the server's
        `max_logprobs`. `while_waiting` may raise to cancel the requests. For vLLM servers only. Raises
        `TeacherUnreachableError` and `TeacherRefusedError`.
        """
        self._require_vllm("score")
        body = {"model": self._endpoint.model, "max_tokens": 1, "temperature": 0, "prompt_logprobs": top_k}
        bodies = [body | {"prompt": [*prompt, *completion]} for prompt, completion in sequences]

        def scores(document: Any, number: int) -> TokenScores:
            prompt, completion = sequences[number]
            positions = _only_choice(document).get("prompt_logprobs")
            if not isinstance(positions, list):
                raise MalformedAnswerError("no prompt_logprobs: is the server vLLM?")
            return _token_scores(positions[len(prompt) :], completion, top_k, len(self.tokenizer))

        return self._client.post_all("completions", bodies, scores, lambda _: while_waiting())

    def tokenize(self, texts: Sequence[str], *, as_chat: bool) -> list[Tokenized]:
        """Encode each text by the server's tokenizer: as a user's turn in the chat template, up to the start of the
        answer, or as bare text. For vLLM servers only. Raises the errors of `score`."""
        self._require_vllm("tokenize")
        bodies = [self._tokenize_body(text, as_chat=as_chat) for text in texts]
        return self._client.post_all("/tokenize", bodies, lambda document, _: _tokenized(document), lambda _: None)

    def _require_vllm(self, ability: str) -> None:
        if not self._endpoint.is_vllm:
            raise ValueError(
                f"teacher endpoint {self._endpoint.name} is not configured as a vLLM server and cannot {ability}; set "
                "its api to vllm if it is one"
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
            body |= {"top_k": max(sampling.top_k, 0), "return_token_ids": True, **_NEUTRAL, **self._template_fields}
        return body

    def _tokenize_body(self, text: str, *, as_chat: bool) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._endpoint.model}
        if as_chat:
            return body | {"messages": [{"role": "user", "content": text}], **self._template_fields}
        return body | {"prompt": text, "add_special_tokens": False}

    def _completion(self, document: Any, sampling: SamplingSettings) -> Completion:
        choice = _only_choice(document)
        stopped = choice.get("finish_reason") == "stop"
        token_ids = _ids(choice.get("token_ids"))
        if token_ids is None:
            text = _text(choice)
            # In text from a server the name of a special token is ordinary text.
            token_ids = list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        else:
            text = str(self.tokenizer.decode(token_ids, skip_special_tokens=True))
        # An empty answer gets no end of turn, so that the student is not trained to answer nothing.
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
            scores = read_scores(_logprob_content(choice), ids, self._spelling, top_k, end_of_turn_ids=ends)
        except NotOneForOneError as error:
            reason = str(error)
        except _UNEXPECTED_FORM as error:
            reason = f"log-probabilities of an unexpected form: {type(error).__name__}: {error}"
        else:
            return replace(completion, scores=scores)
        return replace(completion, scores=TokenScores.unscored(ids, top_k), unscored_reason=reason)


def _logprob_fields(top_k: int | None) -> dict[str, Any]:
    return {} if top_k is None else {"logprobs": True, "top_logprobs": top_k}


def _logprob_content(choice: Mapping[str, Any]) -> Any:
    """Return the answer's tokens with their log-probabilities; None if the server returned none."""
    logprobs = choice.get("logprobs")
    return logprobs.get("content") if isinstance(logprobs, Mapping) else None


def _first_logprobs(document: Any) -> list[tuple[str, float]] | None:
    choice = _only_choice(document)
    try:
        return [(entry["token"], float(entry["logprob"])) for entry in _logprob_content(choice)[0]["top_logprobs"]]
    except _UNEXPECTED_FORM:
        return None


def _text(choice: Mapping[str, Any]) -> str:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else None
    if text is None and isinstance(message, Mapping) and choice.get("finish_reason") is not None:
        return ""  # e.g. the budget was spent on hidden reasoning, or the server refused
    if not isinstance(text, str):
        raise MalformedAnswerError("a choice without message text")
    return text.encode("utf-8", "replace").decode()  # JSON allows lone surrogates, which no tokenizer accepts


def _ids(value: Any) -> list[int] | None:
    """Check token ids; None if the server returned none."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(token_id, int) for token_id in value):
        raise MalformedAnswerError("token ids that are not integers")
    return list(value)


def _tokenized(document: Any) -> Tokenized:
    tokens = _ids(document.get("tokens")) if isinstance(document, Mapping) else None
    length = document.get("max_model_len") if isinstance(document, Mapping) else None
    if tokens is None or not isinstance(length, int):
        raise MalformedAnswerError("no tokens or max_model_len: is the server vLLM?")
    return Tokenized(tuple(tokens), length)


def _only_choice(document: Any) -> Mapping[str, Any]:
    choices = document.get("choices") if isinstance(document, Mapping) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise MalformedAnswerError("an answer without exactly one choice")
    choice: Mapping[str, Any] = choices[0]
    return choice


def _token_scores(
    positions: Sequence[Mapping[str, Any] | None], completion: Sequence[int], top_k: int, num_vocabulary: int
) -> TokenScores:
    """Read scores from positions, which map the best token ids and the actual one to log-probability and rank."""
    if len(positions) != len(completion):
        raise MalformedAnswerError(f"prompt_logprobs of {len(positions)} tokens instead of {len(completion)}")
    rows, targets = [], []
    for position, target in zip(positions, completion, strict=True):
        if position is None or str(target) not in position:
            raise MalformedAnswerError(f"prompt_logprobs without the prompt's token {target}")
        targets.append(float(position[str(target)]["logprob"]))
        best = sorted((entry["rank"], int(token_id), float(entry["logprob"])) for token_id, entry in position.items())
        known = [(token_id, logprob) for _, token_id, logprob in best if token_id < num_vocabulary][:top_k]
        # A padded vocabulary may have a best token that the student lacks: repeat the first one in its place.
        rows.append(known + known[:1] * (top_k - len(known)))
    return TokenScores(
        torch.tensor([[token_id for token_id, _ in row] for row in rows], dtype=torch.int64),
        torch.tensor([[logprob for _, logprob in row] for row in rows], dtype=torch.float32),
        torch.tensor(targets, dtype=torch.float32),
    )
