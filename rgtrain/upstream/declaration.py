"""The form in which every replacement of a foreign name is declared, and the checks of what each relies on.

Names are written as `module:path`. A path has attributes and items, such as `EngineRegistry._engines[language_model]`.
An item whose key is a tuple has commas: `_ROLLOUT_REGISTRY[vllm,async]`.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Role = Literal["platform", "trainer", "worker", "rollout"]
Device = Literal["cpu", "cuda"]

# Stands for a name that upstream does not have.
MISSING = object()


class UpstreamChanged(RuntimeError):
    """The installed verl, vLLM, torch, transformers or Ray is not what a replacement was written for."""


@dataclass(frozen=True)
class Mismatch:
    """One expectation that the installed version does not meet.

    Attributes:
        kind: "gone" if upstream lacks a name, "changed" if it holds another object, "obsolete" if upstream has what we
            supply.
        detail: A sentence for the person who upgrades.
    """

    kind: Literal["gone", "changed", "obsolete"]
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


class Expectation(Protocol):
    """A property of the installed version that a replacement relies on."""

    def mismatch(self, target: str, original: Any) -> Mismatch | None:
        """Return the mismatch, or None. `original` is the object at `target` before it is replaced, or MISSING."""


@dataclass(frozen=True)
class Source:
    """The source text of `of`, a function, class or module, is one that the replacement was written for.

    Attributes:
        of: Its name.
        hashes: One for each accepted version of the text: the first 12 hex digits of its SHA-256.
    """

    of: str
    hashes: tuple[str, ...]

    def mismatch(self, target: str, original: Any) -> Mismatch | None:
        text = source_text(self.of)
        if text is None:
            return Mismatch("gone", f"there is no {self.of}")
        found = source_hash(text)
        if found in self.hashes:
            return None
        return Mismatch("changed", f"the source of {self.of} has the hash {found}, not {' or '.join(self.hashes)}")


@dataclass(frozen=True)
class Mentions:
    """The source text of `caller` contains `text`, such as the call of the replaced name by this very name."""

    caller: str
    text: str

    def mismatch(self, target: str, original: Any) -> Mismatch | None:
        source = source_text(self.caller)
        if source is None:
            return Mismatch("gone", f"there is no {self.caller}")
        return None if self.text in source else Mismatch("changed", f"{self.caller} no longer contains {self.text!r}")


@dataclass(frozen=True)
class Missing:
    """Upstream does not have the name: the replacement supplies it."""

    def mismatch(self, target: str, original: Any) -> Mismatch | None:
        return None if original is MISSING else Mismatch("obsolete", f"{target} exists: remove the replacement")


@dataclass(frozen=True)
class Is:
    """The name holds the object `value`, which is the name of an object, or a text that stands for itself."""

    value: str

    def mismatch(self, target: str, original: Any) -> Mismatch | None:
        if original is MISSING:
            return Mismatch("gone", f"there is no {target}")
        expected = resolve(self.value) if ":" in self.value else self.value
        if original is expected or original == expected:
            return None
        return Mismatch("changed", f"{target} is {original!r}, not {self.value}")


@dataclass(frozen=True)
class Condition:
    """The function `holds` of ours returns True. If not, upstream no longer needs the replacement.

    Attributes:
        holds: The name of a function without arguments.
        otherwise: The sentence for the person who upgrades.
    """

    holds: str
    otherwise: str

    def mismatch(self, target: str, original: Any) -> Mismatch | None:
        return None if resolve(self.holds)() else Mismatch("obsolete", self.otherwise)


@dataclass(frozen=True)
class Replacement:
    """A name of another library that holds an object of ours in our processes.

    Attributes:
        target: The replaced name.
        replacement: The name of our object.
        role: The processes that need it: all that import verl on a machine without an accelerator ("platform"), the
            "trainer", the "worker", or the worker's engine of vLLM ("rollout").
        reason: Why, in a sentence.
        expects: Properties of upstream that it relies on.
        device: The only device that needs it; None: all.
        wraps: Whether `replacement` is a function that takes the original object and returns the object to use.
        issue: Upstream's issue about it, if there is one.
    """

    target: str
    replacement: str
    role: Role
    reason: str
    expects: tuple[Expectation, ...]
    device: Device | None = None
    wraps: bool = False
    issue: str | None = None

    @property
    def name(self) -> str:
        """The row's name in tables and messages."""
        return self.target

    def mismatches(self) -> list[Mismatch]:
        """Compare the installed version with what this replacement was written for."""
        if self.target in _ORIGINALS:
            original = _ORIGINALS[self.target]
        else:
            try:
                original = resolve(self.target)
            except (ImportError, AttributeError, KeyError):
                original = MISSING
        if original is MISSING and not any(isinstance(expected, Missing) for expected in self.expects):
            return [Mismatch("gone", f"there is no {self.target}")]
        return [found for expected in self.expects if (found := expected.mismatch(self.target, original)) is not None]

    def apply(self) -> None:
        """Put our object in the place of upstream's. The second call does nothing."""
        if self.target in _ORIGINALS:
            return
        holder, last = _holder(self.target)
        original = _get(holder, last, MISSING)
        ours = resolve(self.replacement)
        _ORIGINALS[self.target] = original
        _set(holder, last, ours(original) if self.wraps else ours)


@dataclass(frozen=True)
class Override:
    """Methods of a foreign class that a subclass of ours overrides.

    Attributes:
        ours: The name of the subclass.
        base: The name of the foreign class.
        methods: The parameters of each overridden method as upstream declares them, without annotations; several if
            versions differ.
        role: The processes that use the subclass.
        reason: Why, in a sentence.
        device: The only device that uses it; None: all.
    """

    ours: str
    base: str
    methods: Mapping[str, str | tuple[str, ...]]
    role: Role
    reason: str
    device: Device | None = None

    @property
    def name(self) -> str:
        """The row's name in tables and messages."""
        return f"methods of {self.base}"

    def mismatches(self) -> list[Mismatch]:
        """Compare the installed class with the one that our subclass was written for."""
        try:
            base = resolve(self.base)
        except (ImportError, AttributeError):
            return [Mismatch("gone", f"there is no {self.base}")]
        found = []
        for method, parameters in self.methods.items():
            if not hasattr(base, method):
                found.append(Mismatch("gone", f"{self.base} has no method {method}: nothing calls ours"))
                continue
            actual, accepted = (
                method_parameters(base, method),
                (parameters,) if isinstance(parameters, str) else parameters,
            )
            if actual not in accepted:
                expected = " or ".join(f"({each})" for each in accepted)
                found.append(Mismatch("changed", f"{self.base}.{method} takes ({actual}), not {expected}"))
        return found


# The objects that were replaced in this process, by the names that held them.
_ORIGINALS: dict[str, Any] = {}


def resolve(name: str) -> Any:
    """Return the object of a name.

    Raises:
        ImportError: There is no such module.
        AttributeError: The module has no such attribute.
        KeyError: A mapping on the way has no such item.
    """
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for step in _steps(path):
        found = _get(found, step)
    return found


def method_parameters(cls: type, method: str) -> str:
    """Return the parameters of a method as in its `def`, without annotations; empty for a property."""
    function = inspect.getattr_static(cls, method)
    function = getattr(function, "__func__", function)
    if not callable(function):
        return ""
    signature = inspect.signature(inspect.unwrap(function))
    parameters = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(inspect.Signature(parameters))[1:-1]


def source_text(name: str) -> str | None:
    """Return the source text of a function, class or module without importing its module; None if it does not exist."""
    module, _, path = name.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).read_text(encoding="utf-8")
    if not path:
        return text
    node: ast.AST = ast.parse(text)
    for step in path.split("."):
        found = [child for child in ast.walk(node) if _defines(child, step)]
        if not found:
            return None
        node = found[0]
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return None
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))


def source_hash(text: str) -> str:
    """Return the hash of a source text that `Source` compares."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _defines(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name


def _steps(path: str) -> Iterator[tuple[Literal["attribute", "item"], Any]]:
    for attribute, item in re.findall(r"(\w+)|\[([^\]]+)\]", path):
        if attribute:
            yield "attribute", attribute
        else:
            keys = tuple(item.split(","))
            yield "item", keys if len(keys) > 1 else item


def _holder(name: str) -> tuple[Any, tuple[Literal["attribute", "item"], Any]]:
    """The object that holds a name, and the last step to it."""
    module, _, path = name.partition(":")
    *steps, last = _steps(path)
    holder: Any = importlib.import_module(module)
    for step in steps:
        holder = _get(holder, step)
    return holder, last


def _get(holder: Any, step: tuple[str, Any], *default: Any) -> Any:
    kind, key = step
    if kind == "attribute":
        # Of a class, a static method as it is called; of everything else, the attribute.
        return getattr(holder, key, *default)
    return holder.get(key, *default) if default else holder[key]


def _set(holder: Any, step: tuple[str, Any], value: Any) -> None:
    kind, key = step
    if kind == "attribute":
        setattr(holder, key, value)
    else:
        holder[key] = value
