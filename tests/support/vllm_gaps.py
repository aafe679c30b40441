"""Measure how far vLLM on a CPU is from tiny models after a weight sync: `python -m support.vllm_gaps FAMILY...`."""

import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

os.environ |= {
    "VERL_USE_EXTERNAL_MODULES": "rgtrain.upstream.on_cpu",
    "VERL_PLATFORM": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
    # vLLM joins the process group below.
    **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"},
}

import torch
from support.moe_models import tiny_model
from verl.workers.config import HFModelConfig, RolloutConfig

from rgtrain.training.rollout.groups import Group, PartKey, PartRequest
from rgtrain.training.rollout.vllm_rollout import VllmRollout
from rgtrain.training.update.weight_sync import ActorWeights

PROMPTS = {"a": list(range(10, 30)), "b": list(range(40, 65))}


def gap(family: str, folder: Path) -> float:
    """Return the largest difference between log-probabilities of vLLM's tokens, after weights were loaded twice."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    model = tiny_model(family, tie_word_embeddings=family == "llama")
    model.save_pretrained(folder)
    vllm = {"block_size": 32, "skip_tokenizer_init": True, "max_model_len": 128}
    config = RolloutConfig(
        name="vllm",
        dtype="float32",
        tensor_model_parallel_size=1,
        enforce_eager=True,
        enable_sleep_mode=False,
        free_cache_engine=False,
        response_length=12,
        max_num_seqs=16,
        max_num_batched_tokens=256,
        engine_kwargs={"vllm": vllm},
    )
    rollout = VllmRollout(config, HFModelConfig(path=str(folder), load_tokenizer=False), None)
    groups: list[Group] = []
    parts = [PartRequest(PartKey(uid, 0), 2, prompt_ids) for uid, prompt_ids in PROMPTS.items()]
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}

    async def run() -> None:
        for step in range(2):
            with torch.no_grad():
                # The second sync must replace the first one.
                for parameter in model.parameters():
                    parameter.mul_(1.0 + 0.3 * step)
            await rollout.update_weights(ActorWeights(model, device="cpu"), global_steps=step)
        await rollout.generate(parts, sampling, number=0, seed=1, finished=lambda whole, _: groups.extend(whole))

    asyncio.run(run())
    return max(_difference(model, group) for group in groups)


def _difference(model: torch.nn.Module, group: Group) -> float:
    prompt, differences = PROMPTS[group.uid], []
    for tokens, log_probs in zip(group.responses, group.log_probs, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + list(tokens)])).logits[0, len(prompt) - 1 : -1]
        plain = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        differences.append((plain - torch.from_numpy(log_probs)).abs().max().item())
    return max(differences)


def main(families: list[str]) -> None:
    """Print a JSON line with the gap of each family. A process can start vLLM only once, so each family is a fork."""
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            child = multiprocessing.get_context("fork").Process(target=_print_gap, args=(family, Path(folder)))
            child.start()
            child.join()


def _print_gap(family: str, folder: Path) -> None:
    print(json.dumps({family: gap(family, folder)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
