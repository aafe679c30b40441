"""Texts rendered without transformers are those of transformers, for every feature that templates use."""

import json
import subprocess
import sys

import pytest
from support.checkpoint_files import tiny_tokenizer
from transformers import AutoTokenizer

from rgtrain.models.template_only_tokenizer import TemplateOnlyTokenizer

MESSAGES = [
    {"role": "system", "content": " Be <brief> & é.\n"},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
]
TEMPLATES = {
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}{{ pad_token }}",
    "white space": "{% for m in messages %}\n    {% if m.role %}\n  {{ m.content }}\n  {% endif %}\n{% endfor %}",
    "json": "{{ messages | tojson }}\n{{ messages[0] | tojson(indent=2, sort_keys=true) }}",
    "loop controls": "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "marks in a comment": "{#- {% generation %} -#}{{ messages[0].content }}",
    "marks": "{% for m in messages %}a {%- generation %} {{ m.content }} {% endgeneration -%} b\n{% endfor %}",
    "arguments": "{{ mode }}{{ tools is none }}{{ documents is none }}{{ undefined }}{{ add_generation_prompt }}",
    "date": "{{ strftime_now('%Y') }}",
}


@pytest.fixture
def folder(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_texts_are_those_of_transformers(folder, template):
    options = {"add_generation_prompt": True, "tokenize": False, "chat_template": template, "mode": "/no_think"}
    texts = [
        tokenizer.apply_chat_template(MESSAGES, **options)
        for tokenizer in (AutoTokenizer.from_pretrained(folder), TemplateOnlyTokenizer(folder))
    ]
    assert texts[0] == texts[1]


def test_the_same_templates_are_found_as_by_transformers(folder):
    def agree() -> bool:
        return TemplateOnlyTokenizer(folder).chat_template == AutoTokenizer.from_pretrained(folder).chat_template

    assert agree()
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    assert agree()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": "{{ 1 }}"}, {"name": "rag", "template": "{{ 2 }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": named}))
    assert agree()
    (folder / "additional_chat_templates" / "rag.jinja").unlink()
    (folder / "chat_template.jinja").unlink()
    assert agree()


def test_the_checks_of_a_start_import_no_transformers(folder):
    code = "import sys, rgtrain.preflight.checks, rgtrain.models.template_only_tokenizer as t, pathlib\n"
    code += "tokenizer = t.TemplateOnlyTokenizer(pathlib.Path(sys.argv[1]))\n"
    code += "tokenizer.apply_chat_template([], chat_template='{{ 1 }}', add_generation_prompt=True, tokenize=False)\n"
    code += "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
