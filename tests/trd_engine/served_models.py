"""A scripted server that speaks as a vLLM does, with the numbers of a real small model behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trd_engine.generation.scripted_server import Received, Reply
from tests.trd_engine.tiny_runs import MODELS

CONTEXT = 512


class ServedModel:
    """Answers `/tokenize`, chat by greedy decoding, and log-probabilities of prompts."""

    _decoded: ClassVar[dict[tuple[str, tuple[int, ...], int], list[int]]] = {}
    """Answers by model, prompt and length: tests send the same prompts, and decoding takes most of their time."""

    def __init__(self, name: str = "tiny-teacher") -> None:
        self.name = name
        self.tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
        self.model = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32).eval()
        self._lock = threading.Lock()

    def __call__(self, received: Received, number: int) -> Reply:
        with self._lock:
            return Reply(document=self._answers[received.path](received.body))

    @property
    def _answers(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        return {
            "/tokenize": self._tokenize,
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._score,
        }

    def _prompt(self, body: dict[str, Any]) -> list[int]:
        text = self.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        tokens = self._prompt(body) if "messages" in body else self.tokenizer.encode(body["prompt"])
        return {"tokens": tokens, "count": len(tokens), "max_model_len": CONTEXT}

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = self._prompt(body)
        key = (self.name, tuple(prompt), body["max_tokens"])
        if key not in self._decoded:
            ids = torch.tensor([prompt])
            output = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=body["max_tokens"]
            )
            self._decoded[key] = output[0, len(prompt) :].tolist()
        tokens = self._decoded[key]
        stopped = tokens[-1] == self.tokenizer.eos_token_id
        choice: dict[str, Any] = {
            "message": {"role": "assistant", "content": self.tokenizer.decode(tokens, skip_special_tokens=True)},
            "finish_reason": "stop" if stopped else "length",
        }
        if body.get("logprobs"):
            choice["logprobs"] = {"content": self._scored(prompt, tokens, body["top_logprobs"])}
        if not body.get("return_token_ids"):
            return {"choices": [choice]}
        return {"choices": [{**choice, "token_ids": tokens}], "prompt_token_ids": prompt}

    @torch.no_grad()
    def _scored(self, prompt: list[int], tokens: list[int], top_k: int) -> list[dict[str, Any]]:
        """Spell out each token of an answer and its alternatives, as any OpenAI-compatible server does."""
        logprobs_TV = self.model(torch.tensor([[*prompt, *tokens]])).logits[0].log_softmax(-1)
        scored = []
        for row_V, token_id in zip(logprobs_TV[len(prompt) - 1 :], tokens, strict=False):
            best = [self._spelled(i, row_V) for i in row_V.topk(top_k).indices.tolist()]
            scored.append({**self._spelled(token_id, row_V), "top_logprobs": best})
        return scored

    def _spelled(self, token_id: int, logprobs_V: torch.Tensor) -> dict[str, Any]:
        token = self.tokenizer.decode([token_id])
        return {"token": token, "bytes": list(token.encode()), "logprob": float(logprobs_V[token_id])}

    @torch.no_grad()
    def _score(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, top_k = body["prompt"], body["prompt_logprobs"]
        logprobs_TV = self.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        positions: list[dict[str, Any] | None] = [None]
        for row_V, target in zip(logprobs_TV, prompt[1:], strict=False):
            order = row_V.argsort(descending=True).tolist()
            shown = [*order[:top_k], *([target] if target not in order[:top_k] else [])]
            positions.append(
                {str(t): {"logprob": float(row_V[t]), "rank": order.index(t) + 1, "decoded_token": ""} for t in shown}
            )
        return {"choices": [{"text": "", "prompt_logprobs": positions}]}
