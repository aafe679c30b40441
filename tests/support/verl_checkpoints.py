"""Save one checkpoint of each kind with verl's own checkpoint manager, in two processes joined by gloo."""

from collections.abc import Callable
from pathlib import Path

import peft
import torch
import torch.distributed as dist
import torch.multiprocessing
from support.checkpoint_files import tiny_model, tiny_tokenizer
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedModel

WORLD_SIZE = 2


def lora_model(auto_class: type = AutoModelForCausalLM) -> peft.PeftModel:
    """Return a tiny model with a random adapter of rank 3 on all linear layers, wrapped as in verl."""
    model = tiny_model(auto_class=auto_class)
    torch.manual_seed(1)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=3, lora_alpha=7, target_modules="all-linear", init_lora_weights=False
    )
    return peft.get_peft_model(model, config)


def critic() -> PreTrainedModel:
    return tiny_model(auto_class=AutoModelForTokenClassification, num_labels=1)


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "fsdp2": tiny_model,
    "fsdp1": tiny_model,
    "fsdp1_without_mesh": tiny_model,
    "lora": lora_model,
    "lora_only": lora_model,
    "critic": critic,
}


def write_all(folder: Path) -> None:
    """Write a checkpoint of each of MODELS to folder/NAME/global_step_1/actor, or to critic/ for the critic."""
    folder.mkdir(exist_ok=True)
    # verl reads config and tokenizer from this folder.
    tiny_model().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    context = torch.multiprocessing.get_context("forkserver")
    # The fork server imports these once for all ranks.
    context.set_forkserver_preload(["verl.utils.checkpoint.fsdp_checkpoint_manager"])
    torch.multiprocessing.start_processes(_rank, (folder,), nprocs=WORLD_SIZE, start_method="forkserver")


def _rank(rank: int, folder: Path) -> None:
    from transformers import AutoTokenizer
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    store = f"file://{folder / 'store'}"
    dist.init_process_group("cpu:gloo", init_method=store, rank=rank, world_size=WORLD_SIZE)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    for name, make in MODELS.items():
        model = _sharded(make(), name)
        optimizer = torch.optim.AdamW(model.parameters())
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
        contents = {"save_contents": ["model"], "load_contents": ["model"], "save_lora_only": name == "lora_only"}
        manager = FSDPCheckpointManager(model, optimizer, scheduler, tokenizer, checkpoint_config=contents)
        role = "critic" if name == "critic" else "actor"
        manager.save_checkpoint(str(folder / name / "global_step_1" / role), global_step=1)
    dist.destroy_process_group()


def _sharded(model: torch.nn.Module, name: str) -> torch.nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from verl.utils.fsdp_utils import apply_fsdp2

    mesh = init_device_mesh("cpu", (WORLD_SIZE,), mesh_dim_names=("fsdp",))
    if name.startswith("fsdp1"):
        options = {} if name == "fsdp1_without_mesh" else {"device_mesh": mesh}
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **options)
    apply_fsdp2(model, {"mesh": mesh}, {})
    return model
