import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgtrain.problems import extract_answer

TAGS = ("<answer>", "</answer>", "<think>", "</think>", "<answer", "</", ">", " ", "\n", "1", "x y", "é")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        # One block.
        ("<answer>42</answer>", "42"),
        ("It is <answer>42</answer>, I think.", "42"),
        ("<answer> 4 2\n</answer>", "4 2"),
        ("<answer>\n1 2\n3 4\n</answer>", "1 2\n3 4"),
        ("<answer></answer>", ""),
        ("<answer> \n </answer>", ""),
        ("<answer>a < b > c</answer>", "a < b > c"),
        ("<answer><b>1</b></answer>", "<b>1</b>"),
        # Missing, unclosed or unopened blocks.
        ("", None),
        ("42", None),
        ("<answer>42", None),
        ("42</answer>", None),
        ("</answer>42<answer>", None),
        ("<answer>42<answer>", None),
        # Other spellings are not tags.
        ("<Answer>42</Answer>", None),
        ("<ANSWER>42</ANSWER>", None),
        ("<answer >42</answer>", None),
        ("<answer id=1>42</answer>", None),
        ("<answer>42</ answer>", None),
        ("\\boxed{42}", None),
        # Several blocks: the last closed one is the answer.
        ("<answer>1</answer><answer>2</answer>", "2"),
        ("<answer>1</answer> no: <answer>2</answer> that's it", "2"),
        ("<answer>1</answer> or <answer>2", "1"),
        ("<answer>1</answer> or 2</answer>", "1"),
        # Nested and stray tags: the innermost block is the answer.
        ("<answer>1 <answer>2</answer></answer>", "2"),
        ("<answer>1 <answer>2</answer> 3</answer>", "2"),
        ("<answer><answer><answer>3</answer></answer></answer>", "3"),
        ("I will write <answer> and then: <answer>2</answer>", "2"),
        ("</answer><answer>2</answer>", "2"),
        # Think blocks.
        ("<think>1</think><answer>2</answer>", "2"),
        ("<think><answer>1</answer></think><answer>2</answer>", "2"),
        ("<think><answer>1</answer></think>", None),
        ("<think><answer>1</answer></think>2", None),
        ("<answer>1</answer></think>", None),
        ("<think><answer>1</think>2</answer>", None),
        ("<think>a</think><answer>1</answer><think>b</think>", None),
        ("<think>a</think><think>b</think><answer>1</answer>", "1"),
        # An unclosed think block hides no answer.
        ("<think><answer>1</answer>", "1"),
        ("<answer>1</answer><think>", "1"),
        ("a</think><answer>1</answer>", "1"),
    ],
)
def test_the_answer_is_the_last_closed_block_after_the_think_block(completion, answer):
    assert extract_answer(completion) == answer


@given(st.lists(st.sampled_from(TAGS) | st.text(max_size=3), max_size=30).map("".join))
def test_any_text_gives_none_or_a_stripped_substring_without_answer_tags(completion):
    answer = extract_answer(completion)
    if answer is not None:
        assert answer in completion
        assert answer == answer.strip()
        assert "</answer>" not in answer
        assert "<answer>" not in answer


@given(st.lists(st.sampled_from(TAGS), max_size=30).map("".join), st.text().filter(lambda t: "<" not in t))
def test_a_block_at_the_end_is_the_answer_after_any_text(before, answer):
    assert extract_answer(f"{before}<answer>{answer}</answer>") == answer.strip()


# Quadratic time would take hours on these.
@pytest.mark.parametrize(
    ("unit", "answer"),
    [
        ("<answer>", None),
        ("</answer>", None),
        ("<think>", None),
        ("</think>", None),
        ("<answer></answer>", ""),
        ("<answer>x", None),
        ("<answer", None),
        ("<", None),
        (" ", None),
        ("</think><answer>x</answer>", "x"),
        ("<answer>x</answer></think>", None),
    ],
)
def test_five_megabytes_of_tags_take_linear_time(unit, answer):
    assert extract_answer(unit * (5_000_000 // len(unit))) == answer


def test_an_answer_of_five_megabytes_is_found():
    answer = "x" * 5_000_000
    assert extract_answer(f"<answer>{answer}</answer>") == answer
    assert extract_answer(f"<answer>{'<answer>' * 600_000}{answer}</answer>") == answer


def test_the_innermost_of_deeply_nested_blocks_is_the_answer():
    assert extract_answer("<answer>" * 300_000 + "x" + "</answer>" * 300_000) == "x"
