"""A chat template may handle roles in its own way, but is refused if a part of the prompt is lost."""

import pytest

from rgtrain.errors import ConfigError
from rgtrain.problems import PromptRenderer, PromptStyle
from rgtrain.problems.prompt_rendering import check_template_arguments
from rgtrain.problems.prompts import sample_messages

CHATML = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
# It drops roles that it does not know, and puts a default system prompt in their place.
QWEN25 = """{%- if messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- else %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}
{%- for m in messages %}{% if m.role == 'user' or m.role == 'assistant' %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
# Earlier think parts are dropped, and an empty one is written for the last turn or if thinking is disabled.
QWEN3 = """{%- for m in messages %}{% set content = m.content %}
{%- if m.role == 'assistant' %}{% set content = content.split('</think>')[-1].lstrip('\n') %}
{%- if loop.last %}{% set content = '<think>\n\n</think>\n\n' + content %}{% endif %}{% endif %}
{{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""
DEEPSEEK_R1 = """{%- for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}
{{- '<|User|>' + m.content }}{% else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"""
LLAMA3 = """{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
# The system prompt is merged into the first user turn.
MERGING = """{%- set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}
{%- for m in messages if m.role != 'system' %}{% set model = 'model' if m.role == 'assistant' else m.role %}
{{- '<start_of_turn>' + model + '\n' + (system if loop.first else '') + m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
# The system prompt precedes the last question, and there is no generation prompt.
MISTRAL = """{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}
{%- else %}{% set turns = messages %}{% endif %}
{%- for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('After the optional system message, conversation roles must alternate user/assistant') }}{% endif %}
{%- if m.role == 'user' and loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}
{%- elif m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}
{%- endfor %}"""
HARMONY = """{%- for m in messages %}{% if m.role == 'assistant' %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
{%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""
PLAIN = "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}"
# A template for prompts only, which refuses an answered turn.
PROMPT_ONLY = """{%- if messages[-1].role != 'user' %}{{ raise_exception('no question') }}{% endif %}
{%- for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{{ 'assistant:' }}"""
WHOLE = {
    "ChatML": CHATML,
    "Qwen2.5": QWEN25,
    "Qwen3": QWEN3,
    "DeepSeek-R1": DEEPSEEK_R1,
    "Llama 3": LLAMA3,
    "merging": MERGING,
    "Mistral": MISTRAL,
    "harmony": HARMONY,
    "plain": PLAIN,
    "prompts only": PROMPT_ONLY,
}
NO_SYSTEM = CHATML.replace("for m in messages", "for m in messages if m.role != 'system'")
LAST_ONLY = CHATML.replace("for m in messages", "for m in messages[-1:]")
NO_PROMPT = CHATML.split("{%- if add")[0]
SWAPPED = CHATML.replace("m.role +", "{'user': 'assistant', 'assistant': 'user'}.get(m.role, m.role) +")
RAISING = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no system message') }}{% endif %}" + CHATML
SYSTEM_LAST = """{% for m in messages if m.role != 'system' %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}
{%- if messages[0].role == 'system' %}{{ 'system: ' + messages[0].content + '\n' }}{% endif %}{{ 'assistant: ' }}"""
SYSTEM, EXAMPLES = PromptStyle("Answer in <answer> tags.\n "), PromptStyle("Be very brief.", num_examples=1)
DEVELOPER, IN_QUESTION = PromptStyle("Be very brief.", role="developer"), PromptStyle("Be very brief.", role="user")
ROLE, OTHER = "set developer_role to user, which puts it into the question", "give another template as chat_template"


def renderer(tokenizer, template: str, **arguments) -> PromptRenderer:
    arguments = {"chat_template": template, **arguments}
    return PromptRenderer(tokenizer, model="some/model", arguments=arguments, role_key="developer_role")


@pytest.mark.parametrize("template", WHOLE.values(), ids=WHOLE)
def test_templates_that_keep_every_part_are_accepted(tokenizer, template):
    for style in (SYSTEM, EXAMPLES, IN_QUESTION, PromptStyle(None)):
        renderer(tokenizer, template).check(sample_messages(style))


@pytest.mark.parametrize("enable_thinking", [True, False])
def test_thinking_can_be_disabled(tokenizer, enable_thinking):
    prompts = renderer(tokenizer, QWEN3, enable_thinking=enable_thinking)
    text = tokenizer.decode(prompts.token_ids(sample_messages(EXAMPLES)))
    assert text.endswith("<think>\n\n</think>\n\n") != enable_thinking
    assert prompts.notes == []


@pytest.mark.parametrize(
    ("template", "style", "message"),
    [
        (QWEN25, DEVELOPER, f"drops or changes the system prompt, whose role is 'developer'; {ROLE}, or {OTHER}"),
        (NO_SYSTEM, SYSTEM, f"drops or changes the system prompt, whose role is 'system'; {ROLE}, or {OTHER}"),
        (SYSTEM_LAST, SYSTEM, "drops or changes the system prompt, whose role is 'system'"),
        (LAST_ONLY, EXAMPLES, f"drops or changes the question of worked example 1, whose role is 'user'; {OTHER}"),
        (
            CHATML.replace("m.content", "m.content[:9]"),
            PromptStyle(None),
            f"drops or changes the question, whose .*; {OTHER}",
        ),
        (CHATML.replace("m.content", "m.content[0].text"), SYSTEM, "refuses role 'system' .*no attribute 'text'"),
        (CHATML.replace("m.content", "m.content | e"), SYSTEM, "escapes characters of the question, whose role"),
        (CHATML.replace("m.content", "m.content | tojson"), PromptStyle(None), "escapes characters of the question"),
        (
            CHATML.replace("m.content", "m.content.split() | join(' ')"),
            PromptStyle(None),
            "drops or changes the question",
        ),
        (
            CHATML.replace("m.content", "m.content | replace('42', '')"),
            EXAMPLES,
            "drops or changes the answer of worked",
        ),
        (RAISING, SYSTEM, "refuses role 'system' .System role not supported.; set developer_role to user, which"),
        (NEEDS_SYSTEM, IN_QUESTION, f"refuses role 'user' .no system message.; {OTHER}"),
        (MISTRAL, DEVELOPER, "refuses role 'developer' .After the optional system message, .*; set developer_role to"),
        (
            NO_PROMPT,
            SYSTEM,
            "adds no generation prompt, because an answer follows '.*im_start.>assistant'.* as chat_temp",
        ),
        (SWAPPED, SYSTEM, "writes the question as the assistant's turn, because '.*im_start.>assistant' precedes"),
        (SWAPPED, EXAMPLES, "writes the question as the assistant's turn"),
        ("{{ 1 / 0 }}", SYSTEM, "refuses role 'system' .division by zero."),
        ("{% for m in messages %}", SYSTEM, "refuses role 'system' .Unexpected end of template"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", SYSTEM, "refuses role 'system' .Range too big"),
    ],
)
def test_a_template_that_loses_a_part_is_refused_with_role_and_template(tokenizer, template, style, message):
    prompts = renderer(tokenizer, template)
    with pytest.raises(ConfigError, match=f"the chat template of 'some/model' {message}"):
        prompts.check(sample_messages(style))


def test_the_first_prompt_of_each_dataset_is_checked(tokenizer):
    prompts = renderer(tokenizer, CHATML.replace("m.content", "m.content | replace('&', 'and')"))
    messages = [[{"role": "user", "content": question}] for question in ("1 + 1?", "p & q?")]
    prompts.token_ids(messages[0], dataset="chain_sum")
    prompts.token_ids(messages[1], dataset="chain_sum")
    with pytest.raises(ConfigError, match="changes the question"):
        prompts.token_ids(messages[1], dataset="propositional_logic")


def test_a_template_with_todays_date_gives_the_same_prompt_on_every_day(tokenizer):
    prompts = renderer(tokenizer, "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML)
    assert tokenizer.decode(prompts.token_ids(sample_messages(SYSTEM))).startswith("Today: 26 Jul 2024\n")
    [note] = prompts.notes
    assert "writes today's date; prompts get 2024-07-26 instead" in note


def test_a_date_that_is_given_is_used(tokenizer):
    date = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    prompts = renderer(tokenizer, date + "{{ date_string }}" + CHATML, date_string="1 May 2025")
    assert tokenizer.decode(prompts.token_ids(sample_messages(SYSTEM))).startswith("1 May 2025")
    assert prompts.notes == []


def test_an_argument_that_the_template_lacks_is_reported(tokenizer):
    assert renderer(tokenizer, QWEN3, enable_thinkng=False).notes == [
        "the chat template of 'some/model' has no argument 'enable_thinkng', so it changes nothing"
    ]


@pytest.mark.parametrize("name", ["add_generation_prompt", "tokenize", "messages", "max_length", 1])
def test_a_name_that_is_no_argument_of_a_template_is_refused(name):
    with pytest.raises(ConfigError, match=f"chat_template_kwargs has .*{name!r}"):
        check_template_arguments({name: True}, key="chat_template_kwargs")


def test_a_prompt_beyond_the_tokenizers_own_limit_is_not_cut(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "model_max_length", 8)
    prompts = renderer(tokenizer, CHATML)
    assert len(prompts.token_ids(sample_messages(SYSTEM))) > 8
    assert "exceeds the model_max_length of 8 in the tokenizer of 'some/model'; it is not cut" in prompts.notes[0]


@pytest.mark.parametrize("name", WHOLE)
def test_a_system_prompt_that_the_template_writes_by_itself_is_noted(tokenizer, name):
    prompts = renderer(tokenizer, WHOLE[name])
    prompts.check([{"role": "user", "content": "What is 1 + 1?"}])
    note = (
        "the chat template of 'some/model' writes its own system prompt 'You are a helpful assistant.' if there is none"
    )
    assert [one for one in prompts.notes if "system prompt" in one] == ([note] if name == "Qwen2.5" else [])
    prompts = renderer(tokenizer, WHOLE[name])
    prompts.check(sample_messages(PromptStyle()))
    assert not [one for one in prompts.notes if "system prompt" in one]
