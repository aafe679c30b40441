"""Find the answer in a completion."""

_OPEN = "<answer>"
_CLOSE = "</answer>"
_THINK_END = "</think>"


def extract_answer(completion: str) -> str | None:
    """Return the text of the last closed answer block, stripped, or None if there is none.

    Blocks inside a think part that is closed later are drafts and do not count. Among nested or stray opening tags the
    innermost one wins, so that a tag mentioned earlier is no part of the answer. The time is linear in the length of
    the completion.

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
    # The first closing tag after it, because in nested blocks the last one belongs to an outer block.
    return text[start : text.index(_CLOSE, start)].strip()
