"""The text of an assistant's message, as the model wrote it."""

from collections.abc import Mapping, Sequence
from typing import Any


def message_text(content: Any, reasoning: str | None = None, *, thinking_begun: bool = False) -> str:
    r"""Return the text of a message whose reasoning a server or a parser may have taken apart.

    Args:
        content: The content: a text, parts of which those with a `text` count, or None.
        reasoning: The reasoning, which is put in front as a closed think part.
        thinking_begun: Whether the prompt ended with an opening think tag, which is then not part of the text.

    Returns:
        The text.

    >>> message_text("<answer>4</answer>", "2 + 2")
    '<think>\n2 + 2\n</think>\n<answer>4</answer>'
    """
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "\n".join(str(part["text"]) for part in content if isinstance(part, Mapping) and "text" in part)
    if not reasoning:
        return content or ""
    opening = "" if thinking_begun else "<think>\n"
    return f"{opening}{reasoning}\n</think>\n{content or ''}"
