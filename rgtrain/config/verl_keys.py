"""Refuse keys of verl's configuration that have no effect under `engine=fast`.

verl_keys.yaml says for each key of verl's tree whether it acts or is refused. `python -m rgtrain.config.verl_keys`
prints the refused ones as a table.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from rgtrain.config.composition import declared_tree, verl_tree
from rgtrain.config.plain_tree import leaves, lookup
from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError

_TABLE = Path(__file__).with_suffix(".yaml")
# The key in an interpolation such as "${oc.select:a.b,1}" or "${.b}".
_SOURCE = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)[,}]")
# The first value in an interpolation such as "${for_engine:0,8}".
_FOR_FAST = re.compile(r"\$\{for_engine:([^,]*),")
# Returns the value of a dotted key of the checked configuration.
Lookup = Callable[[str], Any]


@dataclass(frozen=True)
class HonouredKeys:
    """Keys that act as verl documents.

    Attributes:
        keys: Full names.
        read_by: The modules that read them.
    """

    keys: tuple[str, ...]
    read_by: tuple[str, ...]


@dataclass(frozen=True)
class RefusedKeys:
    """Keys that have no effect, or not with every value.

    Attributes:
        keys: Full names, or the name of a node followed by ".*" for all keys below it.
        because: The reason, a clause whose subject is `engine=fast`.
        instead: The fix, an imperative. It is empty if only `engine=verl` helps.
        verl: Whether `engine=verl` honours the keys.
        only: The accepted values. If empty, only the default is accepted.
        accepted_if: The condition under which a value is accepted, one of `_CONDITIONS`.
    """

    keys: tuple[str, ...]
    because: str
    instead: str = ""
    verl: bool = False
    only: tuple[Any, ...] = ()
    accepted_if: str = ""

    @property
    def advice(self) -> str:
        """The fix, which names `engine=verl` if that helps."""
        if not self.verl:
            return self.instead
        if not self.instead:
            return "set engine=verl"
        return f"{self.instead} or {'' if self.instead.startswith('set ') else 'set '}engine=verl"


_CLASSES = RefusedKeys(("_target_",), because="takes verl's own class for each node", verl=True)


def check_verl_keys(config: RunConfig) -> None:
    """Check that the run sets no key of verl's that `engine=fast` does not honour.

    Args:
        config: The run's configuration.

    Raises:
        ConfigError: There are such keys. The message has a line for each.
    """
    if config.engine != "fast":
        return
    refused = [
        f"{key} is {value!r}, but engine=fast {row.because}; {row.advice}"
        for key, value, row in refused_settings(config.whole)
    ]
    if refused:
        raise ConfigError("\n  ".join(refused))


def refused_settings(plain: Mapping[str, Any]) -> Iterator[tuple[str, Any, RefusedKeys]]:
    """Yield each key of a plain configuration that `engine=fast` refuses, its value and its row."""
    for key, row in classified_keys().items():
        if isinstance(row, HonouredKeys):
            continue
        value = lookup(plain, key, _MISSING)
        if value is not _MISSING and not _is_accepted(key, value, row, plain):
            yield key, value, row


def _is_accepted(key: str, value: Any, row: RefusedKeys, plain: Mapping[str, Any]) -> bool:
    default = _defaults()[key]
    if isinstance(default, str) and (source := _SOURCE.match(default)):
        # The default is the value of another key, which stands in a row itself.
        full_name = f"{key.rpartition('.')[0]}{source[1]}" if source[1].startswith(".") else source[1]
        default = lookup(plain, full_name, _MISSING)
        if value == default:
            return True
    if row.accepted_if:
        return _CONDITIONS[row.accepted_if](value, lambda name: lookup(plain, name, _MISSING))
    return value in row.only if row.only else bool(value == default)


@cache
def classified_keys() -> dict[str, HonouredKeys | RefusedKeys]:
    """Return the row of each key of verl's tree, and of the keys of verl's that configs/base.yaml declares.

    Raises:
        ConfigError: A key stands in no row or in several, as may happen with another version of verl.
    """
    exact: dict[str, HonouredKeys | RefusedKeys] = {}
    nodes: dict[str, RefusedKeys] = {}
    wrong = []
    for row in read_table():
        for name in row.keys:
            if name in exact or name in nodes:
                wrong.append(f"{name} stands in two rows")
            if isinstance(row, RefusedKeys) and name.endswith(".*"):
                nodes[name] = row
            else:
                exact[name] = row
    found: dict[str, HonouredKeys | RefusedKeys] = {}
    for key in _defaults():
        parts = key.split(".")
        above = [f"{'.'.join(parts[:depth])}.*" for depth in range(1, len(parts))]
        rows = [*(exact[name] for name in (key,) if name in exact), *(nodes[name] for name in above if name in nodes)]
        if not rows and parts[-1] == "_target_":
            rows = [_CLASSES]
        if len(rows) == 1:
            found[key] = rows[0]
        elif rows or key in _verl_leaves():
            wrong.append(f"{key} stands in {len(rows)} rows")
    used = found.keys() | {f"{key.rpartition('.')[0]}.*" for key in found}
    wrong += [f"{name} is no key of verl's" for name in exact if name not in found]
    wrong += [f"{name} matches no key of verl's" for name in nodes if not any(k.startswith(name[:-1]) for k in used)]
    if wrong:
        raise ConfigError(f"{_TABLE.name} does not match the installed verl; correct its rows ({', '.join(wrong)})")
    return found


@cache
def read_table() -> tuple[HonouredKeys | RefusedKeys, ...]:
    """Return the rows of verl_keys.yaml."""
    table = yaml.load(_TABLE.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    def names(keys: Mapping[str, str]) -> tuple[str, ...]:
        listed = [(node, name) for group, below in keys.items() for node in nodes(group) for name in below.split()]
        return tuple(f"{node}.{name}".lstrip(".") for node, name in listed)

    def nodes(group: str) -> list[str]:
        first, dot, rest = group.partition(".")
        return [f"{node}{dot}{rest}" for node in table["nodes"].get(first, [first])]

    honoured = [HonouredKeys(names(row["keys"]), tuple(row["read_by"])) for row in table["honoured"]]
    refused = [
        RefusedKeys(**{**row, "keys": names(row["keys"]), "only": tuple(row.get("only", ()))})
        for row in table["refused"]
    ]
    return (*honoured, *refused)


@cache
def _defaults() -> dict[str, Any]:
    """Return the default of each key under `engine=fast`, with interpolations of other keys."""
    defaults = dict(leaves(OmegaConf.to_container(declared_tree(), resolve=False)))
    for key, value in defaults.items():
        if isinstance(value, str) and (of_fast := _FOR_FAST.match(value)):
            defaults[key] = yaml.safe_load(of_fast[1])
    return defaults


@cache
def _verl_leaves() -> frozenset[str]:
    return frozenset(key for key, _ in leaves(OmegaConf.to_container(verl_tree(), resolve=False)))


_MISSING = object()


def _has_no_critic(lookup: Lookup) -> bool:
    # Preflight refuses a critic of another algorithm.
    return lookup("critic.enable") is False or lookup("algorithm.adv_estimator") != "gae"


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


@cache
def _vllm_arguments() -> frozenset[str] | None:
    """Return the names of the arguments of vLLM's engine, read from its source; None if vLLM is not installed."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return None
    source = (Path(spec.origin).parent / "engine" / "arg_utils.py").read_text(encoding="utf-8")
    _, _, rest = source.partition("class EngineArgs:")
    return frozenset(re.findall(r"^    (\w+):", rest.partition("\n    def ")[0], re.MULTILINE))


def _are_vllm_arguments(names: Any) -> bool:
    known = _vllm_arguments()
    return not isinstance(names, Mapping) or known is None or names.keys() <= known


_CONDITIONS: dict[str, Callable[[Any, Lookup], bool]] = {
    "it is false, or the temperature of validation is above 0": lambda value, lookup: (
        not value or _is_positive(lookup("actor_rollout_ref.rollout.val_kwargs.temperature"))
    ),
    "they are arguments of vLLM's EngineArgs": lambda value, lookup: _are_vllm_arguments(value),
    "it is false, or the device is a GPU": lambda value, lookup: value is False or lookup("trainer.device") != "cpu",
    "it is fsdp2, or there is no critic": lambda value, lookup: value == "fsdp2" or _has_no_critic(lookup),
    "it is false, or there is no critic": lambda value, lookup: value is False or _has_no_critic(lookup),
    "attn_implementation is sdpa, eager or missing": lambda value, lookup: (
        not isinstance(value, Mapping) or value.get("attn_implementation") in (None, "sdpa", "eager")
    ),
    "it is true, or lora_rank is 0": lambda value, lookup: (
        value is True or not _is_positive(lookup("actor_rollout_ref.model.lora_rank"))
    ),
    "lora_rank is above 0": lambda value, lookup: (
        value is None or _is_positive(lookup("actor_rollout_ref.model.lora_rank"))
    ),
}


def table_lines() -> list[str]:
    """Return the refused keys as the lines of a Markdown table."""
    lines = ["| keys | accepted | `engine=fast` | instead |", "| --- | --- | --- | --- |"]
    for row in read_table():
        if isinstance(row, RefusedKeys):
            only = ", ".join(f"`{json.dumps(value)}`".replace('"', "") for value in row.only)
            accepted = only or (f"if {row.accepted_if}" if row.accepted_if else "the default")
            lines.append(f"| {_short(row.keys)} | {accepted} | {row.because} | {row.advice} |")
    return lines


def _short(keys: Iterable[str]) -> str:
    """Return keys as Markdown, with the nodes that have the same names below them listed together."""
    names: dict[str, list[str]] = {}
    for key in keys:
        node, _, name = key.removesuffix(".*").rpartition(".")
        names.setdefault(node, []).append(name + ".*" * key.endswith(".*"))
    nodes: dict[tuple[str, ...], list[str]] = {}
    for node, of_node in names.items():
        nodes.setdefault(tuple(of_node), []).append(node)
    parts: list[str] = []
    for below, above in nodes.items():
        if len(below) == 1:
            parts += [f"`{node}.{below[0]}`".replace("`.", "`") for node in above]
        else:
            parts.append(f"{', '.join(f'`{name}`' for name in below)} of {', '.join(f'`{node}`' for node in above)}")
    return "<br>".join(parts)


if __name__ == "__main__":
    print("\n".join(table_lines()))
