import pytest
import reasoning_gym
from hypothesis import given
from hypothesis import strategies as st

from rgtrain.problems import answers, extract_answer
from rgtrain.problems.answers import opens_thinking

TAGS = ("<answer>", "</answer>", "<think>", "</think>", "<answer", "</", ">", " ", "\n", "1", "x y", "é")
ANSWER_TAGS = ("<answer>", "</answer>", "<answer", " ", "\n", "1", "x y", "é")
texts_without_thinking = st.lists(st.sampled_from(ANSWER_TAGS), max_size=12).map("".join)


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
        # After thinking.
        ("<think>1</think><answer>2</answer>", "2"),
        ("<think><answer>1</answer></think><answer>2</answer>", "2"),
        ("<think>a</think><think>b</think><answer>1</answer>", "1"),
        ("<think>a</think><answer>1", None),
        # A draft is no answer, whether or not its thinking is closed.
        ("<think><answer>1</answer>", None),
        ("<think><answer>1</answer></think>", None),
        ("<think><answer>1</answer></think>2", None),
        ("<think>a</think> hm <think><answer>1</answer>", None),
        # An answer before more thinking counts, whether or not that thinking is closed.
        ("<answer>1</answer><think>", "1"),
        ("<answer>1</answer><think>b</think>", "1"),
        ("<think>a</think><answer>1</answer><think>b <answer>2</answer>", "1"),
        ("<think>a</think><answer>1</answer><think>b <answer>2</answer></think>", "1"),
        ("<think>a</think><answer>1</answer><think>b</think><answer>2</answer>", "2"),
        # A block that starts or ends in thinking.
        ("<think><answer>1</think>2</answer>", None),
        ("<answer>1<think>2</answer>", None),
        ("<answer><think>a</think>2</answer>", None),
        ("I write <answer>: <think><answer>1</answer></think>2</answer>", None),
        # A closing tag without thinking before it: the text before it was thinking.
        ("a</think><answer>1</answer>", "1"),
        ("<answer>1</answer></think>", None),
        ("<answer>1</answer></think><answer>2</answer>", "2"),
        ("<think>a</think><answer>1</answer> hm </think>", None),
        ("<think>a</think>b</think><answer>1</answer>", "1"),
        # Think tags do not nest.
        ("<think>a<think>b</think><answer>1</answer>", "1"),
        ("<think>I use <think> tags. <answer>1</answer></think><answer>2</answer>", "2"),
        ("<think>a<think>b</think>c<answer>1</answer></think>", None),
        # Cut off by the limit on tokens.
        ("<think>It may be <answer>1</answer>, but", None),
        ("<answer>1</answer> Let me check: <answer>2", "1"),
        # Other spellings of the think tags are text.
        ("<Think><answer>1</answer>", "1"),
        ("<think ><answer>1</answer>", "1"),
        ("[think]<answer>1</answer>", "1"),
    ],
)
def test_the_answer_is_the_last_closed_block_outside_of_thinking(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(("opening", "closing"), answers._THINK_TAGS)
def test_every_pair_of_think_tags_hides_drafts(opening, closing):
    assert extract_answer(f"{opening}<answer>1</answer>") is None
    assert extract_answer(f"{opening}<answer>1</answer>{closing}<answer>2</answer>") == "2"
    assert extract_answer(f"<answer>1</answer>{closing}") is None
    # Models mix the pairs.
    assert extract_answer(f"{opening}a</think><answer>1</answer>") == "1"
    assert extract_answer(f"<think>a{closing}<answer>1</answer>") == "1"
    assert opens_thinking(f"<|assistant|>{opening}\n")
    assert not opens_thinking(f"<|assistant|>{opening}\n\n{closing}\n\n")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("a</think><answer>1</answer>", "1"),
        ("<answer>1</answer></think><answer>2</answer>", "2"),
        ("<answer>1</answer>", None),
        ("<answer>1</answer></think>", None),
        # Some models write the tag again.
        ("<think>a</think><answer>1</answer>", "1"),
    ],
)
def test_a_prompt_that_opens_thinking_counts_like_a_completion_that_does(completion, answer):
    assert extract_answer(completion, thinking_begun=True) == answer
    assert extract_answer(f"<think>{completion}") == answer


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("Think between <think> and </think>.<|im_start|>assistant\n", False),
        ("Start with <think><|im_end|>\n<|im_start|>assistant\n", False),
        ("", False),
    ],
)
def test_a_prompt_opens_thinking_if_it_ends_with_the_tag(prompt, opened):
    assert opens_thinking(prompt) == opened


def test_a_draft_counts_no_more_and_no_less_after_its_thinking_is_closed():
    drafts = ["<think>a <answer>1</answer>", "<answer>1</answer> <think>b", "<think>a</think><answer>1</answer><think>"]
    assert [extract_answer(f"{draft}</think>") for draft in drafts] == [extract_answer(draft) for draft in drafts]


@given(texts_without_thinking)
def test_without_thinking_the_answer_is_reasoning_gyms_unless_blocks_are_nested(completion):
    theirs = reasoning_gym.utils.extract_answer(completion)
    if theirs is None or "<answer>" not in theirs:
        assert extract_answer(completion) == theirs


@given(texts_without_thinking, texts_without_thinking)
def test_thoughts_before_the_closing_tag_do_not_matter(thoughts, text):
    assert extract_answer(f"<think>{thoughts}</think>{text}") == extract_answer(text)


@given(st.lists(st.sampled_from(TAGS) | st.text(max_size=3), max_size=30).map("".join))
def test_any_text_gives_none_or_a_stripped_substring_without_answer_tags(completion):
    answer = extract_answer(completion)
    if answer is not None:
        assert answer in completion
        assert answer == answer.strip()
        assert "</answer>" not in answer
        assert "<answer>" not in answer


@given(st.lists(st.sampled_from(TAGS), max_size=30).map("".join), st.text().filter(lambda t: "<" not in t))
def test_a_block_at_the_end_is_the_answer_after_any_closed_thinking(before, answer):
    assert extract_answer(f"{before}</think><answer>{answer}</answer>") == answer.strip()


# Quadratic time would take many minutes on these.
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
        ("[THINK", None),
        (" ", None),
        ("</think><answer>x</answer>", "x"),
        ("<answer>x</answer></think>", None),
    ],
)
def test_a_megabyte_of_tags_takes_linear_time(unit, answer):
    assert extract_answer(unit * (1_000_000 // len(unit))) == answer


def test_an_answer_of_five_megabytes_is_found():
    answer = "x" * 5_000_000
    assert extract_answer(f"<answer>{answer}</answer>") == answer
    assert extract_answer(f"<answer>{'<answer>' * 600_000}{answer}</answer>") == answer


def test_the_innermost_of_deeply_nested_blocks_is_the_answer():
    assert extract_answer("<answer>" * 300_000 + "x" + "</answer>" * 300_000) == "x"
