"""Export a checkpoint in the obvious way: load all shards, concatenate, save.

python benchmarks/sides/load_everything.py CHECKPOINT_DIR OUTPUT_DIR
"""

import sys
from pathlib import Path

import torch
import torch.distributed.tensor  # noqa: F401 (torch.load needs its classes)
from safetensors.torch import save_file


def main() -> None:
    source, output = map(Path, sys.argv[1:])
    paths = sorted(source.glob("model_world_size_*.pt"), key=lambda path: int(path.stem.rpartition("_")[2]))
    shards = [torch.load(path, weights_only=False, map_location="cpu") for path in paths]
    # Popping a tensor's shards frees them once the tensor is concatenated.
    tensors = {}
    for name in list(shards[0]):
        parts = [shard.pop(name) for shard in shards]
        tensors[name] = torch.cat([part.to_local() for part in parts])
    if "lm_head.weight" in tensors and torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
        del tensors["lm_head.weight"]
    output.mkdir(parents=True)
    save_file(tensors, output / "model.safetensors")


if __name__ == "__main__":
    main()
