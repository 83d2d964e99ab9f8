"""Chat templates are rendered as by transformers, and its tokenizers and ours give the same prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from trd_data.chat_template import ChatTemplate, FolderTokenizer
from trd_data.errors import PromptError
from trd_data.problems import Problem
from trd_data.prompts import PromptBuilder
from trd_data.templates import BY_TASK, choose_templates
from trd_engine.models.loading import load_tokenizer

ROOT = Path(__file__).parents[2]
TINY = ROOT / "testbed" / "models" / "tiny-student"
SMOLLM2 = ROOT / "models" / "smollm2-135m-instruct"

TEMPLATES = {
    "loop controls": "{% for m in messages %}{% if m.role %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "trimmed blocks": "{% for m in messages %}\n    {% if true %}\n  {{ m.content }}\n  {% endif %}\n{% endfor %}\n",
    "special tokens": "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}{{ unk_token is defined }}",
    "JSON": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
    "sorted JSON": "{{ {'b': '<é>', 'a': 1} | tojson(sort_keys=true) }}",
    "JSON of other separators": "{{ messages | tojson(ensure_ascii=true, separators=(',', ':')) }}",
    "generation": "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ messages[0].content }}{% endgeneration %}{{ a }}",
    "what is not given": "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ x is defined }}",
    "thinking": "{{ messages[0].content }}{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}",
    "year": "{{ strftime_now('%Y') }}",
    "macro": "{% macro turn(m) -%} <{{ m.role }}>{{ m.content | trim }} {%- endmacro %}{{ turn(messages[0]) }}",
    "namespace": "{% set n = namespace(i=0) %}{% for m in messages %}{% set n.i = n.i + 1 %}{% endfor %}{{ n.i }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("arguments", [{}, {"enable_thinking": False}])
def test_a_template_is_rendered_as_by_transformers(name: str, arguments: dict[str, bool]) -> None:
    tokenizer = load_tokenizer(str(TINY))
    text = " 1 < 2 & {problem} é 🙂\n "
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        chat_template=TEMPLATES[name],
        add_generation_prompt=True,
        tokenize=False,
        **arguments,
    )
    assert ChatTemplate(TEMPLATES[name], tokenizer.special_tokens_map).render(text, **arguments) == expected


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "has no chat template"),
        ({"other": "x"}, "has no chat template"),
        ("{% if %}", "cannot be read"),
        ("{{ raise_exception('no user here') }}", "fails: no user here"),
        ("{{ messages.__class__.__mro__ }}{{ ''.__class__.mro() }}", "fails: "),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(source: object, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        ChatTemplate(source, {}).render("x")


@pytest.mark.parametrize("how", ["in the configuration", "a list of named ones", "in a file, which comes first"])
def test_the_template_is_found_where_transformers_finds_it(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if how == "in a file, which comes first":
        config["chat_template"] = "not this"
    else:
        (folder / "chat_template.jinja").unlink()
        named = [{"name": "tool_use", "template": "not this"}, {"name": "default", "template": source}]
        config["chat_template"] = source if how == "in the configuration" else named
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert_same_prompts(folder, Problem("0", "1+2", "3", "1+2=3"), 1000, "math")


def assert_same_prompts(folder: Path, problem: Problem, max_tokens: int, task: str) -> None:
    templates = choose_templates(BY_TASK[task], str(folder))
    ours = PromptBuilder(FolderTokenizer(folder), templates)
    theirs = PromptBuilder(load_tokenizer(str(folder)), templates)
    assert ours.solve(problem) == theirs.solve(problem)
    assert ours.privileged(problem, max_tokens=max_tokens) == theirs.privileged(problem, max_tokens=max_tokens)
    for privileged in (False, True):
        for attempt in ("", "first 1, then 2 " * 20):
            found, expected = (
                builder.refine(problem, attempt, privileged=privileged, max_tokens=max_tokens)
                for builder in (ours, theirs)
            )
            assert found == expected
            assert ours.decode_prompt(found.token_ids) == theirs.decode_prompt(found.token_ids)


@pytest.mark.parametrize("max_tokens", [1000, 40, 10])
def test_a_small_models_prompts_are_the_same_with_either_tokenizer(max_tokens: int) -> None:
    assert_same_prompts(TINY, Problem("0", "29+2*9#8+2*9", "95", "31*9#8+2*9|79#8+2*9|\\boxed{95}"), max_tokens, "math")


def test_truncation_and_padding_in_the_tokenizers_file_are_turned_off(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    document["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    assert_same_prompts(folder, Problem("0", "29+2*9#8+2*9", "95"), 1000, "math")


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [4000, 150])
def test_a_real_models_prompts_are_the_same_with_either_tokenizer(max_tokens: int) -> None:
    problem = Problem("0", "What is {x} in 3·x = ½?\n\n", "1/6", "Divide by 3: x = ⅙.\nSo \\boxed{1/6}. " * 20)
    for task in BY_TASK:
        assert_same_prompts(SMOLLM2, problem, max_tokens, task)
