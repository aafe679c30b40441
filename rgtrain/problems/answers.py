"""Finding the answer in a completion."""

_OPEN = "<answer>"
_CLOSE = "</answer>"
_THINK_END = "</think>"


def extract_answer(completion: str) -> str | None:
    """The text of the last closed answer block, stripped; None where there is none.

    Blocks inside a think part that is closed later are drafts and don't count; in nested or stray opening tags the
    innermost one wins, so a tag mentioned earlier is not swallowed into the answer. Linear in the completion's length.

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
    # The first closing tag behind it, not the last one: in nested blocks that is another's.
    return text[start : text.index(_CLOSE, start)].strip()
