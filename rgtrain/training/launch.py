"""Start a checked run: its folder, its environment, its log, then verl."""

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

from omegaconf import DictConfig, OmegaConf, open_dict

from rgtrain import preflight, provenance
from rgtrain.checkpoints.checkpoint_store import CheckpointStore
from rgtrain.checkpoints.metrics_file import METRICS, unlogged_record
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.files import write_whole
from rgtrain.machine.devices import memory_bytes
from rgtrain.machine.environment import cpu_environment, unless_set
from rgtrain.machine.orphan_cleanup import RUN_ID, clean_up_after_this_process
from rgtrain.machine.vllm_settings import attention_backend, vllm_environment
from rgtrain.preflight.plan import plan_of
from rgtrain.preflight.preflight_report import brief
from rgtrain.preflight.run_folder import check_run_folder
from rgtrain.training.lifecycle.console import MARK_VARIABLE, announce
from rgtrain.training.lifecycle.exits import report_exit
from rgtrain.training.lifecycle.run_lock import RunLock, locked_run
from rgtrain.training.lifecycle.stopping import STOP, signals_kept_from_children
from rgtrain.training.warm_up import warm_up

# Set before anything imports Ray or verl, and passed to every Ray worker.
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    # No text that a worker prints may raise an error.
    "PYTHONIOENCODING": "utf-8:backslashreplace",
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
    "VERL_USE_EXTERNAL_MODULES": "rgtrain.upstream.on_cpu",
    "VERL_PLATFORM": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # An idle vLLM would spin on the cores that train.
    "VLLM_SLEEP_WHEN_IDLE": "1",
    # glibc would give every large tensor's memory back and fetch it anew: a tenth of the update's time.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
}
# How long a start waits for a run that is stopping, beyond trainer.stop_within_s.
_STOP_MARGIN_SECONDS = 15.0
# Ray serves only processes that know it. By default it would keep one token for all clusters in the user's home folder.
_RAY_TOKEN = secrets.token_hex(32)


def train(composed: DictConfig) -> None:
    """Run the training that a configuration describes, or continue it after its last checkpoint.

    A failure is printed with the log's path and ends the process with exit code 1. A run that was asked to stop exits
    with 75 (SIGTERM, SIGHUP) or 130 (SIGINT), and the same command continues it.

    Args:
        composed: The composed configuration. It is completed in place.

    Raises:
        ConfigError: Before anything heavy starts or is written, if the run cannot work or its folder is in use.
    """
    config = RunConfig.of(plain_config(composed))
    warnings = preflight.check(config)
    run_dir, checkpoints = config.run_dir.absolute(), config.trainer.default_local_dir.absolute()
    folders = {"run_dir": run_dir}
    if not checkpoints.is_relative_to(run_dir):
        folders["trainer.default_local_dir"] = checkpoints
    wait_s = config.trainer.stop_within_s + _STOP_MARGIN_SECONDS
    with ExitStack() as held:
        locks = [
            held.enter_context(locked_run(folder, wait_s=wait_s, say=_say, setting=setting))
            for setting, folder in folders.items()
        ]
        # Another start may have made or continued the run since the first check.
        check_run_folder(config)
        num_steps = plan_of(config).num_steps
        if _is_complete(config, num_steps=num_steps):
            print(f"{run_dir} has finished its {num_steps} steps; set run_dir for another run")
            return
        with open_dict(composed):
            composed.run_dir = str(run_dir)
            composed.trainer.default_local_dir = str(checkpoints)
            # verl saves after its last step, and takes total_training_steps for it even if the epochs end before.
            composed.trainer.total_training_steps = num_steps
        plan = [*brief(config), *(f"warning: {warning}" for warning in warnings)]
        _train_locked(composed, RunConfig.of(plain_config(composed)), plan, locks)


def _say(line: str) -> None:
    print(line, flush=True)


def _train_locked(composed: DictConfig, config: RunConfig, plan: list[str], locks: list[RunLock]) -> None:
    run_dir = config.run_dir
    # Written atomically: its values decide whether a run may be continued.
    saved = OmegaConf.create(provenance.masked_values(config.whole))
    write_whole(run_dir / "config.yaml", OmegaConf.to_yaml(saved))
    provenance.record(run_dir)
    # W&B records the command line too.
    sys.argv[:] = provenance.masked_words(sys.argv)
    temporary = clean_up_after_this_process()
    _set_environment(composed, config)

    def mark_stopping() -> None:
        for lock in locks:
            lock.mark_stopping()

    with report_exit(config, stopping=mark_stopping):
        for line in (f"run {run_dir}", *plan):
            announce(line)
        _run(composed, config, temporary)
        announce(f"finished: checkpoints in {config.trainer.default_local_dir}")


def _run(composed: DictConfig, config: RunConfig, temporary: Path) -> None:
    warm_up(config.model.path)
    # verl's run_ppo starts the trainer in an actor, which imports everything once more; it runs in this process here.
    with ThreadPoolExecutor() as meanwhile:
        importing = meanwhile.submit(import_module, "rgtrain.training.trainer")
        _start_ray(plain_config(composed.ray_kwargs.ray_init), temporary)
    importing.result()
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from rgtrain.training.trainer import TaskRunner

    validate_config(composed, use_reference_policy=need_reference_policy(composed), use_critic=need_critic(composed))
    TaskRunner().run(composed)


def _start_ray(settings: dict[str, Any], temporary: Path) -> None:
    if settings["address"] is None:
        # Ray makes its folder writable for all users. Below the run's private folder, no other user can reach it.
        settings = {"_temp_dir": str(temporary / "r"), **_object_store(), **settings}
    else:
        # Workers on other machines inherit nothing from this process.
        settings["runtime_env"]["env_vars"][MARK_VARIABLE] = os.environ[MARK_VARIABLE]
    import ray

    # Shut down Ray from the previous run of a sweep.
    ray.shutdown()
    with signals_kept_from_children():
        ray.init(**settings)
    STOP.take_signals()


def _object_store() -> dict[str, int]:
    """Return Ray's setting for a /dev/shm that is smaller than Ray would fill; it would use files instead."""
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    # Ray takes 30% of the memory by default. Below 1 GiB, files are better (see preflight/machine.py).
    return {"object_store_memory": int(0.9 * free)} if 1 << 30 <= free < 0.33 * memory_bytes() else {}


def _set_environment(composed: DictConfig, config: RunConfig) -> None:
    environment = _ENVIRONMENT | vllm_environment()
    environment |= {
        RUN_ID: os.environ[RUN_ID],
        # Ray would give its workers niceness 15, so that any ordinary process starves the training.
        **unless_set({"RAY_worker_niceness": "0"}),
        "TENSORBOARD_DIR": str(config.run_dir / "tensorboard"),
        "WANDB_DIR": str(config.run_dir),
    }
    if config.trainer.device == "cpu":
        environment |= _CPU_ENVIRONMENT | cpu_environment()
        # Ray takes an empty list of GPUs for none to count, and on a CPU it only counts.
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if "wandb" in config.trainer.trackers:
        environment |= _wandb_environment(config.run_dir)
    if config.rollout.full_determinism and config.trainer.device != "cpu":
        # As verl's own launcher does; vLLM has no such kernels for a CPU, where one batch gives one result.
        environment["VLLM_BATCH_INVARIANT"] = "1"
    os.environ.update(environment)
    # These are secret: they must not be in the configuration, which verl prints.
    os.environ[MARK_VARIABLE] = f"[rgtrain {secrets.token_hex(16)}] "
    if config.ray_init.address is None and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        os.environ["RAY_AUTH_TOKEN"] = _RAY_TOKEN
    with open_dict(composed):
        runtime_env = composed.ray_kwargs.ray_init.runtime_env
        runtime_env.env_vars = {**environment, **runtime_env.get("env_vars", {})}
        runtime_env.setdefault("worker_process_setup_hook", "rgtrain.jobs.watchdog.print_stacks_on_request")
        if backend := attention_backend():
            composed.actor_rollout_ref.rollout.engine_kwargs.vllm = {
                "attention_backend": backend,
                **composed.actor_rollout_ref.rollout.engine_kwargs.get("vllm", {}),
            }


def _wandb_environment(run_dir: Path) -> dict[str, str]:
    """One run of W&B for this folder, however often it is started; offline without a login."""
    file = run_dir / "wandb_run_id"
    # Also anew if a power loss has damaged it.
    if not file.exists() or not re.fullmatch(rb"[\w-]{1,64}", file.read_bytes()):
        write_whole(file, secrets.token_hex(4))
    environment = {"WANDB_RUN_ID": file.read_text(), "WANDB_RESUME": "allow"}
    return environment if _logged_in_to_wandb() else environment | {"WANDB_MODE": "offline"}


def _logged_in_to_wandb() -> bool:
    if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text()


def _is_complete(config: RunConfig, *, num_steps: int) -> bool:
    """Whether the run's folder holds the checkpoint of its last step and the metrics of that step.

    Raises ConfigError before anything heavy starts if the checkpoint to resume from could run code of its author.
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
    from rgtrain.checkpoints.pickle_check import check_pickles  # loads torch, which a finished run does without

    check_pickles(folder)
    return False
