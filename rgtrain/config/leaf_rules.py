"""The allowed values of every key of a configuration, those of verl's tree included.

A key's rule is its entry below, or else follows from its declared default: the type is that of the default, and a
number whose default is not negative must not be negative. A key whose default is null needs an entry.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from rgtrain.config.value_rules import (
    FLAG,
    TEXT,
    Rule,
    either,
    list_of,
    nullable,
    number,
    one_of,
    whole_number,
)
from rgtrain.errors import ConfigError

# verl's names; a test compares them with its registries.
ADVANTAGE_ESTIMATORS = (
    "gae",
    "gdpo",
    "gpg",
    "grpo",
    "grpo_passk",
    "grpo_vectorized",
    "opo",
    "optimal_token_baseline",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
    "rloo",
    "rloo_vectorized",
    "tir_optimal_token_baseline",
)
POLICY_LOSSES = (
    "bypass_mode",
    "cispo",
    "clip_cov",
    "dppo_kl",
    "dppo_tv",
    "dro",
    "geo_mean",
    "gpg",
    "gspo",
    "kl_cov",
    "sapo",
    "vanilla",
)
TRACKERS = (
    "clearml",
    "console",
    "file",
    "mlflow",
    "rl_insight",
    "swanlab",
    "tensorboard",
    "trackio",
    "vemlp_wandb",
    "wandb",
)
LOSS_AGGREGATIONS = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
_KL_ESTIMATORS = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")
# With "+", verl takes the gradient of k2.
KL_ESTIMATORS = (*_KL_ESTIMATORS, *(f"{name}+" for name in _KL_ESTIMATORS))
REJECTION_CRITERIA = (
    "token_k1",
    "token_k2",
    "token_k3",
    "seq_sum_k1",
    "seq_sum_k2",
    "seq_sum_k3",
    "seq_mean_k1",
    "seq_mean_k2",
    "seq_mean_k3",
    "seq_max_k2",
    "seq_max_k3",
)
_DTYPES = ("bf16", "bfloat16", "fp16", "float16", "half", "fp32", "float32", "float", "auto")
_OPTIMIZERS = (
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "SGD",
)

_COUNT = whole_number(1)
_NATURAL = whole_number(0)
# NumPy's and vLLM's generators take no larger ones.
_SEED = whole_number(0, 2**32 - 1)
_POSITIVE = number(lambda value: value > 0, "a number above 0")
_SECONDS = number(lambda value: value > 0, "seconds above 0")
_NON_NEGATIVE = number(lambda value: value >= 0, "a number from 0 up")
_NUMBER = number(lambda value: True, "a number")
_SHARE = number(lambda value: 0 <= value <= 1, "a number from 0 to 1")
_SHARE_ABOVE_0 = number(lambda value: 0 < value <= 1, "a number above 0 and up to 1")
_INTERVAL = Rule(
    "a whole number from 1 up, or -1 for never", lambda value: _COUNT.allows(value) or (value, type(value)) == (-1, int)
)
_TOP_K = Rule(
    "a whole number from 1 up, or -1 for all tokens", lambda value: _NATURAL.allows(value) or _INTERVAL.allows(value)
)
_SCALAR = Rule("a single value", lambda value: value is None or isinstance(value, str | bool | int | float))
_MAPPING = Rule("a mapping", lambda value: isinstance(value, Mapping))
_LIST = Rule("a list", lambda value: isinstance(value, list), list_of(_SCALAR, "").read)
_MAPPINGS = Rule(
    "a list of mappings", lambda value: isinstance(value, list) and all(isinstance(one, Mapping) for one in value)
)
_ANY_TEXT = Rule("a text", lambda value: isinstance(value, str))
_LABEL = Rule(
    "a text or a number",
    lambda value: TEXT.allows(value) or (isinstance(value, int | float) and not FLAG.allows(value)),
)
_TEXTS = list_of(TEXT, "a list of texts, [] for none")
_NATURALS = list_of(_NATURAL, "a list of whole numbers from 0 up")
_DTYPE = one_of(*_DTYPES)
_LOSS_AGGREGATION = one_of(*LOSS_AGGREGATIONS)
_KL_ESTIMATOR = one_of(*KL_ESTIMATORS)
_PRECISION = Rule(
    "a mapping from param_dtype, reduce_dtype or buffer_dtype to a data type, such as `{param_dtype: bf16}`",
    lambda value: (
        isinstance(value, Mapping)
        and set(value) <= {"param_dtype", "reduce_dtype", "buffer_dtype", "cast_forward_inputs"}
        and all(_DTYPE.allows(one) for name, one in value.items() if name != "cast_forward_inputs")
    ),
)
_BETAS = Rule(
    "a list of two numbers from 0 to below 1",
    lambda value: isinstance(value, list) and len(value) == 2 and all(_SHARE.allows(one) and one < 1 for one in value),
)
_CRITERIA = Rule(
    f"null or names joined by commas, from {', '.join(REJECTION_CRITERIA)}",
    lambda value: (
        value is None
        or (isinstance(value, str) and {one.strip() for one in value.split(",")} <= set(REJECTION_CRITERIA))
    ),
)
_THRESHOLD = Rule(
    'a number above 0, or a text of numbers such as "0.5_2.0"',
    lambda value: _POSITIVE.allows(value) or TEXT.allows(value),
)
_CONTENTS = ("model", "optimizer", "extra", "hf_model")


# A larger whole number fits into no counter of torch or vLLM.
_MAX_INT = 2**63 - 1
_REFERENCE = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)")
# OmegaConf's mark of a value that must be given.
_MISSING = "???"


def _entries(*rows: tuple[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in rows for name in names.split()}


# An entry holds for all keys that end with its parts; the longest one counts.
_RULES = _entries(
    (
        _COUNT,
        "n train_size validation_size train_batch_size max_prompt_length max_response_length prompt_length "
        "response_length trainer.nnodes n_gpus_per_node total_epochs ppo_epochs ppo_mini_batch_size "
        "ppo_max_token_len_per_gpu forward_max_token_len_per_gpu log_prob_max_token_len_per_gpu "
        "tensor_model_parallel_size data_parallel_size expert_parallel_size pipeline_model_parallel_size "
        "ulysses_sequence_parallel_size max_num_batched_tokens max_num_seqs agent.num_workers "
        "scorer.memory_mb lora_alpha rollout_n update_weights_bucket_megabytes parameter_sync_step "
        "entropy_from_logits_chunk_size nccl_timeout",
    ),
    (
        nullable(_COUNT),
        "trainer.total_training_steps max_actor_ckpt_to_keep max_critic_ckpt_to_keep gen_batch_size val_batch_size "
        "ppo_micro_batch_size ppo_micro_batch_size_per_gpu forward_micro_batch_size forward_micro_batch_size_per_gpu "
        "log_prob_micro_batch_size log_prob_micro_batch_size_per_gpu loss_scale_factor max_model_len num_cpus "
        "max_assistant_turns max_user_turns num_repeat_rollouts max_samples_per_step_per_worker "
        "decode_tensor_model_parallel_size bootstrap_port max_concurrent memory_limit_mb reward_model.num_workers "
        "reward_model.n_gpus_per_node reward_model.rollout.data_parallel_size "
        "reward_model.rollout.expert_parallel_size reward_model.rollout.tensor_model_parallel_size "
        "reward_model.rollout.max_num_batched_tokens reward_model.rollout.max_num_seqs "
        "reward_model.rollout.prompt_length reward_model.rollout.response_length",
    ),
    (nullable(_NATURAL), "num_gpus profile_token_start profile_token_end limit_images nnodes num_replicas topk"),
    (_SEED, "seed data_loader_seed"),
    # Each worked example has its own seed.
    (whole_number(0, 999), "examples_seed"),
    (whole_number(0, 100), "num_examples"),
    (nullable(whole_number(1, 1024)), "scorer.num_workers"),
    (_INTERVAL, "save_freq test_freq optim.total_training_steps train_max_samples val_max_samples fsdp_size"),
    (nullable(whole_number(-1)), "lr_warmup_steps"),
    (_TOP_K, "top_k"),
    (
        _POSITIVE,
        "lr rollout.temperature clip_grad grad_clip tau_pos tau_neg num_cycles horizon",
    ),
    (number(lambda value: value > 1, "a number above 1"), "clip_ratio_c"),
    (_SECONDS, "stop_within_s timeout_s"),
    (nullable(_SECONDS), "report_after_s end_after_s"),
    (nullable(_POSITIVE), "gpu_memory_gb"),
    (_NON_NEGATIVE, "temperature entropy_coeff esi_redundant_time"),
    (_SHARE, "gamma lam lr_warmup_steps_ratio over_sample_rate dropout clip_cov_ratio kl_cov_ratio"),
    (nullable(either(_POSITIVE, Rule("never", lambda value: value == "never"))), "max_rollout_gap"),
    (nullable(_SHARE), "min_lr_ratio"),
    (_SHARE_ABOVE_0, "top_p gpu_memory_utilization switch_threshold_ratio"),
    (nullable(_SHARE_ABOVE_0), "reward_model.rollout.gpu_memory_utilization"),
    (nullable(_NUMBER), "dro_beta loss_max_clamp log_prob_min_clamp"),
    (_BETAS, "betas"),
    (_THRESHOLD, "rollout_is_threshold"),
    (nullable(_THRESHOLD), "rollout_rs_threshold"),
    (_CRITERIA, "rollout_rs"),
    (nullable(one_of("token", "sequence")), "rollout_is"),
    (one_of("fast", "verl"), "engine"),
    (one_of("brief", "only"), "preflight"),
    (one_of("cuda", "cpu", "npu"), "trainer.device"),
    (one_of("auto", "disable", "resume_path"), "resume_mode"),
    (one_of("stop", "continue"), "save_failure"),
    (one_of(*ADVANTAGE_ESTIMATORS), "adv_estimator"),
    (one_of(*POLICY_LOSSES), "policy_loss.loss_mode policy_loss_mode"),
    (_LOSS_AGGREGATION, "loss_agg_mode"),
    (_KL_ESTIMATOR, "kl_loss_type kl_penalty"),
    (one_of("fixed", "adaptive"), "kl_ctrl.type"),
    (one_of("ppo_clip", "reinforce"), "rollout_correction.loss_type"),
    (one_of("fsdp", "fsdp2", "megatron", "veomni", "torchtitan", "mindspeed", "automodel"), "strategy"),
    (one_of("vllm", "sglang", "trtllm", "hf"), "actor_rollout_ref.rollout.name"),
    (one_of("constant", "cosine", "linear", "inverse-square-root"), "lr_scheduler_type"),
    (nullable(one_of("constant", "cosine")), "warmup_style"),
    (_DTYPE, "dtype param_dtype reduce_dtype output_dtype"),
    (nullable(_DTYPE), "model_dtype lora.dtype reward_model.rollout.dtype"),
    (nullable(_PRECISION), "mixed_precision"),
    (nullable(one_of("torch", "nsys", "npu", "torch_memory", "precision_debugger")), "tool"),
    (one_of("register", "importlib"), "reward_manager.source"),
    (whole_number(0), "reward.num_workers"),
    (nullable(one_of("system", "developer", "user")), "prompt.role"),
    (one_of("error", "left", "right", "middle"), "truncation"),
    (list_of(one_of(*TRACKERS), f"a list of names from {', '.join(TRACKERS)}"), "trainer.logger"),
    (list_of(one_of(*_CONTENTS), f"a list of names from {', '.join(_CONTENTS)}"), "save_contents load_contents"),
    (_TEXTS, "held_out_files validation_files allow_unsound_verifiers plugins"),
    (_NATURALS, "ranks finish_hook_ranks"),
    (nullable(_NATURALS), "steps cudagraph_capture_sizes"),
    (nullable(either(_ANY_TEXT, _LIST)), "target_modules exclude_modules train_files val_files stages external_lib"),
    (nullable(_ANY_TEXT), "system_prompt"),
    (nullable(either(TEXT, _MAPPINGS)), "prompt.examples"),
    (nullable(_COUNT), "prompt.examples_until_step"),
    (TEXT, "run_dir"),
    (_LABEL, "experiment_name project_name"),
    (
        nullable(TEXT),
        "hf_config_path tokenizer_path custom_chat_template lora_adapter_path adapter_path "
        "quantization_config_path router_config_path tool_config_path function_tool_path agent_loop_config_path "
        "custom_async_server.path custom_async_server.name custom_backend_module trace.backend quantization "
        "quantization_config_file ib_device data.tokenizer custom_reward_function.path custom_reward_function.name "
        "module.path module.name",
    ),
    (
        nullable(TEXT),
        "url model_path rollout_data_dir validation_data_dir resume_from_path checkpoint_callback_class "
        "default_hdfs_dir custom_sampler.path custom_sampler.name py_executable address timeline_json_file shape "
        "config_path finish_hook_cmd reward_manager reward_loop_source reward_loop_module_path "
        "reward_loop_class_name reward_model.model.path reward_model.rollout.name load_format",
    ),
    (
        nullable(TEXT),
        "filter_groups.metric teacher_model.key agent_loop_manager_class capture-range-end default_local_dir save_path",
    ),
    (
        nullable(FLAG),
        "template_opens_thinking trust_remote_code critic.enable reward_model.enable enable_resource_pool "
        "reward_model.rollout.enforce_eager "
        "reward_model.rollout.free_cache_engine enable_chunked_prefill enable_prefix_caching disable_log_stats "
        "skip_tokenizer_init",
    ),
    (
        nullable(_MAPPING),
        "override_optimizer_config apply_chat_template_kwargs reward_model.rollout.engine_kwargs mtp rollout.qat",
    ),
)
# Values that only `engine: verl` takes are refused for `engine: fast`.
_FAST_RULES = _entries(
    (one_of("cuda", "cpu"), "trainer.device"),
    (one_of("fsdp", "fsdp2"), "strategy"),
    (one_of("vllm"), "actor_rollout_ref.rollout.name"),
    (one_of("constant", "cosine"), "lr_scheduler_type"),
)
_TORCH_OPTIMIZER = one_of(*_OPTIMIZERS)


def check_values(config: DictConfig, *, declared: DictConfig, interpolated: set[str]) -> None:
    """Check each value of a resolved configuration, and replace a single value by a list of one if a list is meant.

    Args:
        config: The configuration.
        declared: All keys with their defaults.
        interpolated: The full keys of values that came from other keys. If the source is wrong too, only it is named.

    Raises:
        ConfigError: Values or keys are unusable. The message names each of them.
    """
    wrong = dict(_wrong_values(config, declared, path=""))
    sources = [message for key, message in wrong.items() if key not in interpolated]
    if wrong:
        raise ConfigError("; ".join(sources or wrong.values()))


def interpolated_keys(config: DictConfig, *, path: str = "") -> Iterator[str]:
    """Yield the full keys of all values that are references to other keys; call it before they are resolved."""
    for key in config:
        child, full_name = config._get_node(key), f"{path}.{key!s}" if path else str(key)
        if child is not None and child._is_interpolation():
            yield full_name
        elif isinstance(child, DictConfig) and not child._is_none():
            yield from interpolated_keys(child, path=full_name)


def rule_for(key: str, *, engine: str = "fast") -> Rule | None:
    """Return the rule of the longest entry for a key; None if its rule follows from its declared default.

    Args:
        key: The full key.
        engine: The training engine, because `verl` allows more.
    """
    parts = key.split(".")
    for start in range(len(parts)):
        suffix = ".".join(parts[start:])
        if engine == "fast" and suffix in _FAST_RULES:
            return _FAST_RULES[suffix]
        if suffix in _RULES:
            return _RULES[suffix]
    return None


def _rule_of_default(default: Any) -> Rule:
    match default:
        case bool():
            return FLAG
        case int():
            return whole_number(min(default, 0))
        case float():
            return _NON_NEGATIVE if default >= 0 else _NUMBER
        case str():
            return TEXT if default else _ANY_TEXT
        case list():
            return _LIST
        case Mapping():
            return _MAPPING
    return _SCALAR


def _wrong_values(config: DictConfig, declared: DictConfig, *, path: str) -> Iterator[tuple[str, str]]:
    """Yield the full keys of unusable values with messages."""
    root: Any = declared._get_root()
    for key in declared:
        full_name = f"{path}.{key!s}" if path else str(key)
        default: Any = declared._get_node(key)
        node: Any = config._get_node(key)
        is_section = isinstance(default, DictConfig) and not default._is_none() and len(default) > 0
        if is_section and isinstance(node, DictConfig) and not node._is_none():
            yield from _wrong_values(node, default, path=full_name)
            continue
        value = OmegaConf.to_container(node) if isinstance(node, DictConfig | ListConfig) else node._value()
        if is_section:
            yield full_name, f"{full_name} is {_shown(value)}; give a mapping with keys such as {next(iter(default))}"
            continue
        rule = _rule_in(config, full_name) or _rule_of_default(default_of(root, full_name))
        if value == _MISSING and not default._is_missing():
            yield full_name, f"{full_name} is missing; give {rule.words}"
        elif isinstance(value, int) and value > _MAX_INT:
            yield full_name, f"{full_name} is {value}; give {rule.words}, below 2^63"
        elif not rule.allows(value):
            yield full_name, f"{full_name} is {_shown(value)}; {_advice(full_name, value, rule)}"
        elif (read := rule.read(value)) is not value:
            config[key] = read


def _child(config: DictConfig, key: Any) -> Any:
    return config._get_node(key)


def _root(config: DictConfig) -> Any:
    return config._get_root()


def _advice(key: str, value: Any, rule: Rule) -> str:
    for_verl = rule_for(key, engine="verl")
    if rule is not for_verl and for_verl and for_verl.allows(value):
        return f"engine=fast takes {' or '.join(rule.choices)}; for {value!r}, set engine=verl"
    return rule.advice(value)


def _rule_in(config: DictConfig, key: str) -> Rule | None:
    """Return the entry for a key of a section, which may depend on other values."""
    root: Any = config._get_root()
    engine = root.get("engine")
    # Other modules than torch.optim have other optimizers.
    if key.endswith(".optim.optimizer") and config.get("optimizer_impl") == "torch.optim" and engine == "fast":
        return _TORCH_OPTIMIZER
    return rule_for(key, engine=engine)


def default_of(declared: DictConfig, key: str) -> Any:
    """Return the declared default of a key as a plain value; that of its source if it refers to another key.

    Args:
        declared: All keys with their defaults.
        key: The full key.
    """
    node: Any = declared
    for part in key.split("."):
        node = node._get_node(part) if isinstance(node, DictConfig) else None
    if isinstance(node, DictConfig | ListConfig):
        return OmegaConf.to_container(node)
    value = None if node is None else node._value()
    # Resolving the references would take as long as all other checks together.
    source = _REFERENCE.match(value) if isinstance(value, str) else None
    return default_of(declared, source[1]) if source else value


def _shown(value: Any) -> str:
    """Return a value as in YAML."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
