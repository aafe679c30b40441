"""Check that a run sets no argument of vLLM's engine that another key or the trainer sets.

Arguments in `engine_kwargs.vllm` would take precedence, unseen by the checks of those keys. For example, if
`tensor_parallel_size` said that ranks share an engine, they would give it different prompts.
"""

from collections.abc import Iterator

from rgtrain.config.run_config import RunConfig
from rgtrain.config.verl_keys import RefusedKeys, classified_keys
from rgtrain.errors import ConfigError

_ROLLOUT = "actor_rollout_ref.rollout"
_MODEL = "actor_rollout_ref.model"
_ARGUMENTS = f"{_ROLLOUT}.engine_kwargs.vllm"
# Arguments that a key of the rollout with the same name sets.
_OF_ROLLOUT = """
    cudagraph_capture_sizes data_parallel_size disable_log_stats dtype enable_chunked_prefill enable_prefix_caching
    enable_sleep_mode enforce_eager gpu_memory_utilization load_format logprobs_mode max_model_len
    max_num_batched_tokens max_num_seqs quantization scheduling_policy seed skip_tokenizer_init
"""
KEY_OF_ARGUMENT = {name: f"{_ROLLOUT}.{name}" for name in _OF_ROLLOUT.split()} | {
    "enable_lora": f"{_MODEL}.lora_rank",
    "enable_return_routed_experts": f"{_ROLLOUT}.enable_rollout_routing_replay",
    "hf_config_path": f"{_MODEL}.hf_config_path",
    "model": f"{_MODEL}.path",
    "pipeline_parallel_size": f"{_ROLLOUT}.pipeline_model_parallel_size",
    "quantization_config": f"{_ROLLOUT}.quantization",
    "tensor_parallel_size": f"{_ROLLOUT}.tensor_model_parallel_size",
    "tokenizer": f"{_MODEL}.tokenizer_path",
    "trust_remote_code": f"{_MODEL}.trust_remote_code",
}
# Arguments that place an engine on machines and GPUs.
_PLACEMENT = """
    data_parallel_address data_parallel_backend data_parallel_external_lb data_parallel_hybrid_lb
    data_parallel_multi_port_external_lb data_parallel_rank data_parallel_rpc_port data_parallel_size_local
    data_parallel_start_rank device_ids distributed_executor_backend master_addr master_port nnodes node_rank
    prefill_context_parallel_size
"""
SET_BY_ENGINE = {
    "fast": {*_PLACEMENT.split(), "disable_custom_all_reduce", "generation_config"},
    "verl": {*_PLACEMENT.split()},
}


def check_vllm_arguments(config: RunConfig) -> None:
    """Check that `engine_kwargs.vllm` has only arguments that nothing else sets.

    Args:
        config: The run's configuration.

    Raises:
        ConfigError: There are others. The message has a line for each.
    """
    if errors := list(_errors(config)):
        raise ConfigError("\n  ".join(errors))


def _errors(config: RunConfig) -> Iterator[str]:
    for given, value in (config.rollout.engine_kwargs.get("vllm") or {}).items():
        # verl passes them on as options of the command line, which have dashes.
        name = str(given).replace("-", "_")
        if value is None:
            continue
        shown = f"{_ARGUMENTS}.{given} is {value!r}, but"
        if name in SET_BY_ENGINE[config.engine]:
            yield f"{shown} engine={config.engine} sets this argument itself; remove it"
        elif name == "enable_expert_parallel" and config.engine == "verl":
            yield f"{shown} verl replaces it; set {_ROLLOUT}.expert_parallel_size instead"
        elif key := KEY_OF_ARGUMENT.get(name):
            row = classified_keys()[key]
            if config.engine == "fast" and isinstance(row, RefusedKeys):
                yield f"{shown} engine=fast {row.because}; remove it, or {row.advice}"
            else:
                yield f"{shown} {key} sets this argument; set that key instead"
