import json
from collections import OrderedDict
from datetime import date
from fractions import Fraction

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgtrain.problems import dump_entry, fingerprint, load_entry

NO_ORACLE = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}

numbers = st.booleans() | st.integers() | st.floats() | st.fractions() | st.complex_numbers()
plain = st.none() | numbers | st.text()
hashables = st.deferred(lambda: plain | st.tuples(hashables, hashables) | st.frozensets(hashables, max_size=3))
containers = st.deferred(
    lambda: (
        st.lists(values, max_size=3)
        | st.tuples(values)
        | st.sets(hashables, max_size=3)
        | st.dictionaries(hashables, values, max_size=3)
    )
)
values = st.deferred(lambda: hashables | containers)


def typed(value):
    """Return `value` as text with the types of all its parts; numpy scalars count as equal Python values."""
    if hasattr(value, "dtype"):
        value = value.item()
    name = type(value).__name__
    if isinstance(value, dict):
        return f"{name}({[(typed(key), typed(item)) for key, item in value.items()]})"
    if isinstance(value, list | tuple):
        return f"{name}({[typed(item) for item in value]})"
    if isinstance(value, set | frozenset):
        return f"{name}({sorted(typed(item) for item in value)})"
    return f"{name}({value!r})"


def test_entries_of_every_dataset_keep_all_types(problems):
    differing = [
        f"{name}[{problem.index}]"
        for name, made in problems.items()
        for problem in made
        if typed(load_entry(dump_entry(problem.entry))) != typed(problem.entry)
    ]
    assert differing == []


def test_the_right_answer_scores_1_after_the_round_trip(problems, scorer):
    scores = {
        (name, problem.index): scorer.score(problem.entry["answer"], load_entry(dump_entry(problem.entry)))
        for name, made in problems.items()
        for problem in made[:2]
        if problem.entry["answer"] is not None
    }
    assert {where: score for where, score in scores.items() if score.accuracy != 1.0} == {}
    assert {name for name, _ in scores} == set(problems) - NO_ORACLE


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("graph_color", "possible_answer"),
        ("propositional_logic", "example_answer"),
        ("rubiks_cube", "example_correct_answer"),
    ],
)
def test_an_example_answer_scores_1_after_the_round_trip_if_there_is_no_oracle(problems, scorer, name, key):
    for problem in problems[name]:
        answer = problem.entry["metadata"][key]
        text = answer if isinstance(answer, str) else json.dumps(answer)
        assert scorer.score(text, load_entry(dump_entry(problem.entry))).accuracy == 1.0


@given(values)
def test_every_value_of_a_known_type_keeps_its_type(value):
    assert typed(load_entry(dump_entry({"value": value}))) == typed({"value": value})


def test_an_entry_is_one_line(problems):
    assert all("\n" not in dump_entry(made[0].entry) for made in problems.values())


def test_the_order_of_keys_is_kept():
    entry = {"b": 1, "a": {2: "x", 1: "y"}}
    assert str(load_entry(dump_entry(entry))) == str(entry)


def test_a_dictionary_that_looks_like_a_tagged_value_is_restored():
    entry = {"__type__": "tuple", "items": [1, 2]}
    assert load_entry(dump_entry(entry)) == entry


def test_the_text_of_a_set_does_not_depend_on_its_order():
    assert dump_entry({"set": {"a", "b", "c"}}) == dump_entry({"set": {"c", "b", "a"}})


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (numpy.float64(0.5), 0.5),
        (numpy.int64(3), 3),
        (numpy.bool_(True), True),
        (numpy.str_("a"), "a"),
        (numpy.array(7), 7),
        (OrderedDict(a=1), {"a": 1}),
    ],
)
def test_numpy_scalars_and_ordered_dictionaries_become_plain_values(value, plain):
    [back] = load_entry(dump_entry({"value": value})).values()
    assert (type(back), back) == (type(plain), plain)


@pytest.mark.parametrize(
    "value", [object(), b"bytes", date(2020, 1, 1), numpy.array([1]), numpy.array([1, 2]), [range(3)], {"x": {1j: len}}]
)
def test_a_value_of_an_unknown_type_is_refused(value):
    with pytest.raises(TypeError, match=r"cannot serialise a [\w.]+ in an entry"):
        dump_entry({"value": value})


def test_an_unknown_tag_is_refused():
    with pytest.raises(ValueError, match="unknown type tag 'decimal' in an entry"):
        load_entry('{"value": {"__type__": "decimal", "items": []}}')


def test_a_fraction_stays_a_fraction():
    assert load_entry(dump_entry({"value": Fraction(1, 3)})) == {"value": Fraction(1, 3)}


def test_a_fingerprint_depends_on_dataset_and_question():
    prints = {fingerprint("gcd", "1 2"), fingerprint("gcd", "12"), fingerprint("lcm", "1 2"), fingerprint("gc", "d1 2")}
    assert len(prints) == 4


def test_a_fingerprint_does_not_depend_on_white_space():
    assert fingerprint("gcd", " What\n is  it? ") == fingerprint("gcd", "What is it?")


@given(st.text(st.characters(), max_size=20))
def test_every_text_has_a_fingerprint_of_32_hex_digits(question):
    assert len(bytes.fromhex(fingerprint("gcd", question))) == 16
