"""Chat templates are rendered as by transformers, and its tokenizers and ours give the same prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

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
    "a loop without items": "{% for m in [] %}{{ m }}{% else %}none{% endfor %}{% for k in x %}{{ k }}{% endfor %}",
    "loop variables": "{% for m in messages * 3 %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.previtem is "
    "defined }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "concatenation": "{{ '<' ~ messages[0].role ~ 1 ~ none ~ x ~ '>' ~ (1 ~ 2) }}{% set a = 'b' ~ 'c' %}{{ a }}",
    "comparisons": "{{ 1 < 2 <= 2 != 3 }}{{ 'user' in messages[0].values() }}{{ x == none }}{{ 'a' not in 'abc' }}",
    "filters": "{{ messages | map(attribute='role') | list | join('-') }}{{ [3, 1] | sort }}{{ [1, 2] | sum }}"
    "{{ 'a b' | title | replace(' ', '_') | upper | indent(2) }}{{ {'b': 1, 'a': 2} | dictsort }}{{ '<' | e }}",
    "selections": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ x | default('none') }}",
    "methods": "{{ messages[0].content.strip().split('&')[0].rstrip('x') }}{{ '{} {:>5}'.format(1, 'a') }}",
    "numbers": "{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ -3 | abs }}{{ '%05.2f' % 3.14159 }}{{ 'a' * 3 }}{{ [1] * 2 }}",
    "slices": "{{ messages[0].content[::-1] }}{{ messages[1:] }}{{ messages[-1].role }}{{ 'abc'[1:] }}",
    "items": "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{{ messages[0].get('x', 1) }}",
    "blocks": "{% set t %}a{{ messages[0].role }}{% endset %}{{ t }}{% filter upper %}b{% endfilter %}",
    "call blocks": "{% macro w(x) %}[{{ caller(x) }}]{% endmacro %}{% call(y) w(3) %}{{ y }}{% endcall %}",
    "a condition in a loop": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    "tests": "{{ messages is iterable }}{{ 'a' is string }}{{ 1 is odd }}{{ x is undefined }}{{ messages is mapping }}",
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


TOKEN = {"content": "1", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
WRITES_TOKENS = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}<zz> 0 x{% endfor %}{{ image_token }}"
)
FILES: dict[str, dict[str, Any]] = {
    "bos in the older file alone": {"special_tokens_map.json": {"bos_token": "1"}},
    "bos in the older file, as a token": {"special_tokens_map.json": {"bos_token": TOKEN}},
    "bos as a token": {"tokenizer_config.json": {"bos_token": {"__type": "AddedToken", **TOKEN, "special": True}}},
    "bos null in the newer file": {
        "tokenizer_config.json": {"bos_token": None},
        "special_tokens_map.json": {"bos_token": "1"},
    },
    "two bos": {"tokenizer_config.json": {"bos_token": "1"}, "special_tokens_map.json": {"bos_token": "2"}},
    "an older file that is not read": {
        "tokenizer_config.json": {"added_tokens_decoder": {"1": {**TOKEN, "content": "<end>", "special": True}}},
        "special_tokens_map.json": {"bos_token": "1"},
    },
    "a bos that the vocabulary lacks": {"tokenizer_config.json": {"bos_token": "<s>"}},
    "bos is to be added": {"tokenizer_config.json": {"bos_token": "1", "add_bos_token": True}},
    "an added token": {"tokenizer_config.json": {"added_tokens_decoder": {"28": {**TOKEN, "content": "<zz>"}}}},
    "an added token, in the older file": {"added_tokens.json": {"<zz>": 28}},
    "an added special token, in the older file": {
        "added_tokens.json": {"<zz>": 28},
        "special_tokens_map.json": {"bos_token": "<zz>"},
    },
    "extra tokens": {"tokenizer_config.json": {"extra_special_tokens": ["<zz>"]}},
    "additional tokens": {"tokenizer_config.json": {"extra_special_tokens": [], "additional_special_tokens": ["<zz>"]}},
    "named extra tokens": {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<img>"}}},
    "a token of another name": {"tokenizer_config.json": {"image_token": "<img>"}},
    "a token of another name, in the older file": {"special_tokens_map.json": {"image_token": "<img>"}},
    "a token that takes the spaces around": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {"4": {**TOKEN, "content": "0", "lstrip": True, "rstrip": True, "special": True}}
        }
    },
    "special tokens are text": {"tokenizer_config.json": {"split_special_tokens": True}},
    "a short maximum": {"tokenizer_config.json": {"model_max_length": 4, "truncation_side": "left"}},
    "padding and truncation": {
        "tokenizer.json": {
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": {
                "strategy": {"Fixed": 64},
                "direction": "Left",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "<pad>",
            },
        }
    },
}


@pytest.mark.parametrize("changes", FILES.values(), ids=FILES)
def test_tokens_are_found_where_transformers_finds_them(changes: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    (folder / "chat_template.jinja").write_text(WRITES_TOKENS, encoding="utf-8")
    for name, change in changes.items():
        path = folder / name
        document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**document, **change}), encoding="utf-8")
    assert FolderTokenizer(folder).special_tokens_map == load_tokenizer(str(folder)).special_tokens_map
    assert_same_prompts(folder, Problem("0", "1+2", "3", "1+2=3"), 1000, "math")


@pytest.mark.parametrize(
    "how", ["in the configuration", "a list of named ones", "in a file, which comes first", "in the folder"]
)
def test_the_template_is_found_where_transformers_finds_it(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if how == "in a file, which comes first":
        config["chat_template"] = "not this"
    elif how == "in the folder":
        (folder / "additional_chat_templates").mkdir()
        (folder / "chat_template.jinja").rename(folder / "additional_chat_templates" / "default.jinja")
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


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [4000, 150])
def test_a_real_models_prompts_are_the_same_with_either_tokenizer(max_tokens: int) -> None:
    problem = Problem("0", "What is {x} in 3·x = ½?\n\n", "1/6", "Divide by 3: x = ⅙.\nSo \\boxed{1/6}. " * 20)
    for task in BY_TASK:
        assert_same_prompts(SMOLLM2, problem, max_tokens, task)
