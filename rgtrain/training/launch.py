"""Check a run, prepare its folder, environment and log, and start verl."""

import os
import re
import secrets
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, open_dict

from rgtrain import preflight, provenance
from rgtrain.checkpoints.checkpoint_store import CheckpointStore, recorded_last
from rgtrain.checkpoints.metrics_file import METRICS, unlogged_record
from rgtrain.checkpoints.rollout_files import ROLLOUTS
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.files import write_atomically
from rgtrain.machine.devices import memory_bytes
from rgtrain.machine.environment import cpu_environment, unless_set
from rgtrain.machine.orphan_cleanup import RUN_ID, clean_up_after_this_process
from rgtrain.machine.vllm_settings import attention_backend, vllm_environment
from rgtrain.models.model_lookup import fetch_model
from rgtrain.preflight.plan import plan_of
from rgtrain.preflight.preflight_report import brief_report
from rgtrain.preflight.prompt_checks import check_prompts, check_validation_prompts
from rgtrain.preflight.run_folder import check_run_folder
from rgtrain.preflight.training_model import find_model
from rgtrain.training.abandoned_start import set_aside_abandoned_start
from rgtrain.training.lifecycle.console import MARK_VARIABLE, announce
from rgtrain.training.lifecycle.exits import report_exit
from rgtrain.training.lifecycle.run_lock import RunLock, locked_run
from rgtrain.training.lifecycle.stopping import STOP, signals_kept_from_children
from rgtrain.training.trackers import experiment_of, logged_in_to_wandb, places_to_look, run_name, tag_environment
from rgtrain.training.warm_up import warm_up
from rgtrain.training.worker_setup import COLLECT_RARELY, plugins_environment
from rgtrain.upstream.replacements import apply

# Set before Ray or verl is imported, and passed to every Ray worker.
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    # Printing must not fail on any text.
    "PYTHONIOENCODING": "utf-8:backslashreplace",
    # The run's progress lines replace verl's progress bar, which would fill the log.
    "TQDM_DISABLE": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "true",
    "NCCL_DEBUG": "WARN",
    # For the run's log. Only progress lines reach the terminal.
    "VLLM_LOGGING_LEVEL": "INFO",
}
_FAST_ENVIRONMENT = {
    COLLECT_RARELY: "1",
    # The engine `fast` runs vLLM inside the training worker.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # These all-reduces of tensor-parallel engines map the memory of the other GPUs, but a worker sees only its own.
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "VLLM_ALLREDUCE_USE_FLASHINFER": "0",
}
# verl's own launcher sets these too, for its servers.
_STOCK_ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true", "VLLM_DISABLE_COMPILE_CACHE": "1"}
_CPU_ENVIRONMENT = {
    "VERL_USE_EXTERNAL_MODULES": "rgtrain.upstream.on_cpu",
    "VERL_PLATFORM": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # By default, glibc returns the memory of every large tensor to the system, which costs a tenth of an update's time.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
}
# Ray's agent measures for the dashboard only, by default every 5 s. Each time, it initializes NVML and asks all GPUs of
# the machine. A day is longer than most runs.
_WITHOUT_DASHBOARD = {"REPORTER_UPDATE_INTERVAL_MS": str(24 * 60 * 60 * 1000)}
# Runs that start beside each other on a machine with many GPUs wait for NVIDIA's driver. Without these, verl runs
# nvidia-smi and initializes CUDA in every process that imports it, also in those that use no GPU.
_GPU_ENVIRONMENT = {"VERL_PLATFORM": "nvidia", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
# The module and the class that run each engine. Each imports verl.
_TASK_RUNNERS = {
    "fast": ("rgtrain.training.trainer", "FastTaskRunner"),
    "verl": ("rgtrain.training.stock_verl.stock_trainer", "StockTaskRunner"),
}
# A start waits this much longer than trainer.stop_within_s for a run that is stopping.
_STOP_MARGIN_SECONDS = 15.0
# Ray serves only processes that know this token. Its default is one token in the user's home folder for all clusters.
_RAY_TOKEN = secrets.token_hex(32)


def train(composed: DictConfig) -> None:
    """Run the training that a configuration describes, or continue it after its last checkpoint.

    If the training fails, the cause and the path of the log are printed and the process exits with code 1. A run that
    was asked to stop exits with 75 (SIGTERM, SIGHUP) or 130 (SIGINT). The same command continues it.

    Args:
        composed: The composed configuration. It is completed in place.

    Raises:
        ConfigError: The run cannot work, or its folder is in use. Raised before training starts and before files of the
            run are written.
    """
    config = RunConfig.of(plain_config(composed))
    warnings = preflight.check(config)
    run_dir, checkpoints = config.run_dir.absolute(), config.trainer.default_local_dir.absolute()
    folders = {"run_dir": run_dir}
    if not checkpoints.is_relative_to(run_dir):
        folders["trainer.default_local_dir"] = checkpoints
    wait_s = config.trainer.stop_within_s + _STOP_MARGIN_SECONDS
    with ExitStack() as held_locks:
        locks = [
            held_locks.enter_context(locked_run(folder, wait_s=wait_s, say=_print_at_once, setting=setting))
            for setting, folder in folders.items()
        ]
        # Another start may have created or continued the run since the first check.
        check_run_folder(config)
        num_steps = plan_of(config).num_steps
        is_validation = config.trainer.val_only
        if not is_validation and _is_complete(config, num_steps=num_steps):
            print(f"{run_dir} has finished its {num_steps} steps; set run_dir for another run")
            return
        with open_dict(composed):
            composed.run_dir = str(run_dir)
            composed.trainer.default_local_dir = str(checkpoints)
            # verl saves at step total_training_steps. Without this, it would not save if the epochs end earlier.
            composed.trainer.total_training_steps = num_steps
            composed.trainer.experiment_name = run_name(config)
            if is_validation:
                # verl ignores val_only without the validation before training.
                composed.trainer.val_before_train = True
                composed.trainer.save_freq = -1
        download_model(config)
        plan = [*brief_report(config, places_to_look(config)), *(f"warning: {warning}" for warning in warnings)]
        _train_locked(composed, RunConfig.of(plain_config(composed)), plan, locks)


def download_model(config: RunConfig) -> None:
    """Download a hub model before training starts, unless it is on this machine."""
    path = config.model.path
    if find_model(config).folder is None:
        _print_at_once(f"downloading {path} from the Hugging Face hub")
        given = f"actor_rollout_ref.model.path={path}"
        fetch_model(path, given=given, with_code=bool(config.model.trust_remote_code))
        # Only now is the template on this machine.
        check_prompts(config)
        check_validation_prompts(config)


def _result(config: RunConfig) -> str:
    if config.trainer.val_only:
        return f"finished without training; the answers are in {config.run_dir / ROLLOUTS}"
    if config.trainer.save_freq < 1:
        return "finished: no checkpoint saved, because trainer.save_freq is below 1"
    return f"finished: checkpoints in {config.trainer.default_local_dir}"


def _print_at_once(line: str) -> None:
    print(line, flush=True)


def _train_locked(composed: DictConfig, config: RunConfig, plan: list[str], locks: list[RunLock]) -> None:
    run_dir = config.run_dir
    # Written atomically, because its values decide whether a run can be continued.
    saved = provenance.masked_values(config.whole)
    if config.trainer.resume_mode == "auto" and (moved := set_aside_abandoned_start(saved, run_dir)):
        plan.append(moved)
    if not _validates_trained_run(config):
        # OmegaConf would read references in the texts of a prompt.
        write_atomically(run_dir / "config.yaml", yaml.safe_dump(saved, sort_keys=False, allow_unicode=True))
    provenance.record(run_dir)
    # W&B records the command line too.
    sys.argv[:] = provenance.masked_words(sys.argv)
    temporary = clean_up_after_this_process()
    _set_environment(composed, config)

    def mark_stopping() -> None:
        for lock in locks:
            lock.mark_stopping()

    with report_exit(config, stopping=mark_stopping):
        for line in plan:
            announce(line)
        _run(composed, config, temporary)
        announce(_result(config))


def _validates_trained_run(config: RunConfig) -> bool:
    """Return whether a run that has trained is only validated, from whichever weights.

    Its saved configuration then stays that of its training, which could not continue with another one.
    """
    trainer = config.trainer
    is_trained = recorded_last(trainer.default_local_dir) is not None
    return trainer.val_only and is_trained and (config.run_dir / "config.yaml").is_file()


def _run(composed: DictConfig, config: RunConfig, temporary: Path) -> None:
    warm_up(config.model.path)
    # verl's run_ppo would start the trainer in an actor, which repeats all imports. Here it runs in this process.
    module, task_runner = _TASK_RUNNERS[config.engine]
    if config.engine == "verl":
        # It imports Ray, which must not happen in two threads at once.
        apply("stock_launcher", device="cpu" if config.trainer.device == "cpu" else "cuda")
    with ThreadPoolExecutor() as background:
        importing = background.submit(import_module, module)
        _start_ray(plain_config(composed.ray_kwargs.ray_init), temporary)
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    validate_config(composed, use_reference_policy=need_reference_policy(composed), use_critic=need_critic(composed))
    getattr(importing.result(), task_runner)().run(composed)


def _start_ray(settings: dict[str, Any], temporary: Path) -> None:
    if settings["address"] is None:
        # Ray makes its folder writable for all users. Inside the run's private folder, no other user can reach it.
        settings = {"_temp_dir": str(temporary / "r"), **_object_store(), **settings}
    else:
        # Workers on other machines do not inherit this process's environment.
        settings["runtime_env"]["env_vars"][MARK_VARIABLE] = os.environ[MARK_VARIABLE]
    import ray

    # Shut down Ray from the previous run of a sweep.
    ray.shutdown()
    with signals_kept_from_children():
        ray.init(**settings)
    STOP.take_signals()


def _object_store() -> dict[str, int]:
    """Return a size of Ray's object store that fits /dev/shm, because Ray would otherwise use files."""
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    # By default, Ray takes 30% of the memory. If less than 1 GiB is free, files are better.
    return {"object_store_memory": int(0.9 * free)} if 1 << 30 <= free < 0.33 * memory_bytes() else {}


def process_environment(config: RunConfig) -> dict[str, str]:
    """Return the environment variables of every process that trains a run, whichever trainer it has.

    Args:
        config: The run's configuration. Its folder exists.
    """
    environment = _ENVIRONMENT | vllm_environment()
    environment |= {
        RUN_ID: os.environ[RUN_ID],
        # With Ray's default niceness of 15, any ordinary process would starve the training.
        **unless_set({"RAY_worker_niceness": "0"}),
        # Ray would start an idle process per processor. The workers cannot use these, because each worker has its own
        # environment variables.
        **unless_set({"RAY_prestart_worker_first_driver": "0"}),
        **plugins_environment(config.plugins),
        "TENSORBOARD_DIR": str(config.run_dir / "tensorboard"),
        "WANDB_DIR": str(config.run_dir),
    }
    if config.trainer.device == "cpu":
        environment |= _CPU_ENVIRONMENT | cpu_environment()
    else:
        environment |= unless_set(_GPU_ENVIRONMENT)
    if not Path(config.model.path).expanduser().exists() and not config.model.trust_remote_code:
        # The hub's model is in the cache, so no process needs to ask the hub for each of its files.
        environment |= unless_set({"HF_HUB_OFFLINE": "1"})
    seed = config.whole["seed"]
    environment |= tag_environment(seed=seed, experiment=experiment_of(config), environment=os.environ)
    if "wandb" in config.trainer.trackers:
        environment |= _wandb_environment(config.run_dir)
    return environment


def _set_environment(composed: DictConfig, config: RunConfig) -> None:
    environment = process_environment(config)
    if config.trainer.device == "cpu":
        # With an empty list, Ray would reject the nominal GPUs by which a run on a CPU counts its workers.
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    environment |= _FAST_ENVIRONMENT if config.engine == "fast" else _stock_environment(config)
    if not composed.ray_kwargs.ray_init.include_dashboard:
        environment |= unless_set(_WITHOUT_DASHBOARD)
    if config.rollout.full_determinism and config.trainer.device != "cpu":
        # verl's own launcher sets this too. vLLM has batch-invariant kernels for GPUs only.
        environment["VLLM_BATCH_INVARIANT"] = "1"
    os.environ.update(environment)
    # These are secret, so they must not be in the configuration, which verl prints.
    os.environ[MARK_VARIABLE] = f"[rgtrain {secrets.token_hex(16)}] "
    if config.ray_init.address is None and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        os.environ["RAY_AUTH_TOKEN"] = _RAY_TOKEN
    with open_dict(composed):
        runtime_env = composed.ray_kwargs.ray_init.runtime_env
        runtime_env.env_vars = {**environment, **runtime_env.get("env_vars", {})}
        runtime_env.setdefault("worker_process_setup_hook", "rgtrain.training.worker_setup.set_up_worker")
        if backend := attention_backend():
            composed.actor_rollout_ref.rollout.engine_kwargs.vllm = {
                "attention_backend": backend,
                **composed.actor_rollout_ref.rollout.engine_kwargs.get("vllm", {}),
            }


def _stock_environment(config: RunConfig) -> dict[str, str]:
    """Return the variables that verl's own launcher sets for its servers and workers."""
    environment = dict(_STOCK_ENVIRONMENT)
    if config.rollout.full_determinism:
        environment["VERL_FULL_DETERMINISM"] = "1"
    if "rl_insight" in config.trainer.trackers:
        environment["VERL_RL_INSIGHT_ENABLE"] = "1"
    return environment


def _wandb_environment(run_dir: Path) -> dict[str, str]:
    """Return variables that make all starts in this folder one W&B run, which is offline without a login."""
    file = run_dir / "wandb_run_id"
    # A power loss may have damaged the file.
    if not file.exists() or not re.fullmatch(rb"[\w-]{1,64}", file.read_bytes()):
        write_atomically(file, secrets.token_hex(4))
    environment = {"WANDB_RUN_ID": file.read_text(), "WANDB_RESUME": "allow"}
    return environment if logged_in_to_wandb() else environment | {"WANDB_MODE": "offline"}


def _is_complete(config: RunConfig, *, num_steps: int) -> bool:
    """Return whether the run's folder holds the checkpoint and the metrics of the run's last step.

    Args:
        config: The run's configuration.
        num_steps: The number of steps of the whole run.

    Returns:
        Whether there is nothing left to train.

    Raises:
        ConfigError: The checkpoint to resume from could run code of its author.
    """
    trainer = config.trainer
    if trainer.resume_mode == "disable":
        return False
    if trainer.resume_mode == "resume_path":
        folder = Path(trainer.resume_from_path or ".")
    else:
        store = CheckpointStore(trainer.default_local_dir, keep=None, say=print)
        last = store.last_usable()
        if last is None:
            return False
        folder = store.steps()[last]
        is_logged = unlogged_record(config.run_dir / METRICS, folder) is None
        if last >= num_steps and is_logged:
            return True
    from rgtrain.checkpoints.pickle_check import check_pickles  # imports torch, which a finished run does not need

    check_pickles(folder)
    return False
