"""A program that loads a model folder by vLLM's loader and prints the verdict.

The loader raises an error if the files lack a tensor of the model, or have one that vLLM does not know.
"""

import json
import sys
import tempfile
from pathlib import Path


def main(folder: Path) -> None:
    """Print whether vLLM loads the model in `folder`, or why it can't try. Any other error is raised."""
    import torch
    import vllm
    from vllm.config import set_current_vllm_config
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model
    from vllm.model_executor.models import ModelRegistry

    [architecture] = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    if architecture not in ModelRegistry.get_supported_archs():
        print(f"vLLM {vllm.__version__}: not tried, because it does not know {architecture}")
        return
    arguments = EngineArgs(model=str(folder), enforce_eager=True, skip_tokenizer_init=True, max_model_len=64)
    config = arguments.create_engine_config()
    with tempfile.TemporaryDirectory() as home, set_current_vllm_config(config):
        init_distributed_environment(
            world_size=1, rank=0, local_rank=0, distributed_init_method=f"file://{home}/rendezvous", backend="gloo"
        )
        ensure_model_parallel_initialized(1, 1)
        try:
            model = get_model(vllm_config=config)
            print(f"vLLM {vllm.__version__}: loaded as {type(model).__name__}")
        except torch.OutOfMemoryError:
            print(f"vLLM {vllm.__version__}: not loaded, because the device's memory is too small")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
