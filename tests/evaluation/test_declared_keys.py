"""Keys that are declared as fields of a dataclass."""

from dataclasses import dataclass, field

import pytest

from rgtrain.config.value_rules import FLAG, MAPPING, TEXT, number, one_of, or_null, whole_number
from rgtrain.errors import ConfigError
from rgtrain.evaluation.declared_keys import declare, describe, keys_of


@dataclass(frozen=True)
class Meal:
    cook: str
    num_guests: int = field(metadata=declare("those who eat", whole_number(1)))
    courses: list[str] = field(default_factory=list, metadata=declare("the dishes in turn", TEXT, name="dishes"))


def test_only_declared_fields_are_keys_under_the_names_that_they_declare():
    keys = keys_of(Meal)
    assert [(name, key.field.name, key.is_required) for name, key in keys.items()] == [
        ("num_guests", "num_guests", True),
        ("dishes", "courses", False),
    ]
    assert keys["dishes"].default == []


def test_the_help_shows_the_rule_and_default_of_each_key(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert describe(Meal).splitlines() == [
        "  num_guests            those who eat (a whole number from 1",
        "                        up; required)",
        "  dishes                the dishes in turn (a text; default",
        "                        [])",
    ]


@pytest.mark.parametrize(
    ("rule", "allowed", "refused"),
    [
        (whole_number(1), [1, 10**30], [0, 1.0, True, "1", None]),
        (
            number(lambda value: value > 0, "above 0"),
            [1, 0.5],
            [0, True, "1", None, float("nan"), float("inf"), 10**400],
        ),
        (one_of("a", "b"), ["a"], ["c", "", None, ["a"]]),
        (or_null(whole_number(1), "no limit"), [1, None], [0, "null"]),
        (FLAG, [True, False], [0, 1, "true", None]),
        (TEXT, ["a"], ["", " ", 1, None]),
        (MAPPING, [{}], [[], "a: 1", None]),
    ],
    ids=lambda value: getattr(value, "words", ""),
)
def test_a_rule_allows_no_other_values(rule, allowed, refused):
    assert [rule.allows(value) for value in allowed] == [True] * len(allowed)
    assert [rule.allows(value) for value in refused] == [False] * len(refused)


def test_the_error_names_the_refused_value_and_the_allowed_ones():
    with pytest.raises(ConfigError, match=r"^the meal's num_guests is 0; give a whole number from 1 up$"):
        keys_of(Meal)["num_guests"].check(0, prefix="the meal's ")
