"""A curriculum from the configuration's `data.curriculum` and `data.mixture_policy`."""

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
_PLUGIN_FORM = f"{PLUGIN_PREFIX}package.module.Class"


def build_curriculum(
    specs: Sequence[DatasetSpec], *, seed: int, curriculum: Mapping[str, Any], mixture_policy: Mapping[str, Any]
) -> Curriculum:
    """The curriculum of a run.

    curriculum: `{policy: {name: ..., option: value}, datasets: {DATASET: {start: {attribute: level}, num_levels: N,
    policy: {...}}}}`, all three optional; a dataset's own policy comes before the common one, which is frontier
    unless given.
    mixture_policy: `{name: fixed}` or `{name: adaptive, option: value}`.
    Raises ConfigError for datasets that the mixture hasn't, unknown names, and unusable options.
    """
    by_name = {spec.name: spec for spec in specs}
    ladders: dict[str, Ladder] = {}
    policies: dict[str, Policy] = {}
    for name, options in curriculum["datasets"].items():
        options = dict(options or {})
        if unknown := set(options) - {"start", "num_levels", "policy"}:
            raise ConfigError(
                f"data.curriculum of {name!r} has {sorted(unknown)}; it takes only 'start', 'num_levels' and 'policy'"
            )
        if name not in by_name:
            raise ConfigError(
                f"data.curriculum names {name!r}, which data.mixture hasn't; {choose_from(name, by_name)}"
            )
        ladders[name] = build_ladder(by_name[name], start=options.get("start"), num_levels=options.get("num_levels"))
        policies[name] = _made(
            _POLICIES,
            options.get("policy") or curriculum["policy"] or {"name": "frontier"},
            "curriculum policy",
            num_levels=len(ladders[name]),
        )
    weights = _made(_WEIGHTS, mixture_policy, "mixture policy", weights={spec.name: spec.weight for spec in specs})
    return Curriculum(specs, seed=seed, weights=weights, ladders=ladders, policies=policies)


def _made(known: Mapping[str, type], raw: Mapping[str, Any], kind: str, **given: Any) -> Any:
    options = dict(raw)
    name = options.pop("name", None)
    if str(name).startswith(PLUGIN_PREFIX):
        cls = load_plugin(name, kind=kind, form=_PLUGIN_FORM)
    elif name in known:
        cls = known[name]
    else:
        raise ConfigError(f"unknown {kind} {name!r}; {choose_from(name, known)} or {_PLUGIN_FORM}")
    allowed = set(inspect.signature(cls).parameters) - set(given)
    if unknown := set(options) - allowed:
        raise ConfigError(f"{kind} {name!r} has no option {sorted(unknown)[0]!r}; {choose_from(min(unknown), allowed)}")
    return cls(**given, **options)
