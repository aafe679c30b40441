"""Check the memory, temporary folders and packages of this machine, or of the container that the run starts in."""

import importlib.util
import shutil
from pathlib import Path

from rgtrain.config.run_config import RunConfig
from rgtrain.config.training_settings import TrainingSettings
from rgtrain.errors import ConfigError
from rgtrain.machine.devices import gpu_memories_gb, memory_bytes
from rgtrain.machine.orphan_cleanup import short_parent
from rgtrain.preflight.memory import GB, host_bytes
from rgtrain.preflight.training_model import find_model

# Ray passes batches between processes in shared memory, or in the run's temporary folder if that is too small.
_OBJECTS_BYTES = 1 << 30
# Ray's logs and sockets in the run's temporary folder.
_LOGS_BYTES = 1 << 28


def runs_here(config: RunConfig) -> bool:
    """Return whether the run is configured for this machine alone."""
    trainer = config.trainer
    if config.ray_init.address is not None or trainer.nnodes > 1:
        return False
    return trainer.device == "cpu" or trainer.n_gpus_per_node <= len(gpu_memories_gb())


def check_machine(
    config: RunConfig,
    *,
    shared_memory: Path = Path("/dev/shm"),
    temporary: Path | None = None,
    memory: int | None = None,
) -> list[str]:
    """Check that this machine has enough memory, and room for the files that a run keeps outside its folder.

    Args:
        config: The run's configuration.
        shared_memory: The folder of shared memory.
        temporary: The parent of temporary folders. None means `short_parent()`.
        memory: Bytes that the run may use. None means `memory_bytes()`.

    Returns:
        Warnings, one line each.

    Raises:
        ConfigError: If the temporary folder has no room, or neither it nor shared memory has room for Ray's objects, or
            a package breaks verl.
    """
    if not runs_here(config):
        return []
    _check_trl()
    return [*_check_folders(shared_memory, temporary or short_parent()), *_check_memory(config, memory)]


def _check_trl() -> None:
    """Raise ConfigError if TRL is installed without a class that verl then imports when it builds a model."""
    trl = importlib.util.find_spec("trl")
    if trl is None or trl.origin is None:
        return
    package = Path(trl.origin)
    if "AutoModelForCausalLMWithValueHead" in package.read_text() or (package.parent / "experimental/ppo").is_dir():
        return
    raise ConfigError(
        f"TRL is installed in {package.parent}, but verl cannot build a model beside this version; uninstall it with "
        "`pip uninstall trl`, or keep it in a folder apart, see docs/environments.md#trl"
    )


def _check_folders(shared_memory: Path, temporary: Path) -> list[str]:
    shared_free, temporary_free = _free_bytes(shared_memory), _free_bytes(temporary)
    shared_state = f"{shared_memory} has {shared_free / 1e6:.0f} MB free"
    temporary_state = f"{temporary} has {temporary_free / 1e6:.0f} MB free"
    set_tmpdir = "set TMPDIR to a folder on a larger disk whose path has at most 25 characters"
    if temporary_free < _LOGS_BYTES:
        raise ConfigError(
            f"{temporary_state}, but the run's temporary files need {_LOGS_BYTES / 1e6:.0f} MB; {set_tmpdir}"
        )
    if shared_free >= _OBJECTS_BYTES:
        return []
    enlarge = "start the container with --shm-size=8g"
    if temporary_free < 2 * _OBJECTS_BYTES:
        raise ConfigError(
            f"{shared_state} and {temporary_state}, but Ray needs {_OBJECTS_BYTES / 1e6:.0f} MB of shared memory or "
            f"twice as much disk space; {enlarge}, or {set_tmpdir}"
        )
    return [
        f"{shared_state}, so Ray keeps its objects in {temporary}, which is slower, and NCCL between GPUs may fail; "
        f"{enlarge}"
    ]


def _check_memory(config: RunConfig, memory: int | None) -> list[str]:
    size = find_model(config).size
    if config.trainer.device != "cpu" or size is None:
        return []
    settings = TrainingSettings.of(config, shares_prompts=size.shares_prompts)
    need, available = host_bytes(size, settings), memory or memory_bytes()
    if need <= available:
        return []
    return [
        f"the run may need up to {need / GB:.0f} GB of memory, but this machine or its container allows "
        f"{available / GB:.0f} GB, so the kernel may kill it; choose a smaller model or lower "
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
    ]


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free if folder.is_dir() else 0
