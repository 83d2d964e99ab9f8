"""Load models and tokenizers, and read the properties that the engine needs.

Safetensors only, never code from the model's folder. Names of architectures appear nowhere: a model is
what `AutoModelForCausalLM` makes of its configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trd_data.errors import PromptError
from trd_data.prompts import PromptBuilder
from trd_data.stop_ids import StopIds, find_stop_ids
from trd_data.templates import PromptTemplates, choose_templates
from trd_engine.config import RunConfig
from trd_engine.models.sharded_loading import set_shards_apart, sharded_loading
from trd_engine.runtime.distributed import ALONE, World
from trd_engine.runtime.errors import ContextTooLongError, ModelNotFoundError, ModelRefusedError

TrainedModel = PreTrainedModel | PeftModel
"""A student: all of its weights are trained, or those of its adapter."""


def load_model(source: str, *, dtype: torch.dtype, device: torch.device, world: World = ALONE) -> PreTrainedModel:
    """Return the causal language model in the folder or hub id `source`, on `device`, in eval mode.

    Of several processes each reads its shards alone, and `fsdp.shard` makes the model usable; collective then.
    Raises `ModelNotFoundError` and `ModelRefusedError`.
    """
    _refuse_unusable(source)
    try:
        with nullcontext() if world.size == 1 else sharded_loading(world):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, with the missing ones
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelRefusedError(f"model {source!r} cannot be loaded: {error}") from error
    model: PreTrainedModel = loaded[0]
    _require_all_weights(source, loaded[1])
    _repair_generation_settings(source, model)
    if world.size > 1:
        set_shards_apart(model, device)
    model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides nn.Module.to's overloads
    model.eval()
    return model


def _require_all_weights(source: str, found: Mapping[str, Any]) -> None:
    """Refuse a model whose files lack some of its weights, which transformers would fill with random numbers."""
    names = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
    if names:
        raise ModelRefusedError(
            f"model {source!r}: its files lack {len(names)} of the weights that its config.json describes, or have "
            f"them in another shape, first {names[0]}; copy the whole model again"
        )


def export_dtype(source: str) -> torch.dtype | None:
    """Return bf16 if the weights in a model's folder are stored in it; None: export what was trained as it is."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    dtype = config.dtype or config.get_text_config().dtype
    return dtype if dtype == torch.bfloat16 else None


def _repair_generation_settings(source: str, model: PreTrainedModel) -> None:
    """Correct generation settings that transformers loads but refuses to save, which would end the run at a checkpoint.

    Usually they have a temperature or a top_p but lack `do_sample`, without which these have no effect.
    """
    settings: GenerationConfig | None = getattr(model, "generation_config", None)
    if settings is None:
        return
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True
        try:
            settings.validate(strict=True)
        except ValueError as error:
            raise ModelRefusedError(
                f"the generation_config.json of model {source!r} is invalid and could not be saved again: {error}"
            ) from error


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the model in `source`; it must have a chat template. Raises as `load_model`."""
    _refuse_unusable(source)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelRefusedError(f"the tokenizer of {source!r} cannot be loaded: {error}") from error
    if not tokenizer.chat_template:
        raise ModelRefusedError(f"model {source!r} has no chat template, which prompts need; add one to its tokenizer")
    return tokenizer


def make_prompt_builder(
    tokenizer: PreTrainedTokenizerBase, source: str, task: PromptTemplates, config: RunConfig
) -> PromptBuilder:
    """Return the builder of the prompts of the model in `source`; raises `ModelRefusedError` if its chat template or
    its own templates cannot be used."""
    try:
        templates = choose_templates(task, source, config.prompts.model_dump())
        builder = PromptBuilder(tokenizer, templates, thinking=config.sampling.thinking)
        builder.chat_text("?")  # templates may fail only when they are rendered
    except PromptError as error:
        raise ModelRefusedError(f"model {source!r}: {error}") from error
    return builder


def _refuse_unusable(source: str) -> None:
    """Refuse a configuration with `auto_map`, which names custom code that some loaders would run, and one of quantised
    weights, which cannot be trained; on some GPUs their layers are code from a hub."""
    folder = Path(source)
    if source.startswith(("/", ".")) and not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"model {source!r}: no such folder, or it has no config.json")
    try:
        config, _ = AutoConfig.from_pretrained(source, trust_remote_code=False, return_unused_kwargs=True)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"model {source!r} was not found: {error}") from error
    if getattr(config, "auto_map", None):
        raise ModelRefusedError(
            f"model {source!r} requires custom code (auto_map), which is never run; choose a model without it"
        )
    kernel = getattr(config, "_attn_implementation", None)
    if isinstance(kernel, str) and "/" in kernel:
        raise ModelRefusedError(f"model {source!r} names {kernel!r}, code from a hub, which is never run")
    if any(getattr(part, "quantization_config", None) for part in (config, config.get_text_config())):
        raise ModelRefusedError(
            f"the weights of model {source!r} are quantised (quantization_config in its config.json), and a run reads "
            "only plain ones; name a folder of them in 16 or 32 bits, or for a teacher a server"
        )


def stop_ids(source: str, tokenizer: PreTrainedTokenizerBase) -> StopIds:
    """Return the tokens that end a completion of the model in `source`; raises `ModelRefusedError`."""
    specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    try:
        return find_stop_ids(Path(source), tokenizer.get_vocab(), specials.union(tokenizer.all_special_tokens))
    except PromptError as error:
        raise ModelRefusedError(f"model {source!r}: {error}") from error


def end_of_turn_ids(source: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return every token that ends a completion, wherever the folder's files name it, see `find_stop_ids`."""
    found = stop_ids(source, tokenizer).ids
    if not found:
        raise ModelRefusedError(
            f"model {source!r} has no end-of-turn token, so its completions would never end; set eos_token_id in its "
            "generation_config.json"
        )
    return found


def special_token_ids(source: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return all tokens that stand for no text. A tokenizer's list may lack chat marks and end-of-turn tokens."""
    marks = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return tuple(sorted(marks.union(tokenizer.all_special_ids, end_of_turn_ids(source, tokenizer))))


def require_context(name: str, source: str, *, prompt_tokens: int, new_tokens: int, fields: str) -> None:
    """Raise `ContextTooLongError` unless a prompt and a completion of these budgets fit the model's context."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and prompt_tokens + new_tokens > limit:
        raise ContextTooLongError(
            f"{fields} = {prompt_tokens} + {new_tokens} tokens, but the context of the {name} {source!r} "
            f"is {limit}; lower their sum to {limit}"
        )


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the model below its head: token ids in, final hidden states out. LoRA layers inside stay in force."""
    causal_lm = causal_lm_of(model)
    backbone: nn.Module = causal_lm.base_model
    if backbone is causal_lm:  # a class whose prefix names no part of it, such as Llama 4's
        backbone = next(part for part in causal_lm.children() if isinstance(part, PreTrainedModel))
    return backbone


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and restore each module's mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True  # not .train(): that would switch the children too


def causal_lm_of(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a PEFT wrapper, or `model` itself."""
    causal_lm = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(causal_lm, PreTrainedModel)
    return causal_lm


def context_of(model: nn.Module) -> int | None:
    """Return the number of tokens that the model can read at once; None if its configuration names no limit."""
    limit: int | None = getattr(causal_lm_of(model).config.get_text_config(), "max_position_embeddings", None)
    return limit
