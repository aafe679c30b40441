"""Which fields of an entry a scorer reads: the rest need not be sent to another process."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any


def fields_read(score_answer: Callable[..., Any]) -> tuple[str, ...] | None:
    """The keys that `score_answer(answer, entry)` looks up in `entry`, from its source.

    None where the whole entry is needed: it is handed on, iterated or asked for a key that is not written out.

    >>> def score_answer(answer, entry):
    ...     return float(answer == entry["answer"])
    >>> fields_read(score_answer)
    ('answer',)
    """
    entry = list(inspect.signature(score_answer).parameters)[1]
    tree = ast.parse(textwrap.dedent(inspect.getsource(score_answer)))
    uses = sum(isinstance(node, ast.Name) and node.id == entry for node in ast.walk(tree))
    keys = [key for node in ast.walk(tree) if (key := _key_read(node, entry)) is not None]
    return tuple(sorted(set(keys))) if len(keys) == uses else None


def _key_read(node: ast.AST, entry: str) -> str | None:
    match node:
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(key)), ctx=ast.Load()):
            return key if name == entry else None
    return None
