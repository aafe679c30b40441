"""Configurations in the form of the original training code."""

from typing import Any


def original_config(
    datasets: dict[str, Any],
    *,
    rewards: dict[str, float],
    model: str = "Qwen/Qwen2.5-3B-Instruct",
    prompt_length: int = 512,
    mini_batch: int = 16,
    dataset_size: int = 20000,
    steps: int = 500,
    save_freq: int = 100,
    curriculum: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a whole original configuration, for verl of March 2025.

    Args:
        datasets: `{name: {weight, config}}`.
        rewards: Names and scaling factors of the secondary rewards.
        model: The model's hub name.
        prompt_length: The maximum prompt length; responses are twice as long as 512, or half as long as 4096.
        mini_batch: Problems per update.
        dataset_size: Problems per epoch.
        steps: Steps in all.
        save_freq: Steps between checkpoints.
        curriculum: `last_k`, `failure_threshold` and `curricula`, if a curriculum is enabled.
    """
    secondary: list[dict[str, Any]] = []
    for name, factor in rewards.items():
        secondary.append({"name": name, "scaling_factor": factor})
        if name == "format":
            secondary[-1]["kwargs"] = {"preappend_thinking_token": False}
    offloading = {"wrap_policy": {"min_num_params": 0}, "param_offload": False, "optimizer_offload": False}
    log_probs = {
        "log_prob_micro_batch_size": None,
        "log_prob_micro_batch_size_per_gpu": 160,
        "log_prob_use_dynamic_bsz": "${actor_rollout_ref.actor.use_dynamic_bsz}",
        "log_prob_max_token_len_per_gpu": "${actor_rollout_ref.actor.ppo_max_token_len_per_gpu}",
    }
    return {
        "hydra": {"searchpath": ["file://verl/verl/trainer/config"]},
        "defaults": ["ppo_trainer", "_self_"],
        "reasoning_gym": {"dataset_size": dataset_size, "developer_prompt": "DeepSeekZero", "datasets": datasets},
        "curriculum": {
            "enabled": curriculum is not None,
            "schedule": {"automatic": curriculum is None, "update_steps": 30},
            "last_k": 20,
            "success_threshold": 0.70,
            "failure_threshold": 0.10,
            "curricula": {"spell_backward": {"attribute_levels": {"word_len": 0}}},
        }
        | (curriculum or {}),
        "reward": {"use_accuracy": True, "secondary_rewards": secondary},
        "data": {
            "tokenizer": None,
            "train_files": "train.parquet",
            "val_files": "test.parquet",
            "prompt_key": "prompt",
            "max_prompt_length": prompt_length,
            "max_response_length": {512: 1024, 4096: 2048}[prompt_length],
            "train_batch_size": 32,
            "val_batch_size": 64,
            "return_raw_chat": True,
        },
        "actor_rollout_ref": {
            "hybrid_engine": True,
            "model": {
                "path": model,
                "external_lib": None,
                "override_config": {},
                "enable_gradient_checkpointing": True,
                "use_remove_padding": True,
            },
            "actor": {
                "strategy": "fsdp",
                "ppo_mini_batch_size": mini_batch,
                "ppo_micro_batch_size": None,
                "ppo_micro_batch_size_per_gpu": 4,
                "use_dynamic_bsz": False,
                "ppo_max_token_len_per_gpu": 12288,
                "grad_clip": 1.0,
                "clip_ratio": 0.2,
                "entropy_coeff": 0.001,
                "use_kl_loss": True,
                "kl_loss_coef": 0.001,
                "kl_loss_type": "low_var_kl",
                "ppo_epochs": 1,
                "shuffle": False,
                "ulysses_sequence_parallel_size": 1,
                "optim": {
                    "lr": "1e-6",
                    "lr_warmup_steps_ratio": 0.0,
                    "min_lr_ratio": None,
                    "warmup_style": "constant",
                    "total_training_steps": steps,
                },
                "fsdp_config": offloading | {"fsdp_size": -1},
            },
            "ref": {"fsdp_config": offloading, **log_probs},
            "rollout": {
                "name": "vllm",
                "temperature": 1.0,
                "top_k": -1,
                "top_p": 1,
                "prompt_length": "${data.max_prompt_length}",
                "response_length": "${data.max_response_length}",
                "dtype": "bfloat16",
                "gpu_memory_utilization": 0.7,
                "ignore_eos": False,
                "enforce_eager": True,
                "free_cache_engine": True,
                "load_format": "dummy_dtensor",
                "tensor_model_parallel_size": 4,
                "max_num_batched_tokens": 12288,
                "max_num_seqs": 1024,
                **log_probs,
                "do_sample": True,
                "use_fire_sampling": False,
                "n": 8,
                "val_kwargs": {"do_sample": True},
            },
        },
        "algorithm": {
            "gamma": 1.0,
            "lam": 1.0,
            "adv_estimator": "grpo",
            "kl_penalty": "kl",
            "kl_ctrl": {"type": "fixed", "kl_coef": 0.001},
        },
        "verbose": True,
        "trainer": {
            "balance_batch": True,
            "total_epochs": 1,
            "total_training_steps": steps,
            "project_name": "published",
            "experiment_name": "an_experiment",
            "logger": ["console", "wandb"],
            "val_generations_to_log_to_wandb": 0,
            "nnodes": 1,
            "n_gpus_per_node": 4,
            "save_freq": save_freq,
            "resume_mode": "auto",
            "resume_from_path": False,
            "test_freq": 100,
            "critic_warmup": 0,
            "default_hdfs_dir": None,
            "remove_previous_ckpt_in_save": False,
            "del_local_ckpt_after_load": False,
            "default_local_dir": "checkpoints/${trainer.project_name}/${trainer.experiment_name}",
        },
        "critic": {
            "strategy": "fsdp",
            "optim": {"lr": "1e-5"},
            "model": {"path": "~/models/none", "tokenizer_path": "${actor_rollout_ref.model.path}"},
            "ppo_micro_batch_size_per_gpu": None,
            "use_dynamic_bsz": "${actor_rollout_ref.actor.use_dynamic_bsz}",
        },
        "reward_model": {"enable": False, "strategy": "fsdp", "model": {"path": "~/models/none"}},
    }
