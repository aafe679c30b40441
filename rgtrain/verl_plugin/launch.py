"""Start a checked run: its folder, its environment, its log, then verl."""

import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from rgtrain import preflight, provenance
from rgtrain.checkpoint_store import CheckpointStore
from rgtrain.files import write_whole
from rgtrain.leftovers import RUN_ID, clean_up_after_this_process
from rgtrain.preflight.plan import plan_of
from rgtrain.preflight.report import brief
from rgtrain.verl_plugin.endings import endings_told
from rgtrain.verl_plugin.progress import announce
from rgtrain.verl_plugin.stopping import STOP, signals_kept_from_children
from rgtrain.vllm_settings import attention_backend, vllm_environment

# Set before anything imports verl, and handed to every Ray worker.
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    # The progress line says what verl's bar would, without filling the log.
    "TQDM_DISABLE": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "true",
    "NCCL_DEBUG": "WARN",
    # To the run's log, like everything that is not marked as progress.
    "VLLM_LOGGING_LEVEL": "INFO",
    # vLLM inside the training worker, stepped by it.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
_CPU_ENVIRONMENT = {
    "VERL_USE_EXTERNAL_MODULES": "rgtrain.verl_plugin.cpu_platform",
    "VERL_PLATFORM": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # An idle vLLM would spin on the cores that train.
    "VLLM_SLEEP_WHEN_IDLE": "1",
    # glibc would give every large tensor's memory back and fetch it anew: a tenth of the update's time.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    # Ray would give each worker one thread.
    "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
}


def train(config: DictConfig) -> None:
    """Run the training that `config` describes, or continue it after its last checkpoint.

    Raises ConfigError before anything heavy starts. A failure later is printed with the log's path, exit code 1; a run
    that was told to stop exits with 75 (SIGTERM) or 130 (SIGINT), and the same command continues it.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    warnings = preflight.check(plain)
    run_dir = Path(config.run_dir).absolute()
    # verl saves after its last step, and takes total_training_steps for that where the epochs end before.
    config.trainer.total_training_steps = plan_of(plain).num_steps
    if _is_complete(config):
        print(f"{run_dir} has finished its {config.trainer.total_training_steps} steps; set run_dir for another run")
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with open_dict(config):
        config.run_dir = str(run_dir)
        config.trainer.default_local_dir = str(Path(config.trainer.default_local_dir).absolute())
    # All of it or nothing: what is there decides whether a run may be continued.
    write_whole(run_dir / "config.yaml", OmegaConf.to_yaml(config))
    provenance.record(run_dir)
    temporary = clean_up_after_this_process()
    _set_environment(config, run_dir)
    with endings_told(config):
        announce(f"run {run_dir}")
        for line in [*brief(plain), *(f"warning: {warning}" for warning in warnings)]:
            announce(line)
        _run(config, temporary)
        announce(f"finished: checkpoints in {config.trainer.default_local_dir}")


def _run(config: DictConfig, temporary: Path) -> None:
    # verl's run_ppo starts the trainer in an actor, which imports everything once more; it runs in this process here.
    with ThreadPoolExecutor() as meanwhile:
        importing = meanwhile.submit(import_module, "rgtrain.verl_plugin.trainer")
        _start_ray(OmegaConf.to_container(config.ray_kwargs.ray_init, resolve=True), temporary)
        _warm_up(config.actor_rollout_ref.model.path)
    importing.result()
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from rgtrain.verl_plugin.trainer import TaskRunner

    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    TaskRunner().run(config)


def _start_ray(settings: dict[str, Any], temporary: Path) -> None:
    import ray

    # That of a sweep's run before.
    ray.shutdown()
    if settings["address"] is None:
        # A session of the run's own, removed with it.
        settings = {"_temp_dir": str(temporary), **settings}
    with signals_kept_from_children():
        ray.init(**settings)
    STOP.take_signals()


def _warm_up(model_path: str) -> None:
    """Do in other processes, meanwhile, what makes the workers' start quicker; nothing waits for it or needs it."""
    import ray

    in_passing = ray.remote(num_cpus=0, max_retries=0)
    in_passing(_read_worker_code).remote()
    in_passing(_let_vllm_look_at).remote(model_path)


def _read_worker_code() -> None:
    """Have the files of what workers import in memory by the time that these start: gigabytes on a cold disk."""
    import rgtrain.verl_plugin.worker  # noqa: F401


def _let_vllm_look_at(model_path: str) -> None:
    """vLLM imports a model's code in a process of its own to see what it can, and remembers that on disk."""
    from vllm.config import ModelConfig

    ModelConfig(model=model_path, tokenizer=model_path)


def _set_environment(config: DictConfig, run_dir: Path) -> None:
    environment = _ENVIRONMENT | vllm_environment()
    environment |= {
        RUN_ID: os.environ[RUN_ID],
        "TENSORBOARD_DIR": str(run_dir / "tensorboard"),
        "WANDB_DIR": str(run_dir),
    }
    if config.trainer.device == "cpu":
        environment |= _CPU_ENVIRONMENT
    if "wandb" in config.trainer.logger:
        environment |= _wandb_environment(run_dir)
    if config.actor_rollout_ref.rollout.full_determinism and config.trainer.device != "cpu":
        # As verl's own launcher does; vLLM has no such kernels for a CPU, where one batch gives one result.
        environment["VLLM_BATCH_INVARIANT"] = "1"
    os.environ.update(environment)
    with open_dict(config):
        runtime_env = config.ray_kwargs.ray_init.runtime_env
        runtime_env.env_vars = {**environment, **runtime_env.get("env_vars", {})}
        runtime_env.setdefault("worker_process_setup_hook", "rgtrain.verl_plugin.watchdog.answer_where")
        if backend := attention_backend():
            config.actor_rollout_ref.rollout.engine_kwargs.vllm = {
                "attention_backend": backend,
                **config.actor_rollout_ref.rollout.engine_kwargs.get("vllm", {}),
            }


def _wandb_environment(run_dir: Path) -> dict[str, str]:
    """One run of W&B for this folder, however often it is started; offline without a login."""
    file = run_dir / "wandb_run_id"
    if not file.exists():
        write_whole(file, secrets.token_hex(4))
    environment = {"WANDB_RUN_ID": file.read_text(), "WANDB_RESUME": "allow"}
    return environment if _logged_in_to_wandb() else environment | {"WANDB_MODE": "offline"}


def _logged_in_to_wandb() -> bool:
    if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text()


def _is_complete(config: DictConfig) -> bool:
    """Whether the run's folder holds the checkpoint of its last step already; what is damaged there is passed over."""
    if config.trainer.resume_mode != "auto":
        return False
    store = CheckpointStore(Path(config.trainer.default_local_dir), keep=None, say=print)
    last = store.last_usable()
    return last is not None and last >= config.trainer.total_training_steps
