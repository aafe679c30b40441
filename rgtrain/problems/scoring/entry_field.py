"""Find the only field of an entry that a scorer reads, so that only this field is sent to workers."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any


def only_field_read(score_answer: Callable[..., Any]) -> str | None:
    """Find the only key that a scorer looks up in an entry, according to its source code.

    Args:
        score_answer: A function `score_answer(answer, entry)`.

    Returns:
        The key, or None if the function looks up other or variable keys, iterates over the entry or passes it on, or
        if its source code is not known.

    >>> def score_answer(answer, entry):
    ...     return float(answer == entry["answer"])
    >>> only_field_read(score_answer)
    'answer'
    """
    try:
        entry = list(inspect.signature(score_answer).parameters)[1]
        nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(score_answer)))))
    except (OSError, TypeError, ValueError, IndexError, SyntaxError):
        # Own functions may be compiled, decorated or lambdas.
        return None
    num_uses = sum(isinstance(node, ast.Name) and node.id == entry for node in nodes)
    keys = [key for node in nodes if (key := _key_read(node, entry)) is not None]
    return keys[0] if len(set(keys)) == 1 and len(keys) == num_uses else None


def _key_read(node: ast.AST, entry: str) -> str | None:
    match node:
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(key)), ctx=ast.Load()):
            return key if name == entry else None
    return None
