import reasoning_gym

from rgtrain.problems.scoring.entry_field import only_field_read


def reads_one_twice(answer, entry):
    return float(answer in entry["answer"] and entry["answer"] in answer)


def reads_two(answer, entry):
    metadata = entry["metadata"]
    return float(answer == entry["answer"] and metadata["size"] > 1)


def passes_it_on(answer, entry):
    return reads_two(answer, entry)


def asks_by_variable(answer, entry):
    return max(float(answer == entry[key]) for key in ("answer", "question"))


def asks_by_method(answer, entry):
    return float(answer == entry.get("answer"))


def writes_into_it(answer, entry):
    entry["answer"] = answer
    return float(entry["answer"] == answer)


def renames_it(answer, entry):
    item = entry
    return float(answer == item["answer"])


def test_a_single_field_is_found():
    assert only_field_read(reads_one_twice) == "answer"


def test_any_other_use_needs_the_whole_entry():
    others = (reads_two, passes_it_on, asks_by_variable, asks_by_method, writes_into_it, renames_it)
    assert [only_field_read(function) for function in others] == [None] * len(others)


def test_the_default_scorer_of_reasoning_gym_reads_only_the_answer():
    assert only_field_read(reasoning_gym.create_dataset("gcd", seed=0, size=1).score_answer) == "answer"
