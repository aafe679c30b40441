from rgtrain.evaluation.judged_answers import Answer
from rgtrain.reporting.levels import accuracy_by_level


def leveled(values: list[float], right: list[bool]) -> list[Answer]:
    return [
        Answer(
            i, 0, "c", "d", 0, i, str(i), None, float(is_right), None, 1, "stop", difficulty={"n": value, "fixed": 3}
        )
        for i, (value, is_right) in enumerate(zip(values, right, strict=True))
    ]


def test_levels_are_the_values_of_quantities_that_vary():
    [(name, levels)] = accuracy_by_level(leveled([3, 2, 2, 3], [True, False, True, True])).items()
    assert name == "n"
    assert [(level.label, level.num_problems, level.accuracy) for level in levels] == [("2", 2, 0.5), ("3", 2, 1)]


def test_many_values_are_merged_into_few_levels_without_losing_a_problem():
    levels = accuracy_by_level(leveled(list(range(100)), [True] * 100))["n"]
    assert 5 <= len(levels) <= 8
    assert sum(level.num_problems for level in levels) == 100
    assert (levels[0].label, levels[-1].label) == ("0 to 12", "91 to 99")
