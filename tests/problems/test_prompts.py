import sys
from dataclasses import replace
from types import ModuleType

import pytest
from reasoning_gym.utils import SYSTEM_PROMPTS
from support.small_spaces import ONE_DIGIT

from rgtrain.errors import ConfigError
from rgtrain.problems import DatasetSpec, PromptRenderer, PromptStyle, build_messages, build_mixture
from rgtrain.problems.mixture import Problem, Split
from rgtrain.problems.prompts import (
    PromptBuilder,
    PromptedQuestion,
    parse_prompt,
    sample_messages,
    with_system_role,
    worked_examples,
)

EXAMPLE = {"question": "What is 1 + 1?", "answer": "2"}
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


@pytest.mark.parametrize("text", ["Answer\nbriefly.", "请一步一步思考然后回答。", "Réfléchissez."])
def test_a_text_without_a_space_that_cannot_be_a_name_is_taken_literally(text):
    assert PromptStyle(text).text() == text


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
        ({"num_exampels": 3}, "unknown prompt key 'num_exampels'; did you mean 'num_examples' or 'examples'?"),
    ],
)
def test_an_unusable_prompt_is_refused_with_the_reason(raw, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?").replace("+", r"\+").replace("[]", r"\[\]")):
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


def test_own_examples_precede_those_of_the_dataset():
    raw = {"system_prompt": "Be very brief.", "num_examples": 1, "examples": [EXAMPLE | {"thinking": "One and one."}]}
    messages = PromptBuilder(parse_prompt(raw)).messages(one_problem())
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert messages[1:3] == [
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "<think>\nOne and one.\n</think>\n\n<answer>2</answer>"},
    ]
    assert parse_prompt({"role": None, "examples": None}) == PromptStyle()
    own = sample_messages(parse_prompt(raw | {"num_examples": 0}))
    assert [message["content"] for message in own[1:3]] == [message["content"] for message in messages[1:3]]


@pytest.fixture
def own_style(monkeypatch):
    """Return a function that makes the style of a prompt function, and other settings of the style."""
    module = ModuleType("own_prompts")
    monkeypatch.setitem(sys.modules, "own_prompts", module)

    def style(function, **settings) -> PromptStyle:
        module.own = function
        return parse_prompt({"system_prompt": "pkg://own_prompts.own", **settings})

    return style


def test_a_function_returns_the_system_prompt_of_a_problem(own_style):
    style = own_style(lambda question: f"Solve this problem of {question.dataset}.", examples=[EXAMPLE])
    problem = one_problem()
    messages = PromptBuilder(style).messages(problem)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert (messages[0]["content"], messages[-1]["content"]) == ("Solve this problem of chain_sum.", problem.question)
    user = PromptBuilder(replace(style, role="user")).messages(problem)
    assert user[0] == {"role": "user", "content": f"{messages[0]['content']}\n\n{EXAMPLE['question']}"}


def test_a_function_returns_the_messages_of_a_prompt(own_style):
    def ask(question):
        return [{"role": "user", "content": f"Level {question.level}: {question.question}"}]

    problem = replace(one_problem(), level=3)
    asked = {"role": "user", "content": f"Level 3: {problem.question}"}
    assert PromptBuilder(own_style(ask)).messages(problem) == [asked]
    system = {"role": "system", "content": "Be very brief."}
    messages = PromptBuilder(own_style(lambda question: [system, *ask(question)], num_examples=1)).messages(problem)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert (messages[0], messages[-1]) == (system, asked)


def test_a_function_sees_no_field_that_may_hold_the_answer(own_style):
    """The entry is dropped but for the dataset's parameters, its difficulty, and fields that are declared public."""
    seen: list[PromptedQuestion] = []
    entry = one_problem(min_terms=2, max_terms=2).entry
    entry = {**entry, "answer": "SECRET", "oracle": "SECRET", "metadata": {**entry["metadata"], "solution": "SECRET"}}
    entry["metadata"]["public"] = {"topic": "sums"}
    problem = Problem("chain_sum", 0, 0, "What is 1 + 1?", entry, level=1)
    PromptBuilder(own_style(lambda question: seen.append(question) or "Be brief.")).messages(problem)
    assert "SECRET" not in repr(seen)
    assert seen[0].params == {"min_terms": 2, "max_terms": 2}
    assert seen[0].public == {"topic": "sums"}
    assert seen[0].difficulty["num_terms"]
    # A function cannot change the problem either.
    seen[0].public["topic"] = "products"
    assert entry["metadata"]["public"] == {"topic": "sums"}


async def awaited(question):
    return "Be brief."


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda question: question.answer,
            "fails for a problem of dataset 'chain_sum' .AttributeError: .*fields question,",
        ),
        (lambda: "Be brief.", "fails for a problem of dataset 'chain_sum' .TypeError"),
        (lambda question: None, "returned None for a problem of dataset 'chain_sum'; return the text of the system"),
        (lambda question: " ", "returned an empty text"),
        (lambda question: [], r"returned \[\]"),
        (awaited, "returned <coroutine"),
        (lambda question: ["Be brief."], "returned the message 'Be brief.'"),
        (lambda question: [{"role": "user", "text": "a"}], "returned the message {'role': 'user', 'text': 'a'}"),
        (lambda question: [{"role": "user", "content": 3}], "returned a message with the content 3"),
        (lambda question: [{"role": "tool", "content": "a"}], r"returned messages with the roles \['tool'\]"),
        (lambda question: [{"role": "system", "content": "a"}], r"returned messages with the roles \['system'\]"),
        (
            lambda question: [{"role": "user", "content": "a"}] * 2,
            r"returned messages with the roles \['user', 'user'\]",
        ),
    ],
)
def test_a_function_that_gives_no_prompt_is_refused(own_style, function, message):
    with pytest.raises(ConfigError, match=f"the prompt function 'pkg://own_prompts.own' {message}"):
        PromptBuilder(own_style(function)).messages(one_problem())


def test_a_prompt_without_a_problem_refuses_a_function(own_style):
    with pytest.raises(ConfigError, match="needs a problem of a dataset; give a name or a literal text"):
        own_style(lambda question: "Be brief.").text()


def test_no_dataset_writes_its_answers_into_the_fields_of_a_prompt_function():
    for name in ("chain_sum", "gcd", "spell_backward", "letter_counting", "countdown", "mini_sudoku", "caesar_cipher"):
        for index in range(5):
            problem = build_mixture([DatasetSpec(name)], seed=3, size=5)[index]
            given = PromptedQuestion.of(problem)
            assert len(str(problem.entry["answer"])) < 3 or str(problem.entry["answer"]) not in repr(
                (given.params, given.difficulty, given.public)
            )


def test_worked_examples_are_made_once_and_each_caller_gets_its_own_list():
    spec = DatasetSpec("chain_sum", params={"min_terms": 2})
    first = worked_examples(spec, THREE_EXAMPLES)
    second = worked_examples(spec, THREE_EXAMPLES)
    assert first is not second and all(map(lambda one, other: one is other, first, second))
    other = worked_examples(spec, replace(THREE_EXAMPLES, examples_seed=1))
    assert {problem.question for problem in other} != {problem.question for problem in first}
