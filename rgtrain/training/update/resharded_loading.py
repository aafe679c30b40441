"""Load checkpoints that another number of ranks saved, or ranks on another device mesh.

verl's checkpoint manager loads the file that the same rank saved.
"""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from verl.utils.fsdp_utils import fsdp_version

from rgtrain.checkpoints.checkpoint_store import MANIFEST
from rgtrain.checkpoints.shards.checkpoint import complete_checkpoint, files_beside, saved_by
from rgtrain.checkpoints.shards.optimizer_shards import OptimizerShards
from rgtrain.checkpoints.shards.resharding import is_divided_alike, load_model_shards, load_optimizer_shards
from rgtrain.checkpoints.shards.shard_merge import RankFiles
from rgtrain.errors import ConfigError


def loading_any_mesh(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap `load_checkpoint` of verl's FSDP checkpoint manager so that other ranks may have saved the checkpoint.

    Args:
        original: verl's method, which loads a checkpoint of the same ranks.

    Returns:
        The method to use.
    """

    def load_checkpoint(self: Any, local_path: Any, *arguments: Any, **options: Any) -> None:
        if local_path is None or _was_saved_alike(self, Path(local_path)):
            original(self, local_path, *arguments, **options)
            return
        _load_resharded(self, Path(local_path))
        torch.distributed.barrier()

    return load_checkpoint


def _was_saved_alike(manager: Any, folder: Path) -> bool:
    """Return whether as many ranks on the same mesh saved the checkpoint. Then each needs its own files only."""
    saved = saved_by(folder)
    if saved is None or saved.world_size != manager.world_size:
        return False
    if fsdp_version(manager.model) != 2:
        return True
    own_file = folder / f"model_world_size_{manager.world_size}_rank_{manager.rank}.pt"
    return own_file.exists() and is_divided_alike(manager.model.state_dict(), own_file)


def _load_resharded(manager: Any, folder: Path) -> None:
    model_files = complete_checkpoint(folder).rank_files
    if not model_files or fsdp_version(manager.model) != 2:
        # FSDP1 flattens parameters, so its optimizer state has no shards of single parameters.
        raise ConfigError(
            f"{str(folder)!r} can't be resumed by {manager.world_size} ranks, because only strategy=fsdp2 resumes on "
            "another number of ranks than saved it; use as many GPUs as before"
        )
    # The trainer has compared all files with the manifest before it started workers.
    is_verified = (folder.parent / MANIFEST).exists()
    if manager.should_load_model:
        stored = RankFiles(model_files, is_verified=is_verified)
        has_only_adapters = manager.is_lora_only_state_dict(dict.fromkeys(stored.names))
        load_model_shards(manager.model.state_dict(), stored, may_lack=has_only_adapters)
    if manager.should_load_optimizer:
        optimizer_files = files_beside(model_files, "optim")
        load_optimizer_shards(manager.optimizer, OptimizerShards(optimizer_files, is_verified=is_verified))
    if manager.should_load_extra:
        _load_extra(manager, files_beside(model_files, "extra_state"))


def _load_extra(manager: Any, paths: tuple[Path, ...]) -> None:
    """Restore the schedule of the learning rate and this rank's random generators."""
    is_new_rank = manager.rank >= len(paths)
    path = paths[0 if is_new_rank else manager.rank]
    try:
        # check_pickles has refused files that would run code.
        extra = torch.load(path, map_location="cpu", weights_only=False)
        schedule, random_states = extra["lr_scheduler"], extra["rng"]
    except Exception as error:  # A damaged file can raise any exception.
        raise ConfigError(
            f"{str(path)!r} is damaged and can't be read ({error!r:.200}): restore it, or resume from another "
            "checkpoint"
        ) from error
    if is_new_rank:
        _seed(_seed_of_new_rank(random_states["cpu"], manager.rank))
    else:
        manager.load_rng_state(random_states)
    if schedule is not None and manager.lr_scheduler is not None:
        manager.lr_scheduler.load_state_dict(schedule)


def _seed_of_new_rank(first_ranks_state: torch.Tensor, rank: int) -> int:
    """Derive the seed of a rank that saved no random state, so that resuming twice gives the same numbers."""
    content = first_ranks_state.numpy().tobytes() + rank.to_bytes(4, "big")
    return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "big")


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
