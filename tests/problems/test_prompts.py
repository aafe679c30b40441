import pytest
from reasoning_gym.utils import SYSTEM_PROMPTS
from support.small_spaces import ONE_DIGIT

from rgtrain.errors import ConfigError
from rgtrain.problems import DatasetSpec, PromptRenderer, PromptStyle, build_messages, build_mixture
from rgtrain.problems.mixture import Split
from rgtrain.problems.prompts import PromptBuilder, parse_prompt, with_system_role, worked_examples

THREE_EXAMPLES = PromptStyle(num_examples=3)


def one_problem(name="chain_sum", **params):
    return build_mixture([DatasetSpec(name, params=params)], seed=0, size=1)[0]


@pytest.mark.parametrize("name", SYSTEM_PROMPTS)
def test_a_name_selects_a_system_prompt_of_reasoning_gym(name):
    assert build_messages("1 + 1?", PromptStyle(name)) == [
        {"role": "system", "content": SYSTEM_PROMPTS[name]},
        {"role": "user", "content": "1 + 1?"},
    ]


def test_a_text_of_several_words_is_taken_literally():
    assert PromptStyle("Answer in <answer> tags.").text() == "Answer in <answer> tags."


def test_without_a_system_prompt_only_the_question_is_sent():
    for role in ("system", "user"):
        assert build_messages("1 + 1?", PromptStyle(None, role=role)) == [{"role": "user", "content": "1 + 1?"}]


def test_the_system_prompt_can_have_the_developer_role():
    assert [message["role"] for message in build_messages("1 + 1?", PromptStyle(role="developer"))] == [
        "developer",
        "user",
    ]


def test_with_the_user_role_the_system_prompt_precedes_the_question():
    assert build_messages("1 + 1?", PromptStyle("Be very brief.", role="user")) == [
        {"role": "user", "content": "Be very brief.\n\n1 + 1?"}
    ]


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("system", [("system", "Be brief."), ("user", "1 + 1?")]),
        ("developer", [("developer", "Be brief."), ("user", "1 + 1?")]),
        ("user", [("user", "Be brief.\n\n1 + 1?")]),
    ],
)
def test_messages_of_others_get_the_role_of_the_system_prompt(role, expected):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    assert with_system_role(messages, role) == [{"role": name, "content": content} for name, content in expected]
    assert with_system_role(messages[1:], role) == messages[1:]


def test_with_the_user_role_the_system_prompt_precedes_the_first_example():
    style = PromptStyle("Be very brief.", role="user", num_examples=2)
    messages = PromptBuilder(style).messages(one_problem())
    assert messages[0]["content"].startswith("Be very brief.\n\n")
    assert sum("Be very brief." in message["content"] for message in messages) == 1


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"system_prompt": "DeepseekZero"}, "unknown system prompt 'DeepseekZero'; did you mean 'DeepSeekZero'?"),
        ({"system_prompt": "directly"}, "unknown system prompt 'directly'; did you mean 'direct'?"),
        (
            {"system_prompt": "xyz"},
            r"unknown system prompt 'xyz'; \(choose from: DeepSeekZero, .*\), or give a lit",
        ),
        ({"system_prompt": ""}, "unknown system prompt ''"),
        ({"system_prompt": 5}, "the system prompt is 5; give a name, a literal text or null"),
        ({"role": "assistant"}, r"unknown prompt role 'assistant'; \(choose from: developer, system, user\)"),
        ({"num_examples": -1}, "num_examples is -1; give a whole number from 0 up"),
        ({"num_examples": 1.0}, "num_examples is 1.0; give a whole number from 0 up"),
        ({"num_examples": True}, "num_examples is True; give a whole number from 0 up"),
        ({"examples_seed": 1000}, "seed 1000 is out of range; give a whole number from 0 to 999"),
        ({"examples_seed": "1"}, "seed '1' is out of range; give a whole number from 0 to 999"),
        ({"num_exampels": 3}, "unknown prompt key 'num_exampels'; did you mean 'num_examples'?"),
    ],
)
def test_an_unusable_prompt_is_refused_with_the_reason(raw, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        parse_prompt(raw)


def test_a_prompt_is_parsed_from_its_configuration():
    assert parse_prompt({"system_prompt": "direct", "role": "user", "num_examples": 2}) == PromptStyle(
        "direct", role="user", num_examples=2
    )


def test_examples_are_earlier_turns_with_tagged_answers():
    builder = PromptBuilder(THREE_EXAMPLES)
    problem = one_problem()
    system, *turns, question = builder.messages(problem)
    examples = builder.examples(problem)
    assert (system["role"], question) == ("system", {"role": "user", "content": problem.question})
    assert turns == [
        turn
        for example in examples
        for turn in (
            {"role": "user", "content": example.question},
            {"role": "assistant", "content": f"<answer>{example.entry['answer']}</answer>"},
        )
    ]
    assert len(examples) == 3


def test_examples_come_from_the_same_dataset_with_the_same_parameters():
    for problem in (one_problem(), one_problem(**ONE_DIGIT), one_problem("countdown", operators=["+", "-"])):
        for example in PromptBuilder(THREE_EXAMPLES).examples(problem):
            assert example.dataset == problem.dataset
            assert example.entry["metadata"]["source_params"] == problem.entry["metadata"]["source_params"]


def test_a_builder_separates_examples_of_different_parameters():
    builder = PromptBuilder(THREE_EXAMPLES)
    short, long = (builder.examples(one_problem(**params)) for params in (ONE_DIGIT, {"min_terms": 6}))
    assert max(len(example.question) for example in short) < min(len(example.question) for example in long)


def test_examples_of_a_small_space_have_distinct_questions():
    examples = worked_examples(DatasetSpec("chain_sum", params=ONE_DIGIT), PromptStyle(num_examples=50))
    assert len({example.question for example in examples}) == 50


def test_other_seeds_give_other_examples():
    first, second = (
        worked_examples(DatasetSpec("chain_sum"), PromptStyle(num_examples=3, examples_seed=seed)) for seed in (0, 1)
    )
    assert not {example.question for example in first} & {example.question for example in second}


def test_examples_are_the_same_in_another_process(in_another_process):
    code = """
from rgtrain.problems import DatasetSpec, PromptStyle
from rgtrain.problems.prompts import worked_examples
print([example.question for example in worked_examples(DatasetSpec("gcd"), PromptStyle(num_examples=3))])
"""
    here = [example.question for example in worked_examples(DatasetSpec("gcd"), THREE_EXAMPLES)]
    assert in_another_process("-c", code).strip() == str(here)


def test_examples_have_separate_seeds_from_other_splits():
    for example in worked_examples(DatasetSpec("chain_sum"), THREE_EXAMPLES):
        assert example.seed == Split.EXAMPLES.base_seed(0)


def test_too_many_examples_are_an_error():
    with pytest.raises(ConfigError, match=r"'chain_sum' has only 200 of 300 worked examples; .* at most 200"):
        worked_examples(DatasetSpec("chain_sum", params=ONE_DIGIT), PromptStyle(num_examples=300))


def test_a_dataset_without_known_answers_has_no_examples():
    with pytest.raises(ConfigError, match="'rush_hour' has only 0 of 1 worked examples"):
        worked_examples(DatasetSpec("rush_hour"), PromptStyle(num_examples=1))


def test_the_number_of_examples_can_be_0():
    assert worked_examples(DatasetSpec("rush_hour"), PromptStyle()) == []
    assert len(PromptBuilder(PromptStyle()).messages(one_problem("rush_hour"))) == 2


STYLES = [
    PromptStyle(),
    PromptStyle(None),
    PromptStyle("direct", role="user"),
    PromptStyle("default", num_examples=3),
    PromptStyle("Antworte kurz: ∀x → <answer>é</answer>", num_examples=1),
]


@pytest.mark.parametrize("style", STYLES)
def test_training_and_evaluation_render_equal_token_ids(style, tokenizer):
    from verl.experimental.agent_loop.agent_loop import create_continuous_token_builder

    as_verl_trains = create_continuous_token_builder(tokenizer, hf_model_type="llama")
    prompts = PromptBuilder(style)
    specs = [DatasetSpec("chain_sum"), DatasetSpec("propositional_logic"), DatasetSpec("mini_sudoku")]
    if style.num_examples:
        specs = specs[:1]
    for problem in build_mixture(specs, seed=0, size=8):
        messages = prompts.messages(problem)
        assert PromptRenderer(tokenizer, model="m").token_ids(messages) == as_verl_trains.build_initial_tokens(messages)


def test_template_arguments_are_the_same_as_in_training(tokenizer):
    from verl.experimental.agent_loop.agent_loop import create_continuous_token_builder

    template = "{{ messages[-1].content }}{% if enable_thinking %}<think>{% endif %}"
    messages = build_messages("1 + 1?", PromptStyle(None))
    arguments = {"enable_thinking": True, "chat_template": template}
    as_verl_trains = create_continuous_token_builder(
        tokenizer, hf_model_type="llama", chat_template_kwargs=dict(arguments)
    )
    ids = PromptRenderer(tokenizer, model="m", arguments=arguments).token_ids(messages)
    assert tokenizer.decode(ids) == "1 + 1?<think>"
    assert ids == as_verl_trains.build_initial_tokens(messages)


def test_a_rendered_prompt_ends_with_the_start_of_the_assistants_turn(tokenizer):
    messages = build_messages("1 + 1?", PromptStyle("Be very brief."))
    text = tokenizer.decode(PromptRenderer(tokenizer, model="m").token_ids(messages))
    assert text == (
        "<|im_start|>system\nBe very brief.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )
