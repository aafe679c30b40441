"""Build a curriculum from the configuration's `data.curriculum` and `data.mixture_policy`."""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rgtrain.curriculum.curriculum import Curriculum
from rgtrain.curriculum.ladder import Ladder, build_ladder
from rgtrain.curriculum.policies import Bandit, Frontier, Policy, Threshold, Uniform
from rgtrain.curriculum.policy_trial import check_methods, try_curriculum_policy, try_mixture_policy
from rgtrain.curriculum.weights import AdaptiveWeights, FixedWeights
from rgtrain.errors import ConfigError, choose_from
from rgtrain.problems.mixture import DatasetSpec
from rgtrain.problems.plugins import PLUGIN_PREFIX, load_plugin

_POLICIES = {"threshold": Threshold, "frontier": Frontier, "bandit": Bandit, "uniform": Uniform}
_WEIGHTS = {"fixed": FixedWeights, "adaptive": AdaptiveWeights}
# A common policy that no dataset uses yet is tried with this number of levels.
_NUM_LEVELS_OF_TRIAL = 5
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
            default. The common one is checked even if no dataset uses it.
        mixture_policy: `{name: fixed}` or `{name: adaptive, OPTION: VALUE}`.

    Returns:
        The curriculum.

    Raises:
        ConfigError: A dataset is not in the mixture, a name is unknown, an option cannot be used, or a policy of the
            user's own fails its trial.
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
    if curriculum["policy"] and all((options or {}).get("policy") for options in curriculum["datasets"].values()):
        _instantiate(_POLICIES, curriculum["policy"], "curriculum policy", num_levels=_NUM_LEVELS_OF_TRIAL)
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
        cls = load_plugin(str(name), kind=kind, form=_PLUGIN_FORM)
        check_methods(cls, kind=kind, name=str(name))
    elif name in classes:
        cls = classes[name]
    else:
        raise ConfigError(f"unknown {kind} {name!r}; {choose_from(name, classes)} or {_PLUGIN_FORM}")
    parameters = inspect.signature(cls).parameters
    takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
    if lacking := [] if takes_any else sorted(set(given) - set(parameters)):
        raise ConfigError(
            f"{kind} {name!r} is made with the argument {lacking[0]}, which its constructor lacks; write "
            f"def __init__(self, *, {lacking[0]}, ...)"
        )
    allowed = set(parameters) - set(given)
    if unknown := set() if takes_any else set(options) - allowed:
        raise ConfigError(f"{kind} {name!r} has no option {sorted(unknown)[0]!r}; {choose_from(min(unknown), allowed)}")
    for option, value in options.items():
        expected = parameters[option].annotation if option in parameters else None
        # The classes compare ranges, which NaN and texts break.
        if expected in (int, float) and not (
            isinstance(value, int | expected) and not isinstance(value, bool) and abs(value) < float("inf")
        ):
            words = "a whole number" if expected is int else "a finite number"
            raise ConfigError(f"{kind} {name!r} has {option} {value!r}; give {words}")
    if cls not in classes.values():
        make = partial(cls, **given, **options)
        if kind == "curriculum policy":
            try_curriculum_policy(make, num_levels=given["num_levels"], name=str(name))
        else:
            try_mixture_policy(make, datasets=list(given["weights"]), name=str(name))
    return cls(**given, **options)
