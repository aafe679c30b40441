"""Find the answer in a completion.

The rule, in training and evaluation alike: **the answer is the last closed answer block outside of thinking.**

- Thinking starts at a think tag and ends at the next closing one. Tags do not nest, because models mention them while
  they think. Every pair in `_THINK_TAGS` counts, and any closing tag ends any thinking.
- Thinking that is never closed ends with the completion. So a draft in it is no answer, whether or not the closing tag
  follows.
- A closing tag without thinking before it shows that the text before it was thinking. Chat templates may write the
  opening tag into the prompt. If the prompt is known, `thinking_begun` says so (see `opens_thinking`).
- An answer block is closed, and starts and ends outside of the same thinking. Of nested blocks, the innermost counts.

Spaces and capital letters are part of a tag: `<Answer>` and `<answer >` are text. An endpoint that returns its model's
reasoning apart has its reasoning put in front of the text as closed thinking.
"""

import re
from collections.abc import Mapping
from typing import Any

from rgtrain.problems.question_sources import JUDGED_WHOLE

_THINK_TAGS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3 and most others; the prompts of the paper
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ("[THINK]", "[/THINK]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi-VL
)
_THINK_OPENINGS = tuple(opening for opening, _ in _THINK_TAGS)
_THINK_CLOSINGS = frozenset(closing for _, closing in _THINK_TAGS)
_ANSWER_OPENING, _ANSWER_CLOSING = "<answer>", "</answer>"
# An opening think tag with white space after it has fewer tokens than this in every tokenizer.
PROMPT_END_TOKENS = 32
_TAG = re.compile("|".join(map(re.escape, (_ANSWER_OPENING, _ANSWER_CLOSING, *_THINK_OPENINGS, *_THINK_CLOSINGS))))


def extract_answer(completion: str, *, thinking_begun: bool = False) -> str | None:
    """Return the stripped text of the last closed answer block outside of thinking, or None if there is none.

    Args:
        completion: Text of a model. The time is linear in its length.
        thinking_begun: Whether the prompt ends with an opening think tag.

    Returns:
        The answer without its tags.

    >>> extract_answer("<think>maybe <answer>1</answer></think> <answer> 2 </answer>")
    '2'
    >>> extract_answer("<think>maybe <answer>1</answer>") is None
    True
    """
    thinking = thinking_begun
    # The start of the innermost open block, and the bounds of the last closed one.
    start: int | None = None
    found: tuple[int, int] | None = None
    for match in _TAG.finditer(completion):
        tag = match.group()
        if tag in _THINK_CLOSINGS:
            if not thinking:
                found = None
            thinking, start = False, None
        elif thinking:
            continue
        elif tag == _ANSWER_OPENING:
            start = match.end()
        elif tag == _ANSWER_CLOSING:
            if start is not None:
                found, start = (start, match.start()), None
        else:
            thinking, start = True, None
    return None if found is None else completion[slice(*found)].strip()


def judged_text(completion: str, entry: Mapping[str, Any], *, thinking_begun: bool = False) -> str | None:
    """Return the text of a completion that the scorer of an entry judges.

    Args:
        completion: Text of a model.
        entry: The entry. Some sources of problems have scorers that judge the whole completion.
        thinking_begun: Whether the prompt ends with an opening think tag.

    Returns:
        The whole completion, or the extracted answer, or None if there is no answer.
    """
    return completion if is_judged_whole(entry) else extract_answer(completion, thinking_begun=thinking_begun)


def is_judged_whole(entry: Mapping[str, Any]) -> bool:
    """Return whether the scorer of an entry judges whole completions instead of their answers."""
    return bool(entry.get("metadata", {}).get(JUDGED_WHOLE))


def opens_thinking(prompt: str) -> bool:
    r"""Return whether a prompt ends with an opening think tag, so that its completion starts with thinking.

    Args:
        prompt: The prompt as the model reads it, or the text of its last `PROMPT_END_TOKENS` tokens.

    >>> opens_thinking("<|im_start|>assistant\n<think>\n"), opens_thinking("<think>\n\n</think>\n\n")
    (True, False)
    """
    return prompt.rstrip().endswith(_THINK_OPENINGS)
