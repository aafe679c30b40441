import decimal
import itertools
import random
import re
from collections import Counter
from dataclasses import replace

import numpy
import pytest
import reasoning_gym
from hypothesis import given
from hypothesis import strategies as st
from support.registered_datasets import REASONING_GYM

from rgtrain.errors import ConfigError
from rgtrain.problems import DatasetSpec, HeldOut, build_mixture, dump_entry, parse_mixture
from rgtrain.problems.mixture import MAX_SEED, MAX_SPLIT_SIZE, ProblemSource, Split

SUMS = DatasetSpec("chain_sum")


def test_every_dataset_gives_the_same_problems_in_another_process_and_order(problems, problems_made_backward):
    differing = [
        f"{name}[{problem.index}]"
        for name in problems
        for problem, other in zip(problems[name], problems_made_backward[name], strict=True)
        if dump_entry(problem.entry) != dump_entry(other.entry)
    ]
    assert differing == []


def test_every_registered_dataset_but_composite_gives_problems(problems):
    assert sorted(problems) == REASONING_GYM


def test_every_problem_names_its_dataset_and_parameters_in_its_metadata(problems):
    for name, made in problems.items():
        for problem in made:
            assert problem.dataset == problem.entry["metadata"]["source_dataset"] == name
            assert problem.entry["metadata"]["source_params"] == {}


# Programs that use the global generators of Python (14, 32) and numpy (36, 56) or compute with decimals (917, 2194).
@pytest.mark.parametrize("index", [14, 32, 36, 56, 917, 2194])
def test_a_codeio_problem_does_not_depend_on_the_state_of_the_process(index):
    source = ProblemSource(DatasetSpec("codeio"), seed=Split.TRAIN.base_seed(0))
    texts = set()
    for state in (1, 2):
        random.seed(state)
        numpy.random.seed(state)
        with decimal.localcontext() as context:
            context.prec = 5 * state
            texts.add(dump_entry(source[index].entry))
    assert len(texts) == 1


# 547 and 726 set the precision of decimals.
@pytest.mark.parametrize(
    ("name", "index"), [("codeio", 14), ("codeio", 36), ("codeio", 547), ("codeio", 726), ("pool_matrix", 0)]
)
def test_making_a_problem_does_not_change_the_state_of_the_process(name, index):
    def state():
        return random.getstate(), str(numpy.random.get_state()), str(decimal.getcontext())

    before = state()
    ProblemSource(DatasetSpec(name), seed=Split.TRAIN.base_seed(0))[index]
    assert state() == before


def test_a_second_codeio_instance_does_not_change_the_problems_of_the_first():
    source = ProblemSource(DatasetSpec("codeio"), seed=0)
    before = [source[index].question for index in range(5)]
    ProblemSource(DatasetSpec("codeio", params={"difficulty": 6}), seed=0)
    assert [source[index].question for index in range(5)] == before


def test_a_dropped_page_of_problems_is_recreated_identically():
    source = ProblemSource(DatasetSpec("acre"), seed=Split.TRAIN.base_seed(0))
    first = source[3].question
    for page in range(1, 5):
        source[page * 1_000]
    assert source[3].question == first


@pytest.mark.parametrize(("name", "page_size"), [("acre", 1_000), ("word_ladder", 20_000)])
def test_every_page_of_problems_has_separate_seeds(name, page_size):
    seed = Split.TRAIN.base_seed(0)
    later = reasoning_gym.create_dataset(name, seed=seed + page_size, size=page_size)
    source = ProblemSource(DatasetSpec(name), seed=seed)
    assert [source[page_size + i].question for i in range(3)] == [later[i]["question"] for i in range(3)]


@pytest.mark.parametrize("name", ["acre", "chain_sum", "gsm_symbolic", "word_ladder"])
def test_a_source_with_reasoning_gyms_seed_and_size_gives_the_same_problems(name):
    source = ProblemSource(DatasetSpec(name), seed=42, size=50)
    own = reasoning_gym.create_dataset(name, seed=42, size=50)
    assert [source[index].question for index in range(50)] == [item["question"] for item in own]


def test_seed_ranges_of_all_splits_and_seeds_are_disjoint_and_below_2_to_the_32():
    firsts = sorted(split.base_seed(seed) for split in Split for seed in range(MAX_SEED + 1))
    assert all(second - first >= MAX_SPLIT_SIZE for first, second in itertools.pairwise(firsts))
    assert firsts[0] >= MAX_SPLIT_SIZE
    assert firsts[-1] + MAX_SPLIT_SIZE <= 2**32


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 1.5, True, "1", None])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ConfigError, match="give a whole number from 0 to 999"):
        Split.TRAIN.base_seed(seed)


@pytest.mark.parametrize("size", [0, -1, MAX_SPLIT_SIZE + 1])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(ConfigError, match="give a size from 1 to 1000000"):
        build_mixture([SUMS], seed=0, size=size)


@given(
    size=st.sampled_from([1, 7, 20_000, MAX_SPLIT_SIZE]),
    place=st.floats(0, 1, exclude_max=True),
    attempt=st.integers(0, 200),
    split=st.sampled_from(Split),
)
def test_every_draw_uses_a_seed_of_its_split(size, place, attempt, split):
    problem = build_mixture([SUMS], seed=3, size=size, split=split).draw(int(place * size), attempt=attempt)
    first = split.base_seed(3)
    assert first <= problem.seed + problem.index < first + MAX_SPLIT_SIZE


def test_draws_of_a_small_mixture_have_distinct_problem_numbers():
    mixture = build_mixture([SUMS], seed=0, size=50)
    numbers = [mixture.draw(index, attempt=attempt).index for index in range(50) for attempt in range(20)]
    assert len(set(numbers)) == len(numbers)


def test_a_later_attempt_gives_another_problem_of_the_same_dataset():
    mixture = build_mixture([SUMS, DatasetSpec("spell_backward"), DatasetSpec("gcd")], seed=0, size=60)
    for index in range(60):
        drawn = [mixture.draw(index, attempt=attempt) for attempt in range(3)]
        assert len({problem.dataset for problem in drawn}) == 1
        assert len({problem.fingerprint for problem in drawn}) == 3


def test_a_later_attempt_in_the_largest_mixture_gives_another_problem():
    mixture = build_mixture([SUMS], seed=0, size=MAX_SPLIT_SIZE)
    assert len({mixture.draw(9, attempt=attempt).index for attempt in range(20)}) == 20


def test_the_same_mixture_gives_the_same_problems_twice():
    first, second = (build_mixture([SUMS, DatasetSpec("gcd")], seed=4, size=50) for _ in range(2))
    assert [p.fingerprint for p in first] == [p.fingerprint for p in second]


def test_other_seeds_and_splits_give_other_problems():
    drawn = [
        {problem.fingerprint for problem in build_mixture([SUMS], seed=seed, size=200, split=split)}
        for seed in (0, 1)
        for split in Split
    ]
    assert len(set.union(*drawn)) > 0.99 * sum(map(len, drawn))


def test_datasets_are_drawn_by_weight():
    specs = parse_mixture({"chain_sum": {"weight": 3}, "gcd": {"weight": 1}})
    drawn = Counter(problem.dataset for problem in build_mixture(specs, seed=0, size=2000))
    assert drawn["chain_sum"] / 2000 == pytest.approx(0.75, abs=0.04)


def test_a_dataset_of_weight_0_is_never_drawn():
    specs = parse_mixture({"chain_sum": {"weight": 0}, "gcd": {"weight": 0.1}})
    assert {problem.dataset for problem in build_mixture(specs, seed=0, size=100)} == {"gcd"}


def test_a_mixture_ends_at_its_size():
    mixture = build_mixture([SUMS], seed=0, size=5)
    assert len(mixture) == len(list(mixture)) == 5
    for index in (5, -1):
        with pytest.raises(IndexError):
            mixture[index]


def test_parameters_reach_the_dataset():
    specs = parse_mixture({"chain_sum": {"config": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}})
    for problem in build_mixture(specs, seed=0, size=50):
        assert len(problem.question) < len("State the final answer to the following arithmetic problem: 1 + 1 = ") + 5
        assert problem.entry["metadata"]["source_params"] == specs[0].params


def test_options_may_be_empty():
    assert parse_mixture({"gcd": None, "lcm": {"weight": 2, "config": None}}) == [
        DatasetSpec("gcd"),
        DatasetSpec("lcm", 2),
    ]


@pytest.mark.parametrize(
    ("name", "param", "values"),
    [
        ("basic_arithmetic", "operators", ["+", "-"]),
        ("countdown", "operators", ["+", "*"]),
        ("fraction_simplification", "styles", ["plain"]),
        ("polynomial_multiplication", "variables", ["a", "b"]),
        ("puzzle24", "operators", ["+", "*", "-", "/"]),
        ("simple_integration", "symbols", ["y"]),
    ],
)
def test_lists_become_tuples_if_the_dataset_expects_tuples(name, param, values):
    from_list = ProblemSource(DatasetSpec(name, params={param: values}), seed=0, size=10)
    from_tuple = ProblemSource(DatasetSpec(name, params={param: tuple(values)}), seed=0, size=10)
    assert isinstance(getattr(from_list._page(0).config, param), tuple)
    assert from_list[0].question == from_tuple[0].question


def test_lists_stay_lists_if_the_dataset_expects_lists():
    source = ProblemSource(DatasetSpec("advanced_geometry", params={"task_types": ["orthocenter"]}), seed=0, size=10)
    assert source._page(0).config.task_types == ["orthocenter"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (["chain_sum"], r"the mixture is a list; write a mapping, as in `\{chain_sum: \{weight: 1\}\}`"),
        (None, "the mixture is a NoneType; write a mapping"),
        ({}, "the mixture is empty; add at least one dataset"),
        ({"chain_summ": None}, r"unknown dataset 'chain_summ'; did you mean 'chain_sum' or 'decimal_chain_sum'\?"),
        ({"Chain-Sum": None}, r"unknown dataset 'Chain-Sum'; did you mean 'chain_sum'"),
        ({7: None}, r"unknown dataset 7; \(111 names are known, such as "),
        ({"composite": None}, "dataset 'composite' is itself a mixture; list its datasets directly"),
        ({"gcd": 2}, "dataset 'gcd' of the mixture is 2; write a mapping"),
        ({"gcd": 0}, "dataset 'gcd' of the mixture is 0; write a mapping"),
        ({"gcd": {"wieght": 2}}, r"dataset 'gcd' of the mixture has 'wieght'; use only"),
        ({"gcd": {"config": ["min_value"]}}, r"dataset 'gcd' has config \['min_value'\]; write a mapping"),
        ({"gcd": {"config": "min_value"}}, "dataset 'gcd' has config 'min_value'; write a mapping"),
        ({"gcd": {"config": {"min_valeu": 3}}}, r"'gcd' has no parameter 'min_valeu'; did you mean 'min_value'"),
        ({"gcd": {"config": {"seed": 3}}}, "parameter 'seed' of dataset 'gcd' is set by the mixture; remove it"),
        ({"gcd": {"config": {"size": 3}}}, "parameter 'size' of dataset 'gcd' is set by the mixture; remove it"),
        ({"chain_sum": {"config": {"min_terms": 9}}}, r"dataset 'chain_sum' refuses \{'min_terms': 9\}: max_terms"),
        (
            {"chain_sum": {"config": {"min_terms": "two"}}},
            "parameter 'min_terms' of dataset 'chain_sum' is 'two'; give a whole",
        ),
        ({"spell_backward": {"config": {"data_file": "none"}}}, "dataset 'spell_backward' refuses .*No such file"),
        ({"calendar_arithmetic": {"config": {"tasks": [1]}}}, r"dataset 'calendar_arithmetic' refuses \{'tasks'"),
        (
            {"calendar_arithmetic": {"config": {"tasks": [object]}}},
            "the parameters of dataset 'calendar_arithmetic' must be serialisable, but cannot serialise",
        ),
        ({"gcd": {"weight": -1}}, "dataset 'gcd' has weight -1; a weight is a number from 0 up"),
        ({"gcd": {"weight": float("nan")}}, "dataset 'gcd' has weight nan; a weight is a number from 0 up"),
        ({"gcd": {"weight": float("inf")}}, "dataset 'gcd' has weight inf; a weight is a number from 0 up"),
        ({"gcd": {"weight": True}}, "dataset 'gcd' has weight True; a weight is a number from 0 up"),
        ({"gcd": {"weight": "1"}}, "dataset 'gcd' has weight '1'; a weight is a number from 0 up"),
        ({"gcd": {"weight": None}}, "dataset 'gcd' has weight None; a weight is a number from 0 up"),
        ({"gcd": {"weight": 0}, "lcm": {"weight": 0.0}}, "the weights of gcd, lcm sum to 0; give one a weight above 0"),
    ],
)
def test_an_unusable_mixture_is_refused_with_the_reason(raw, message):
    with pytest.raises(ConfigError, match=message):
        parse_mixture(raw)


def test_specs_are_checked_even_if_they_were_not_parsed():
    with pytest.raises(ConfigError, match="unknown dataset 'gdc'"):
        build_mixture([DatasetSpec("gdc")], seed=0, size=1)


def test_a_name_other_than_its_generator_is_that_of_the_problem_but_not_of_its_scorer():
    [spec] = parse_mixture({"easy_sums": {"generator": "chain_sum", "config": {"max_terms": 2}}})
    [problem] = build_mixture([spec], seed=0, size=1)
    [plain] = build_mixture([replace(spec, name="chain_sum")], seed=0, size=1)
    metadata = problem.entry["metadata"]
    assert (problem.dataset, metadata["source_dataset"], metadata["source_params"]) == (
        "easy_sums",
        "chain_sum",
        {"max_terms": 2},
    )
    # The same question under another name is the same problem, which is not trained on if it is held out.
    assert problem.question == plain.question
    assert problem in HeldOut([plain])


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"sums": {"generator": "chain_sums"}}, "unknown dataset 'chain_sums'; did you mean 'chain_sum'"),
        ({"sums": {"generator": 3}}, "unknown dataset 3"),
        ({"gcd": {"generator": "chain_sum"}}, "'gcd' is a registered dataset with other problems; choose another name"),
        ({7: {"generator": "chain_sum"}}, "a dataset has the name 7"),
        ({7: None}, "unknown dataset 7"),
        ({"a b": {"generator": "chain_sum"}}, "has the name 'a b'; use letters"),
        ({"sums": {"generator": "chain_sum", "confg": {}}}, "has 'confg'; use only 'weight', 'config', 'generator'"),
    ],
)
def test_an_unusable_name_or_generator_is_refused(mixture, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_mixture(mixture)
