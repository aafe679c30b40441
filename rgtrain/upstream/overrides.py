"""Methods of verl's and vLLM's classes that our subclasses override, with upstream's parameters.

If upstream renames a method, ours is silently never called. Comparing the declarations with upstream reveals this.
"""

from rgtrain.upstream.declaration import Override

OVERRIDES: tuple[Override, ...] = (
    Override(
        ours="rgtrain.training.trainer:FastTrainer",
        base="verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync",
        role="fast_trainer",
        reason="verl's loop uses our workers, rollout and sample store.",
        methods={
            "_build_replay_buffer": "self",
            "_init_resource_pool_mgr": "self",
            "_setup": "self",
            "_step_once": "self, metrics, timing_raw, sample_batch_size",
            "_update_actor": "self, batch, metrics",
            "_update_critic": "self, batch, metrics",
            "_validate": "self",
            "get_llm_client": "self",
            "on_sample_end": "self",
            "on_step_begin": "self",
            "on_validate_begin": "self",
            "on_validate_end": "self",
        },
    ),
    Override(
        ours="rgtrain.training.reasoning_gym_trainer:ReasoningGymTrainer",
        base="verl.trainer.ppo.v1.trainer_base:PPOTrainer",
        role="trainer",
        reason="Every trainer has the curriculum, metrics by dataset, progress lines and stopping.",
        methods={
            "_add_prompts_to_generate": "self, num_prompts",
            "_compute_metrics": "self, batch, metrics, timing_raw, global_steps, epoch",
            "_init_dataloader": "self",
            "_load_checkpoint": "self",
            "_step_once": "self, metrics, timing_raw, sample_batch_size",
            "on_sample_begin": "self",
            "on_step_begin": "self",
            "on_step_end": "self",
            "on_train_begin": "self",
            "on_validate_begin": "self",
            "on_validate_end": "self",
        },
    ),
    Override(
        ours="rgtrain.training.checkpointing:CheckpointingTrainer",
        base="verl.trainer.ppo.v1.trainer_base:PPOTrainer",
        role="trainer",
        reason="Checkpoints are written atomically, with the metrics and the curriculum of their step.",
        methods={
            "_load_checkpoint": "self",
            "_log_rollout_data": "self, batch, timing_raw, rollout_data_dir",
            "_save_checkpoint": "self",
            "_validate": "self",
            "step": "self, metrics, timing_raw",
        },
    ),
    Override(
        ours="rgtrain.training.trainer:FastTaskRunner",
        base="verl.trainer.main_ppo:TaskRunnerV1.__ray_metadata__.modified_class",
        role="fast_trainer",
        reason="The trainer runs in the process that starts it, because a Ray actor would repeat all imports.",
        methods={"run": "self, config, *, _ray_trace_ctx=None"},
    ),
    Override(
        ours="rgtrain.training.stock_verl.stock_trainer:StockTaskRunner",
        base="verl.trainer.main_ppo:TaskRunnerV1.__ray_metadata__.modified_class",
        role="stock_trainer",
        reason="The trainer runs in the process that starts it, because a Ray actor would repeat all imports.",
        methods={"run": "self, config, *, _ray_trace_ctx=None"},
    ),
    Override(
        ours="rgtrain.training.stock_verl.queued_samples:ObservedReplayBuffer",
        base="verl.trainer.ppo.v1.replay_buffer:ReplayBuffer",
        role="stock_trainer",
        reason="The curriculum sees the groups that dynamic sampling drops, and the watchdog sees finished groups.",
        methods={"_clear_groups": "self, partition_id, uids", "_sync_metadata_from_transfer_queue": "self"},
    ),
    Override(
        ours="rgtrain.training.stock_verl.reward_managers:RunRewardManager",
        base="verl.experimental.reward_loop.reward_manager.base:RewardManagerBase",
        role="stock_trainer",
        reason="verl's reward managers score with the run's reward, which needs the number of tokens.",
        methods={"run_single": "self, data"},
    ),
    Override(
        ours="rgtrain.training.rollout.sample_store:OrderedReplayBuffer",
        base="verl.trainer.ppo.v1.replay_buffer:ReplayBuffer",
        role="fast_trainer",
        reason="Groups are taken in the order of drawing, and dynamic sampling is exact despite rounding errors.",
        methods={
            "_dapo_filtered_keys": "self, partition_id",
            "_select_prompt_uids": "self, partition_id, sampleable_keys, batch_size",
            "_sync_metadata_from_transfer_queue": "self",
        },
    ),
    Override(
        ours="rgtrain.training.worker:GeneratingWorker",
        base="verl.workers.engine_workers:ActorRolloutRefWorker",
        role="fast_worker",
        reason="vLLM runs in this process and takes the actor's parameters without a copy between processes.",
        methods={"update_weights": "self, global_steps=None, mode='auto'"},
    ),
    Override(
        ours="rgtrain.training.update.engine:SharedPromptEngine",
        base="verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead",
        role="fast_worker",
        reason="Each group has one copy of its prompt, and the engine reports the gap to vLLM's log-probabilities.",
        methods={
            "_build_model_optimizer": "self",
            "_build_module": "self",
            "_gradient_sync_context": "self, *, is_last_micro_batch",
            "forward_backward_batch": "self, data, loss_function, forward_only=False",
            "forward_step": "self, micro_batch, loss_function, forward_only",
            "get_per_tensor_param": "self, layered_summon=False, base_sync_done=False, **kwargs",
            "optimizer_step": "self",
            "prepare_model_inputs": "self, micro_batch",
            "prepare_model_outputs": "self, output, output_args, micro_batch, logits_processor_func",
        },
    ),
    Override(
        ours="rgtrain.upstream.cpu_server_worker:CpuServerWorker",
        base="verl.workers.rollout.vllm_rollout.utils:vLLMColocateWorkerExtension",
        role="rollout",
        device="cpu",
        reason="Importing its module keeps the weights of linear layers in the process of vLLM behind verl's server.",
        methods={},
    ),
    Override(
        ours="rgtrain.training.rollout.decoding_scheduler:DecodingScheduler",
        base="vllm.v1.core.sched.async_scheduler:AsyncScheduler",
        role="fast_rollout",
        device="cuda",
        reason="Steps that decode one token of each request take a fast path.",
        methods={
            "_free_request": "self, request, delay_free_blocks=False",
            "_preempt_request": (
                "self, request, timestamp",  # vLLM 0.24
                "self, request, timestamp, drop_stale_output=False",
            ),
            "add_request": "self, request",
            "schedule": "self, throttle_prefills=False",
            "update_from_output": "self, scheduler_output, model_runner_output",
        },
    ),
)
