"""Check that the settings of the algorithm and of sampling act together as their names say.

Each value is valid by itself, as rgtrain/config checks. These combinations would train otherwise than configured, or
fail in the first step. With `engine: verl`, they are warnings, because verl's other trainers support some of them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from rgtrain.config.plain_tree import lookup
from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError

# Estimators for which verl's trainer does not provide an input. They would fail in the first step.
UNSUPPORTED_ESTIMATORS = {
    "remax": "the reward of a greedy completion per prompt",
    "gdpo": "the parts of each reward",
    "optimal_token_baseline": "the sum of squared probabilities per token",
    "tir_optimal_token_baseline": "the sum of squared probabilities per token",
}
# Estimators that compare the completions of a prompt, in addition to those in rgtrain/preflight/batches.py.
_GROUP_ESTIMATORS = ("grpo_vectorized", "rloo_vectorized", "reinforce_plus_plus_baseline")
# Losses that do not read the clipping range.
UNCLIPPED_LOSSES = ("sapo", "gpg", "kl_cov", "dro")
# A clipping range below this is narrower than the differences that bf16 makes between vLLM and the engine.
_NARROW_CLIP = 0.05

_ACTOR = "actor_rollout_ref.actor"
_LOSS_MODE = f"{_ACTOR}.policy_loss.loss_mode"
_ROLLOUT = "actor_rollout_ref.rollout"
_CORRECTION = "algorithm.rollout_correction"
_BYPASS = f"{_CORRECTION}.bypass_mode"


def clip_range(whole: Mapping[str, Any]) -> tuple[float, float]:
    """Return the lower and the upper clipping range of a whole plain configuration."""
    actor = lookup(whole, _ACTOR)
    low, high, default = actor["clip_ratio_low"], actor["clip_ratio_high"], actor["clip_ratio"]
    # verl takes clip_ratio for a bound that is null.
    return default if low is None else low, default if high is None else high


class _Settings:
    """The values of a run by their full keys. A key that does not exist is None."""

    def __init__(self, whole: Mapping[str, Any]):
        self._whole = whole

    def __getitem__(self, key: str) -> Any:
        return lookup(self._whole, key)

    def shown(self, key: str) -> str:
        """Return `key=value`."""
        return _assignment(key, self[key])

    @property
    def num_updates(self) -> int:
        """The number of updates of the policy per step."""
        num_batches = self["data.train_batch_size"] // max(1, self[f"{_ACTOR}.ppo_mini_batch_size"])
        return self[f"{_ACTOR}.ppo_epochs"] * num_batches

    @property
    def clip_range(self) -> tuple[float, float]:
        """The lower and the upper clipping range."""
        return clip_range(self._whole)


def _assignment(key: str, value: Any) -> str:
    """Return `key=value` as on the command line."""
    return f"{key}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"


def check_algorithm(config: RunConfig) -> list[str]:
    """Check combinations of settings of the algorithm and of sampling.

    Returns:
        Warnings about combinations that act, but probably not as intended.

    Raises:
        ConfigError: A setting has no effect, or another one than its name says. With `engine: verl`, it is a warning.
    """
    settings = _Settings(config.whole)
    errors = [error for find in _ERRORS for error in find(settings)]
    if errors and config.engine == "fast":
        raise ConfigError(errors[0])
    return errors + list(_warnings(settings))


def _estimator_errors(settings: _Settings) -> Iterator[str]:
    estimator, group_size = settings["algorithm.adv_estimator"], settings[f"{_ROLLOUT}.n"]
    if missing := UNSUPPORTED_ESTIMATORS.get(estimator):
        yield (
            f"algorithm.adv_estimator={estimator} needs {missing}, which verl's trainer does not provide; choose "
            "another one, such as grpo, rloo or reinforce_plus_plus_baseline"
        )
    if group_size < 2 and estimator in _GROUP_ESTIMATORS:
        yield (
            f"{_ROLLOUT}.n={group_size} is too small, because {estimator} compares the completions of a prompt with "
            "each other; set it to 2 or more (8 is usual)"
        )
    if group_size < 2 and settings["algorithm.filter_groups.enable"]:
        yield (
            f"algorithm.filter_groups drops groups whose completions are all equal, and with {_ROLLOUT}.n=1 every "
            f"group is; set {_ROLLOUT}.n to 2 or more, or algorithm.filter_groups.enable=false"
        )
    if settings["trainer.critic_warmup"] > 0 and estimator != "gae":
        yield (
            f"{settings.shown('trainer.critic_warmup')} leaves the policy untrained before that step, but {estimator} "
            "has no critic to warm up; set trainer.critic_warmup=0"
        )


def _sampling_errors(settings: _Settings) -> Iterator[str]:
    """Find sampling in training from another distribution than the one whose log-probabilities the update computes."""
    temperature, top_p, top_k = (settings[f"{_ROLLOUT}.{name}"] for name in ("temperature", "top_p", "top_k"))
    truncated = "vLLM would sample from a truncated distribution, but the update computes the log-probabilities of the "
    for name, is_full in (("top_p", top_p >= 1), ("top_k", top_k in (-1, 0))):
        if not is_full:
            yield (
                f"{settings.shown(f'{_ROLLOUT}.{name}')} is not supported in training, because {truncated}whole one, "
                f"so its importance ratios would be wrong; set {name}={1.0 if name == 'top_p' else -1} here, and use "
                f"{_ROLLOUT}.val_kwargs.{name} for validation"
            )
    if temperature <= 0:
        yield (
            f"{settings.shown(f'{_ROLLOUT}.temperature')} makes all completions of a prompt equal, so there is nothing "
            f"to learn from; set it above 0 (1.0 is usual), and use {_ROLLOUT}.val_kwargs.temperature for validation"
        )
    mode_key, context_key = f"{_ROLLOUT}.logprobs_mode", f"{_ROLLOUT}.max_model_len"
    if settings[mode_key] != "processed_logprobs" and (temperature != 1 or settings[mode_key] != "raw_logprobs"):
        yield (
            f"{settings.shown(mode_key)} returns values before temperature is applied, or no log-probabilities at all; "
            f"set {mode_key}=processed_logprobs"
        )
    longest = settings["data.max_prompt_length"] + settings["data.max_response_length"]
    if settings[context_key] is not None and settings[context_key] < longest:
        yield (
            f"{settings.shown(context_key)} would cut responses, because data.max_prompt_length + "
            f"data.max_response_length is {longest}; set it to null or to {longest} or more"
        )
    processors_key = f"{_ROLLOUT}.engine_kwargs.vllm.logits_processors"
    if settings[processors_key]:
        yield (
            f"{processors_key} changes the distribution that vLLM samples from, but not the log-probabilities of the "
            "update; remove it"
        )


def _correction_errors(settings: _Settings) -> Iterator[str]:
    corrections = [name for name in ("rollout_is", "rollout_rs") if settings[f"{_CORRECTION}.{name}"] is not None]
    if settings[_BYPASS]:
        for name in corrections:
            yield (
                f"{settings.shown(f'{_CORRECTION}.{name}')} has no effect with {_BYPASS}=true, which takes vLLM's "
                f"log-probabilities for those of the old policy, so nothing is left to correct; set {_BYPASS}=false"
            )
        if min(settings.clip_range) < _NARROW_CLIP:
            low, high = settings.clip_range
            yield (
                f"{_BYPASS}=true counts rounding differences between vLLM and the engine as movement of the policy, "
                f"and they are larger than the clipping range ({low} and {high}), which would clip at random; set "
                f"{_BYPASS}=false, or a clipping range of {_NARROW_CLIP} or more"
            )
    if "rollout_rs" in corrections and settings[f"{_CORRECTION}.rollout_rs_threshold"] is None:
        yield (
            f"{settings.shown(f'{_CORRECTION}.rollout_rs')} needs a threshold; set {_CORRECTION}.rollout_rs_threshold, "
            "for example to 2.0"
        )
    if settings[_LOSS_MODE] == "bypass_mode":
        yield (
            f"{_LOSS_MODE}=bypass_mode needs settings that only verl's former trainer passes on; choose another loss, "
            f"such as vanilla, and set {_BYPASS}=true for old log-probabilities from vLLM"
        )


def _loss_errors(settings: _Settings) -> Iterator[str]:
    mode, scale = settings[f"{_ACTOR}.loss_agg_mode"], settings[f"{_ACTOR}.loss_scale_factor"]
    if mode == "seq-mean-token-sum-norm" and scale is None:
        yield (
            f"{_ACTOR}.loss_agg_mode={mode} without {_ACTOR}.loss_scale_factor divides by the longest response of each "
            f"micro-batch, so a token's weight depends on its neighbours; set {_ACTOR}.loss_scale_factor="
            f"{settings['data.max_response_length']}, the maximum response length"
        )
    if settings[_LOSS_MODE] == "dro" and not (settings[f"{_ACTOR}.policy_loss.dro_beta"] or 0) > 0:
        yield f"{_LOSS_MODE}=dro needs a coefficient; set {_ACTOR}.policy_loss.dro_beta above 0"
    for key, active, name in (
        (f"{_ACTOR}.kl_loss_type", settings[f"{_ACTOR}.use_kl_loss"], "the KL loss"),
        ("algorithm.kl_penalty", settings["algorithm.use_kl_in_reward"], "the KL reward"),
    ):
        if active and settings[key] == "full":
            yield f"{key}=full needs the logits of all tokens, which {name} of verl does not get; set it to low_var_kl"


class _Condition(NamedTuple):
    """A condition without which a setting has no effect."""

    words: str
    holds: Callable[[_Settings], bool]
    fix: str


def _flag(key: str) -> _Condition:
    return _Condition(f"{key} is false", lambda settings: bool(settings[key]), f"set {key}=true")


def _choice(key: str, *values: str) -> _Condition:
    names = " or ".join(values)
    return _Condition(f"{key} is not {names}", lambda settings: settings[key] in values, f"set {key} to {names}")


def _given(key: str) -> _Condition:
    return _Condition(f"{key} is null", lambda settings: settings[key] is not None, f"set {key}")


_CLIPPED_RATIO = _Condition(
    f"{_ACTOR}.clip_ratio_low and {_ACTOR}.clip_ratio_high take precedence",
    lambda settings: settings[f"{_ACTOR}.clip_ratio"] in settings.clip_range,
    "set these two",
)
# The settings that act only under a condition, with verl's default. A setting with its default is no mistake.
CONDITIONS: Mapping[str, tuple[Any, _Condition]] = {
    f"{_ACTOR}.clip_ratio": (0.2, _CLIPPED_RATIO),
    f"{_ACTOR}.clip_ratio_c": (3.0, _choice(_LOSS_MODE, "vanilla", "dppo_tv", "dppo_kl")),
    f"{_ACTOR}.kl_loss_coef": (0.001, _flag(f"{_ACTOR}.use_kl_loss")),
    f"{_ACTOR}.kl_loss_type": ("low_var_kl", _flag(f"{_ACTOR}.use_kl_loss")),
    f"{_ACTOR}.tau_pos": (1.0, _choice(_LOSS_MODE, "sapo")),
    f"{_ACTOR}.tau_neg": (1.05, _choice(_LOSS_MODE, "sapo")),
    f"{_ACTOR}.policy_loss.clip_cov_ratio": (0.0002, _choice(_LOSS_MODE, "clip_cov")),
    f"{_ACTOR}.policy_loss.clip_cov_lb": (1.0, _choice(_LOSS_MODE, "clip_cov")),
    f"{_ACTOR}.policy_loss.clip_cov_ub": (5.0, _choice(_LOSS_MODE, "clip_cov")),
    f"{_ACTOR}.policy_loss.kl_cov_ratio": (0.0002, _choice(_LOSS_MODE, "kl_cov")),
    f"{_ACTOR}.policy_loss.ppo_kl_coef": (0.1, _choice(_LOSS_MODE, "kl_cov")),
    f"{_ACTOR}.policy_loss.dro_beta": (None, _choice(_LOSS_MODE, "dro")),
    "algorithm.gamma": (1.0, _choice("algorithm.adv_estimator", "gae", "reinforce_plus_plus")),
    "algorithm.lam": (1.0, _choice("algorithm.adv_estimator", "gae")),
    # verl does not pass it on to grpo_vectorized.
    "algorithm.norm_adv_by_std_in_grpo": (True, _choice("algorithm.adv_estimator", "grpo", "grpo_passk")),
    "algorithm.kl_penalty": ("kl", _flag("algorithm.use_kl_in_reward")),
    "algorithm.kl_ctrl.kl_coef": (0.001, _flag("algorithm.use_kl_in_reward")),
    "algorithm.kl_ctrl.type": ("fixed", _flag("algorithm.use_kl_in_reward")),
    "algorithm.kl_ctrl.horizon": (10000, _choice("algorithm.kl_ctrl.type", "adaptive")),
    "algorithm.kl_ctrl.target_kl": (0.1, _choice("algorithm.kl_ctrl.type", "adaptive")),
    f"{_CORRECTION}.rollout_is_threshold": (2.0, _given(f"{_CORRECTION}.rollout_is")),
    f"{_CORRECTION}.rollout_is_batch_normalize": (False, _given(f"{_CORRECTION}.rollout_is")),
    f"{_CORRECTION}.rollout_rs_threshold": (None, _given(f"{_CORRECTION}.rollout_rs")),
}


def _settings_without_effect(settings: _Settings) -> Iterator[str]:
    for key, (default, condition) in CONDITIONS.items():
        if settings[key] != default and not condition.holds(settings):
            yield (
                f"{settings.shown(key)} has no effect, because {condition.words}; {condition.fix}, or set "
                f"{_assignment(key, default)}"
            )


def _warnings(settings: _Settings) -> Iterator[str]:
    loss_mode, aggregation = settings[_LOSS_MODE], settings[f"{_ACTOR}.loss_agg_mode"]
    uses_kl_loss, uses_kl_reward = settings[f"{_ACTOR}.use_kl_loss"], settings["algorithm.use_kl_in_reward"]
    if uses_kl_loss and uses_kl_reward:
        yield (
            f"the KL to the reference model counts twice, in the loss and in the reward; set "
            f"{_ACTOR}.use_kl_loss=false or algorithm.use_kl_in_reward=false to count it once"
        )
    if uses_kl_loss and settings[f"{_ACTOR}.kl_loss_coef"] == 0:
        yield (
            f"{_ACTOR}.kl_loss_coef=0 computes the KL to the reference model without using it; set "
            f"{_ACTOR}.use_kl_loss=false to save its forward pass"
        )
    if uses_kl_loss and settings[f"{_ACTOR}.kl_loss_type"] in ("kl", "k1"):
        yield (
            f"{settings.shown(f'{_ACTOR}.kl_loss_type')} has a gradient that is 0 on average, so the KL loss adds only "
            "noise; low_var_kl and mse hold the policy near the reference model"
        )
    if loss_mode == "gspo" and max(settings.clip_range) >= _NARROW_CLIP:
        yield (
            f"{_LOSS_MODE}=gspo with a clipping range of {max(settings.clip_range)} clips nothing, because the mean "
            "ratio of a response hardly varies; algorithm=gspo sets 3e-4 and 4e-4, as published"
        )
    if loss_mode == "gspo" and aggregation != "seq-mean-token-mean":
        yield (
            f"{_LOSS_MODE}=gspo with {_ACTOR}.loss_agg_mode={aggregation} weighs responses by their length; "
            "seq-mean-token-mean weighs them equally, as published"
        )
    if loss_mode in ("sapo", "geo_mean") and aggregation != "seq-mean-token-mean":
        yield (
            f"{_LOSS_MODE}={loss_mode} averages over each response and then over responses; only entropy and KL follow "
            f"{_ACTOR}.loss_agg_mode={aggregation}"
        )
    if loss_mode in UNCLIPPED_LOSSES and settings.clip_range != (0.2, 0.2):
        yield (
            f"{_LOSS_MODE}={loss_mode} does not clip ratios, so {_ACTOR}.clip_ratio_low and clip_ratio_high have no "
            "effect"
        )
    if loss_mode == "gpg" and settings.num_updates > 1:
        yield (
            f"{_LOSS_MODE}=gpg has no importance ratio, so only the first of {settings.num_updates} updates per step "
            f"follows the policy that sampled; set {_ACTOR}.ppo_mini_batch_size to data.train_batch_size, and "
            f"{_ACTOR}.ppo_epochs=1"
        )
    if aggregation != "seq-mean-token-sum-norm" and settings[f"{_ACTOR}.loss_scale_factor"] is not None:
        yield (
            f"{settings.shown(f'{_ACTOR}.loss_scale_factor')} has no effect with {_ACTOR}.loss_agg_mode={aggregation}; "
            "only seq-mean-token-sum-norm divides by it"
        )
    validation = f"{_ROLLOUT}.val_kwargs"
    if settings[f"{validation}.n"] > 1 and settings[f"{validation}.temperature"] == 0:
        yield (
            f"{settings.shown(f'{validation}.n')} validates with equal completions of each problem, because "
            f"{validation}.temperature is 0; set n to 1, or a temperature"
        )
    if settings[_BYPASS]:
        yield from _bypass_warnings(settings)


def _bypass_warnings(settings: _Settings) -> Iterator[str]:
    if settings.num_updates > 1:
        yield (
            f"{_BYPASS}=true with {settings.num_updates} updates per step clips the difference between vLLM and the "
            f"engine together with the policy's movement; set {_BYPASS}=false to clip only the movement"
        )
    if settings["algorithm.use_kl_in_reward"]:
        yield (
            f"{_BYPASS}=true takes the KL in the reward from vLLM's log-probabilities, so their rounding counts as a "
            f"distance from the reference model; set {_BYPASS}=false to take it from the engine's"
        )


_ERRORS: tuple[Callable[[_Settings], Iterator[str]], ...] = (
    _estimator_errors,
    _sampling_errors,
    _correction_errors,
    _loss_errors,
    _settings_without_effect,
)
