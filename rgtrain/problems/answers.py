"""Find the answer in a completion."""

_OPEN = "<answer>"
_CLOSE = "</answer>"
_THINK_END = "</think>"


def extract_answer(completion: str) -> str | None:
    """Return the stripped text of the last closed answer block, or None if there is none.

    Blocks before the last `</think>` are drafts and are ignored. If there are several opening tags, the innermost one
    starts the answer, so a tag that is only mentioned earlier does not count.

    Args:
        completion: Text of a model. The time is linear in its length.

    Returns:
        The answer without its tags.

    >>> extract_answer("<think>maybe <answer>1</answer></think> <answer> 2 </answer>")
    '2'
    """
    text = completion[completion.rfind(_THINK_END) + len(_THINK_END) :] if _THINK_END in completion else completion
    end = text.rfind(_CLOSE)
    if end < 0:
        return None
    start = text.rfind(_OPEN, 0, end)
    if start < 0:
        return None
    start += len(_OPEN)
    # Use the first closing tag after it; in nested blocks the last one belongs to an outer block.
    return text[start : text.index(_CLOSE, start)].strip()
