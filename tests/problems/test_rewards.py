import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rgtrain.errors import ConfigError
from rgtrain.paths import CONFIGS
from rgtrain.problems import RewardSpec, combine, extract_answer, parse_reward
from rgtrain.problems.rewards import (
    JudgedCompletion,
    accuracy,
    cosine,
    format,
    length,
    published_cosine,
    published_format,
    published_length,
    solved,
)

TAGS = ("<answer>", "</answer>", "<think>", "</think>", " ", "1")
texts = st.lists(st.sampled_from(TAGS) | st.text(max_size=3), max_size=12).map("".join)
accuracies = st.floats(0, 1)
token_counts = st.integers(0, 5000)


def completion(text="", *, accuracy=0.0, num_tokens=10, max_tokens=100):
    return JudgedCompletion(text, accuracy, num_tokens, max_tokens)


@given(accuracies)
def test_accuracy_is_the_datasets_own_score(score):
    assert accuracy(completion(accuracy=score)) == score


def test_solved_pays_no_partial_credit():
    assert [solved(completion(accuracy=score)) for score in (0.0, 0.99, 1.0)] == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think><answer>1</answer>", 1.0),
        ("  <think>a</think>\n\n<answer>1</answer>\n", 1.0),
        ("<think></think><answer></answer>", 1.0),
        # Extra text invalidates the adjacent block; between the blocks it costs half.
        ("So: <think>a</think><answer>1</answer>", 0.5),
        ("<think>a</think><answer>1</answer>.", 0.5),
        ("<think>a</think> so <answer>1</answer>", 0.5),
        ("So: <think>a</think><answer>1</answer>.", 0.0),
        # One block of two.
        ("<answer>1</answer>", 0.5),
        ("1 <answer>1</answer>", 0.5),
        ("<think>a</think>", 0.5),
        ("<think>a</think> 1", 0.5),
        ("<think>a</think><answer>1", 0.5),
        ("<think>a<answer>1</answer>", 0.5),
        # A block that is repeated, unclosed, or in the wrong order earns nothing.
        ("<think>a</think><think>b</think><answer>1</answer>", 0.5),
        ("<think>a</think><answer>1</answer><answer>2</answer>", 0.5),
        ("<think>a</think><answer>1</answer></answer>", 0.5),
        ("<think>a<think>b</think><answer>1</answer>", 0.5),
        ("<answer>1</answer><think>a</think>", 0.0),
        ("<think>a<answer>1</think></answer>", 0.5),
        ("<think>a<answer>1</answer></think>", 0.5),
        ("</think>a<think><answer>1</answer>", 0.5),
        ("<think>a", 0.0),
        ("<Think>a</Think><Answer>1</Answer>", 0.0),
        ("1", 0.0),
        ("", 0.0),
    ],
)
def test_format_gives_half_for_each_correct_block(text, value):
    assert format(completion(text)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<answer>1</answer>", 1.0),
        (" <answer>1</answer>\n", 1.0),
        ("1 <answer>1</answer>", 0.0),
        ("<answer>1</answer> 1", 0.0),
        ("<answer>1</answer><answer>1</answer>", 0.0),
        ("<think>a</think><answer>1</answer>", 0.0),
        ("<answer>a</think>1</answer>", 0.0),
        ("<answer>1", 0.0),
        ("", 0.0),
    ],
)
def test_format_without_thinking_expects_only_the_answer_block(text, value):
    assert format(completion(text), thinking=False) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a</think><answer>1</answer>", 1.0),
        ("<think>a</think><answer>1</answer>", 0.5),
        ("<answer>1</answer>", 0.5),
        ("a", 0.0),
    ],
)
def test_format_can_include_a_think_tag_from_the_template(text, value):
    assert format(completion(text), prepend_thinking_token=True) == value


@given(texts, st.booleans(), st.booleans())
def test_format_is_0_a_half_or_1(text, thinking, prepend):
    assert format(completion(text), thinking=thinking, prepend_thinking_token=prepend) in (0.0, 0.5, 1.0)


@given(texts, st.booleans())
def test_a_completion_with_full_format_reward_has_an_answer(text, thinking):
    if format(completion(text), thinking=thinking) == 1.0:
        assert extract_answer(text) is not None


# DAPO (arXiv 2503.14476) trains with max_len 20,480 and a buffer of 4,096 tokens; eq. 13 by hand:
# ((20,480 - 4,096) - 18,432) / 4,096 = -0.5.
@pytest.mark.parametrize(
    ("num_tokens", "value"),
    [
        (0, 0.0),
        (16_384, 0.0),
        (16_385, -1 / 4096),
        (17_408, -0.25),
        (18_432, -0.5),
        (20_479, -4095 / 4096),
        (20_480, -1.0),
        (20_481, -1.0),
        (99_999, -1.0),
    ],
)
def test_length_is_the_overlong_penalty_of_dapo(num_tokens, value):
    assert length(completion(num_tokens=num_tokens), max_len=20_480, buffer=4_096) == value


def test_length_defaults_to_the_maximum_response_length_and_a_quarter_of_it():
    values = [length(completion(num_tokens=num_tokens, max_tokens=100)) for num_tokens in (75, 80, 100)]
    assert values == [0.0, -0.2, -1.0]


def test_length_without_a_buffer_is_a_cliff():
    values = [length(completion(num_tokens=num_tokens), max_len=50, buffer=0) for num_tokens in (50, 51)]
    assert values == [0.0, -1.0]


@given(token_counts, st.integers(1, 3000), st.none() | st.integers(0, 4000))
def test_length_is_between_minus_1_and_0_and_never_increases(num_tokens, max_len, buffer):
    shorter, longer = (
        length(completion(num_tokens=count), max_len=max_len, buffer=buffer) for count in (num_tokens, num_tokens + 1)
    )
    assert -1.0 <= longer <= shorter <= 0.0


@pytest.mark.parametrize(
    ("accuracy", "num_tokens", "value"),
    [
        # arXiv 2502.03373: half-way, the value is the mean of both ends.
        (1.0, 0, 1.0),
        (1.0, 50, 0.75),
        (1.0, 100, 0.5),
        (1.0, 101, 0.5),
        (0.0, 0, -0.5),
        (0.0, 50, -0.25),
        (0.0, 100, 0.0),
        (0.0, 500, 0.0),
        (0.99, 50, -0.25),
    ],
)
def test_cosine_follows_the_published_formula(accuracy, num_tokens, value):
    assert cosine(completion(accuracy=accuracy, num_tokens=num_tokens)) == pytest.approx(value)


def test_cosine_can_end_before_the_maximum_response_length():
    values = {cosine(completion(accuracy=1.0, num_tokens=count), max_len=20) for count in (20, 21, 100)}
    assert values == {0.5}


bounds = st.lists(st.floats(-10, 10), min_size=4, max_size=4).map(sorted)
names = ("wrong_short", "wrong_long", "right_long", "right_short")


@given(token_counts, token_counts, st.integers(1, 3000), bounds, accuracies.filter(lambda value: value < 1))
def test_a_wrong_answer_never_earns_more_than_a_right_one(right, wrong, max_len, values, accuracy):
    args = dict(zip(names, values, strict=True), max_len=max_len)
    best_wrong = cosine(completion(accuracy=accuracy, num_tokens=wrong), **args)
    worst_right = cosine(completion(accuracy=1.0, num_tokens=right), **args)
    assert best_wrong <= worst_right or math.isclose(best_wrong, worst_right, abs_tol=1e-12)


@given(token_counts, st.integers(1, 3000), bounds)
def test_cosine_falls_for_right_answers_and_rises_for_wrong_ones_within_its_range(num_tokens, max_len, values):
    args = dict(zip(names, values, strict=True), max_len=max_len)
    for score, sign in ((1.0, -1), (0.0, 1)):
        shorter, longer = (
            cosine(completion(accuracy=score, num_tokens=count), **args) for count in (num_tokens, num_tokens + 1)
        )
        assert sign * (longer - shorter) >= -1e-12
        assert values[0] - 1e-12 <= shorter <= values[3] + 1e-12


@given(token_counts, st.integers(0, 5000), accuracies, st.integers(1, 3000))
def test_cosine_is_constant_after_its_end(beyond, further, accuracy, max_len):
    behind = [completion(accuracy=accuracy, num_tokens=max_len + count) for count in (0, beyond, further)]
    assert len({cosine(each, max_len=max_len) for each in behind}) == 1


def test_the_reward_is_the_weighted_sum_of_its_parts_and_every_part_is_reported_unweighted():
    specs = [RewardSpec("accuracy", 2.0), RewardSpec("format", 0.5), RewardSpec("length", 1.0, {"max_len": 10})]
    reward, parts = combine(specs, completion("<answer>1</answer>", accuracy=0.25, num_tokens=10))
    assert parts == {"accuracy": 0.25, "format": 0.5, "length": -1.0}
    assert reward == 2.0 * 0.25 + 0.5 * 0.5 - 1.0


def test_a_part_of_weight_0_is_reported_but_not_rewarded():
    reward, parts = combine(parse_reward({"accuracy": None, "format": {"weight": 0}}), completion("<answer>1</answer>"))
    assert (reward, parts["format"]) == (0.0, 0.5)


def test_a_reward_is_parsed_from_its_configuration():
    assert parse_reward({"accuracy": None, "cosine": {"weight": 0.3, "max_len": 512}, "format": {}}) == [
        RewardSpec("accuracy"),
        RewardSpec("cosine", 0.3, {"max_len": 512}),
        RewardSpec("format"),
    ]


def test_a_buffer_is_accepted_before_the_maximum_response_length_is_known():
    assert parse_reward({"length": {"buffer": 4096}}) == [RewardSpec("length", 1.0, {"buffer": 4096})]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"lenght": None}, r"unknown reward 'lenght'; did you mean 'length'\? \(choose from: accuracy, cosine, format"),
        (
            {"xyz": None},
            r"unknown reward 'xyz'; \(choose from: accuracy, cosine, format, length, published_cosine, .*, solved\) or pkg://",
        ),
        (["accuracy"], r"the reward is a list; write a mapping, as in `\{accuracy: \{weight: 1\}\}`"),
        ({"accuracy": 1}, r"reward 'accuracy' has 1; write a mapping, as in `\{weight: 1\}`"),
        ({"cosine": {"maxlen": 5}}, r"reward 'cosine' has no argument 'maxlen'; did you mean 'max_len'\?"),
        ({"accuracy": {"completion": 5}}, "reward 'accuracy' has no argument 'completion'"),
        ({"accuracy": {"weight": "1"}}, "reward 'accuracy' has weight '1'; give a finite number"),
        ({"accuracy": {"weight": None}}, "reward 'accuracy' has weight None; give a finite number"),
        ({"accuracy": {"weight": True}}, "reward 'accuracy' has weight True; give a finite number"),
        ({"accuracy": {"weight": math.nan}}, "reward 'accuracy' has weight nan; give a finite number"),
        ({"accuracy": {"weight": math.inf}}, "reward 'accuracy' has weight inf; give a finite number"),
        ({"accuracy": {"weight": 0}, "format": {"weight": 0}}, "all rewards have weight 0; add one"),
        ({}, r"all rewards have weight 0; add one, as in `\{accuracy: \{weight: 1\}\}`"),
        (
            {"cosine": {"wrong_long": 0.6}},
            "'cosine' has the values -0.5, 0.6, 0.5, 1.0; give wrong_short <= wrong_long <= ",
        ),
        ({"cosine": {"right_short": math.nan}}, "'cosine' has the values .*; give wrong_short <= wrong_long"),
        ({"cosine": {"right_short": "high"}}, r"reward 'cosine' refuses \{'right_short': 'high'\}: "),
        ({"cosine": {"max_len": 0}}, "reward 'cosine' has max_len 0; give a number of tokens from 1 up"),
        ({"cosine": {"max_len": "long"}}, r"reward 'cosine' refuses \{'max_len': 'long'\}: "),
        ({"length": {"max_len": -5}}, "reward 'length' has max_len -5; give a number of tokens from 1 up"),
        ({"length": {"buffer": -1}}, "reward 'length' has buffer -1; give a number of tokens from 0 up"),
    ],
)
def test_an_unusable_reward_is_refused_with_the_reason(raw, message):
    with pytest.raises(ConfigError, match=message):
        parse_reward(raw)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think><answer>1</answer>", 1),
        (" \n<think>a</think>\n <answer>1</answer> and more", 1),
        # A stray closing tag in the middle is no second block.
        ("<think>a</think> b </think><answer>1</answer>", 1),
        ("<answer>1</answer>", 0),
        ("<think>a</think> so <answer>1</answer>", 0),
        ("So: <think>a</think><answer>1</answer>", 0),
        ("<think>a</think><answer>1</answer><answer>2</answer>", 0),
        ("<think>a</think><answer>1</answer><think>b</think>", 0),
        ("<think>a<think></think><answer>1</answer>", 0),
        ("<think>a</think><answer>1<answer></answer>", 0),
        ("<think>a</think><answer>1", 0),
        ("", 0),
    ],
)
def test_the_published_format_pays_all_or_nothing(text, value):
    assert published_format(completion(text)) == value
    if text.startswith("<think>"):
        assert published_format(completion(text.removeprefix("<think>")), prepend_thinking_token=True) == value


def test_the_published_length_pays_worse_answers_more():
    text = "x" * 512
    assert [published_length(completion(text, accuracy=score)) for score in (0.0, 0.5, 1.0)] == [0.5, 0.25, 0.0]
    assert published_length(completion("x" * 5000)) == 1.0
    early = {"right_answers_lose": True}
    assert [published_length(completion(text, accuracy=score), **early) for score in (0.0, 1.0)] == [0.5, -0.5]


@pytest.mark.parametrize(
    ("accuracy", "num_chars", "value"),
    [
        (1.0, 0, 1.0),
        (1.0, 500, 0.975),
        (1.0, 1000, 0.95),
        (0.0, 0, 0.0),
        (0.99, 500, 0.35),
        (0.0, 1000, 0.7),
        # The cosine swings back.
        (0.0, 2000, 0.0),
    ],
)
def test_the_published_cosine_follows_its_formula_in_characters(accuracy, num_chars, value):
    assert published_cosine(completion("x" * num_chars, accuracy=accuracy)) == pytest.approx(value)


def reward_of(choice, text, accuracy):
    """Return the reward by a choice of configs/reward/."""
    raw = (CONFIGS / "reward" / f"{choice}.yaml").read_text().replace('"${model.template_opens_thinking}"', "false")
    judged = completion(text, accuracy=accuracy, num_tokens=len(text) // 4, max_tokens=1024)
    return combine(parse_reward(yaml.safe_load(raw)["parts"]), judged)[0]


def test_published_rewards_differ_from_ours_as_documented():
    # A formatted wrong answer of about 1,000 characters earns nearly twice as much as published.
    wrong = f"<think>{'x' * 960}</think><answer>7</answer>"
    assert len(wrong) == 993
    assert reward_of("published_accuracy_format_length", wrong, 0.0) == pytest.approx(0.394, abs=5e-4)
    assert reward_of("accuracy_format_length", wrong, 0.0) == pytest.approx(0.2)
    # A right answer without thoughts earns less.
    right = "<answer>7</answer>"
    assert reward_of("published_accuracy_cosine_format", right, 1.0) == pytest.approx(1.3, abs=5e-4)
    assert reward_of("accuracy_cosine_format", right, 1.0) == pytest.approx(1.4, abs=5e-4)
