"""Build a curriculum from the configuration's `data.curriculum` and `data.mixture_policy`."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from rgtrain.curriculum.curriculum import Curriculum
from rgtrain.curriculum.ladder import Ladder, build_ladder
from rgtrain.curriculum.policies import Frontier, Policy, Threshold, Uniform
from rgtrain.curriculum.weights import AdaptiveWeights, FixedWeights
from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.mixture import DatasetSpec
from rgtrain.problems.plugins import PLUGIN_PREFIX, load_plugin

_POLICIES = {"threshold": Threshold, "frontier": Frontier, "uniform": Uniform}
_WEIGHTS = {"fixed": FixedWeights, "adaptive": AdaptiveWeights}
_METHODS = ("draw", "observe", "end_step", "state_dict", "load_state_dict", "metrics")
_PLUGIN_FORM = f"{PLUGIN_PREFIX}package.module.Class"


def build_curriculum(
    specs: Sequence[DatasetSpec], *, seed: int, curriculum: Mapping[str, Any], mixture_policy: Mapping[str, Any]
) -> Curriculum:
    """Build the curriculum of a run.

    Args:
        specs: The datasets of the mixture.
        seed: The run's seed.
        curriculum: `{policy: POLICY, datasets: {DATASET: {start: {ATTRIBUTE: LEVEL}, num_levels: N, policy: POLICY}}}`.
            A dataset's `ranges` are `level` or `widening`.
            A POLICY is `{name: NAME, OPTION: VALUE}`. A dataset's policy overrides the common one, which is frontier by
            default.
        mixture_policy: `{name: fixed}` or `{name: adaptive, OPTION: VALUE}`.

    Returns:
        The curriculum.

    Raises:
        ConfigError: A dataset is not in the mixture, a name is unknown, or an option cannot be used.
    """
    by_name = {spec.name: spec for spec in specs}
    ladders: dict[str, Ladder] = {}
    policies: dict[str, Policy] = {}
    for name, options in curriculum["datasets"].items():
        if not isinstance(options, Mapping | None):
            raise ConfigError(f"data.curriculum of {name!r} is {options!r}; write a mapping, for example of num_levels")
        options = dict(options or {})
        if unknown := set(options) - {"start", "num_levels", "ranges", "policy"}:
            raise ConfigError(
                f"data.curriculum of {name!r} has {sorted(unknown)}; use only 'start', 'num_levels', 'ranges' and "
                "'policy'"
            )
        if name not in by_name:
            raise ConfigError(
                f"data.curriculum names {name!r}, which is not in data.mixture; {choose_from(name, by_name)}"
            )
        _check_forms(name, options)
        ladders[name] = build_ladder(
            by_name[name],
            start=options.get("start"),
            num_levels=options.get("num_levels"),
            ranges=options.get("ranges", "level"),
        )
        policies[name] = _instantiate(
            _POLICIES,
            options.get("policy") or curriculum["policy"] or {"name": "frontier"},
            "curriculum policy",
            num_levels=len(ladders[name]),
        )
    weights = _instantiate(
        _WEIGHTS, mixture_policy, "mixture policy", weights={spec.name: spec.weight for spec in specs}
    )
    return Curriculum(specs, seed=seed, weights=weights, ladders=ladders, policies=policies)


def _check_forms(name: str, options: Mapping[str, Any]) -> None:
    for option in ("start", "policy"):
        if not isinstance(options.get(option), Mapping | None):
            raise ConfigError(f"data.curriculum of {name!r} has {option} {options[option]!r}; give a mapping")
    num_levels = options.get("num_levels")
    if num_levels is not None and (isinstance(num_levels, bool) or not isinstance(num_levels, int) or num_levels < 2):
        raise ConfigError(f"data.curriculum of {name!r} has num_levels {num_levels!r}; give a whole number from 2 up")


def _instantiate(classes: Mapping[str, type], raw: Mapping[str, Any], kind: str, **given: Any) -> Any:
    options = dict(raw)
    name = options.pop("name", None)
    if str(name).startswith(PLUGIN_PREFIX):
        cls = load_plugin(name, kind=kind, form=_PLUGIN_FORM)
    elif name in classes:
        cls = classes[name]
    else:
        raise ConfigError(f"unknown {kind} {name!r}; {choose_from(name, classes)} or {_PLUGIN_FORM}")
    if kind == "curriculum policy" and (missing := [method for method in _METHODS if not hasattr(cls, method)]):
        raise ConfigError(
            f"{kind} {name!r} lacks the methods {', '.join(missing)} of rgtrain.curriculum.policies.Policy"
        )
    parameters = inspect.signature(cls).parameters
    allowed = set(parameters) - set(given)
    if unknown := set(options) - allowed:
        raise ConfigError(f"{kind} {name!r} has no option {sorted(unknown)[0]!r}; {choose_from(min(unknown), allowed)}")
    for option, value in options.items():
        expected = parameters[option].annotation
        # The classes compare ranges, which NaN and texts break.
        if expected in (int, float) and not (
            isinstance(value, int | expected) and not isinstance(value, bool) and abs(value) < float("inf")
        ):
            words = "a whole number" if expected is int else "a finite number"
            raise ConfigError(f"{kind} {name!r} has {option} {value!r}; give {words}")
    return cls(**given, **options)
