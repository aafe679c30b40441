"""Classes that declare replaced names of other libraries and check the assumptions of each replacement.

Names are written as `module:path`. A path has attributes and items, such as `EngineRegistry._engines[language_model]`.
A key that is a tuple is written with commas, such as `_ROLLOUT_REGISTRY[vllm,async]`.
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
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

Role = Literal[
    "platform",
    "trainer",
    "fast_trainer",
    "stock_launcher",
    "stock_trainer",
    "sft_trainer",
    "worker",
    "fast_worker",
    "stock_worker",
    "rollout",
    "fast_rollout",
    "evaluation",
]
Device = Literal["cpu", "cuda"]

# The value of a name that upstream does not have.
MISSING = object()


class UpstreamChanged(RuntimeError):
    """An installed version of verl, vLLM, torch, transformers or Ray does not match a replacement."""


@dataclass(frozen=True)
class Mismatch:
    """One expectation that the installed version does not meet.

    Attributes:
        kind: "gone" if upstream lacks a name, "changed" if the name holds another object, or "obsolete" if upstream no
            longer needs the replacement.
        detail: A sentence for the person who upgrades the package.
    """

    kind: Literal["gone", "changed", "obsolete"]
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


class Expectation(Protocol):
    """A property of the installed version that a replacement relies on."""

    def mismatch(self, target: str, original: Any) -> Mismatch | None:
        """Compare the installed version with the expectation.

        Args:
            target: The replaced name.
            original: The object that the name holds before it is replaced, or MISSING.

        Returns:
            The mismatch, or None if the expectation is met.
        """


@dataclass(frozen=True)
class Source:
    """The source text of `of` is a version that the replacement was written for.

    Attributes:
        of: The name of a function, class or module.
        hashes: The accepted hashes, which are the first 12 hex digits of the SHA-256 of the text.
    """

    of: str
    hashes: tuple[str, ...]

    def mismatch(self, target: str, original: Any) -> Mismatch | None:
        """Compare the hash of the installed source text."""
        text = source_text(self.of)
        if text is None:
            return Mismatch("gone", f"there is no {self.of}")
        found = source_hash(text)
        if found in self.hashes:
            return None
        return Mismatch("changed", f"the source of {self.of} has the hash {found}, not {' or '.join(self.hashes)}")


@dataclass(frozen=True)
class Mentions:
    """The source text of `caller` contains `text`, for example a call of the replaced name."""

    caller: str
    text: str

    def mismatch(self, target: str, original: Any) -> Mismatch | None:
        """Search the installed source text."""
        source = source_text(self.caller)
        if source is None:
            return Mismatch("gone", f"there is no {self.caller}")
        return None if self.text in source else Mismatch("changed", f"{self.caller} no longer contains {self.text!r}")


@dataclass(frozen=True)
class Missing:
    """Upstream does not have the name, and the replacement supplies it."""

    def mismatch(self, target: str, original: Any) -> Mismatch | None:
        """Check that the name does not exist."""
        return None if original is MISSING else Mismatch("obsolete", f"{target} exists: remove the replacement")


@dataclass(frozen=True)
class Is:
    """The name holds a certain object.

    Attributes:
        value: The name of the object if it has a colon, and otherwise the object itself, which is a string.
    """

    value: str

    def mismatch(self, target: str, original: Any) -> Mismatch | None:
        """Compare the object that the name holds."""
        if original is MISSING:
            return Mismatch("gone", f"there is no {target}")
        expected = resolve(self.value) if ":" in self.value else self.value
        if original is expected or original == expected:
            return None
        return Mismatch("changed", f"{target} is {original!r}, not {self.value}")


@dataclass(frozen=True)
class Condition:
    """A function of ours returns True. If not, upstream no longer needs the replacement.

    Attributes:
        holds: The name of the function, which takes no arguments.
        otherwise: The sentence for the person who upgrades, if it returns False.
    """

    holds: str
    otherwise: str

    def mismatch(self, target: str, original: Any) -> Mismatch | None:
        """Call the function."""
        return None if resolve(self.holds)() else Mismatch("obsolete", self.otherwise)


@dataclass(frozen=True)
class Replacement:
    """A name of another library that holds an object of ours in our processes.

    Attributes:
        target: The replaced name.
        replacement: The name of our object.
        role: The processes that need it. "platform" means all processes that import verl on a machine without an
            accelerator. "trainer" and "worker" mean these processes of any engine, and "rollout" means processes in
            which vLLM generates. "fast_..." and "stock_..." mean only those of the engines `fast` and `verl`.
            "stock_launcher" means a trainer's process before it starts Ray for the engine `verl`, "sft_trainer" the
            process of a supervised run, and "evaluation" a process in which an evaluation generates with vLLM.
        reason: A sentence that states why the name is replaced.
        expects: Properties of upstream on which the replacement relies.
        device: The only device that needs it, or None if all do.
        wraps: Whether `replacement` is a function that takes the original object and returns the object to use.
        issue: The address of upstream's issue about it, if there is one.
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
        """Return all expectations that the installed version does not meet."""
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
        """Replace upstream's object by ours. A no-op if it is already replaced."""
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
        methods: The parameters of each overridden method as upstream declares them, without annotations. A tuple lists
            the alternatives of different versions.
        role: The processes that use the subclass.
        reason: A sentence that states why the methods are overridden.
        device: The only device that uses it, or None if all do.
        sources: The upstream code whose results our methods compute in another way.
    """

    ours: str
    base: str
    methods: Mapping[str, str | tuple[str, ...]]
    role: Role
    reason: str
    device: Device | None = None
    sources: tuple[Source, ...] = ()

    @property
    def name(self) -> str:
        """The row's name in tables and messages."""
        return f"methods of {self.base}"

    def mismatches(self) -> list[Mismatch]:
        """Return all differences between the installed class and the one that our subclass was written for."""
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
        found += filter(None, (source.mismatch(source.of, None) for source in self.sources))
        return found


# The original objects of the names that are replaced in this process.
_ORIGINALS: dict[str, Any] = {}


def resolve(name: str) -> Any:
    """Return the object that a name holds.

    Args:
        name: The name, as `module:path`.

    Returns:
        The object.

    Raises:
        ImportError: There is no such module.
        AttributeError: An object on the path has no such attribute.
        KeyError: A mapping on the path has no such item.
    """
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for step in _steps(path):
        found = _get(found, step)
    return found


def method_parameters(cls: type, method: str) -> str:
    """Return the parameters of a method as in its `def`, without annotations. A property has none."""
    function = inspect.getattr_static(cls, method)
    function = getattr(function, "__func__", function)
    if not callable(function):
        return ""
    signature = inspect.signature(inspect.unwrap(function))
    parameters = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(inspect.Signature(parameters))[1:-1]


def source_text(name: str) -> str | None:
    """Return the source text of a function, class or module, or None if it does not exist.

    The module itself is not imported.

    Args:
        name: The name, as `module:path`, or `module` for a whole module.

    Returns:
        The text without the indentation of its first line.
    """
    module, _, path = name.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None:
        return None
    if not path:
        return Path(spec.origin).read_text(encoding="utf-8")
    text, tree = parsed_source(spec.origin)
    node: ast.AST = tree
    for step in path.split("."):
        found = [child for child in ast.walk(node) if _defines(child, step)]
        if not found:
            return None
        node = found[0]
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return None
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))


@cache
def parsed_source(file: str) -> tuple[str, ast.Module]:
    """Return the text of a Python file and its syntax tree. They are cached, because many expectations share a file."""
    text = Path(file).read_text(encoding="utf-8")
    return text, ast.parse(text)


def source_hash(text: str) -> str:
    """Return the hash of a source text as in `Source.hashes`."""
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
    """Return the object that holds a name, and the last step of the path."""
    module, _, path = name.partition(":")
    *steps, last = _steps(path)
    holder: Any = importlib.import_module(module)
    for step in steps:
        holder = _get(holder, step)
    return holder, last


def _get(holder: Any, step: tuple[str, Any], *default: Any) -> Any:
    kind, key = step
    if kind == "attribute":
        return getattr(holder, key, *default)
    return holder.get(key, *default) if default else holder[key]


def _set(holder: Any, step: tuple[str, Any], value: Any) -> None:
    kind, key = step
    if kind == "attribute":
        setattr(holder, key, value)
    else:
        holder[key] = value
