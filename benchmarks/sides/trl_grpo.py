r"""Measure GRPO steps of TRL's GRPOTrainer with colocated vLLM on one or more GPUs of one machine.

python benchmarks/sides/trl_grpo.py --model DIR --prompts FILE.json --batch-size 32 --group-size 8 --max-tokens 64 \
    --steps 13 --warmup 3 --micro-batch 256 --out FILE.json

A step is one generation, a trivial reward, and one update. The file of prompts is a list of lists of token ids. TRL
takes text, so the prompts are decoded, and it is checked that TRL's tokenization gives the same ids.

With `--gpus N`, the script restarts itself under torch's launcher with one rank per GPU. The ranks train data-parallel
by DDP. Each of them has its own vLLM engine and an equal share of the step's samples. Times are those of rank 0, and
tokens are counted over all ranks. On a machine without a GPU, N ranks run on the CPU.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from common import (
    add_memory_options,
    argument_parser,
    read_prompts,
    sampler_without_flashinfer,
    slice_of,
    synchronize,
    write_result,
)

from rgtrain.machine.devices import num_gpus, visible_gpus


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    add_memory_options(parser)
    parser.add_argument(
        "--micro-batch", type=int, default=256, help="sequences per pass and GPU; must divide a GPU's samples per step"
    )
    parser.add_argument("--gpus", type=int, default=1, help="GPUs to use")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="data type of the weights")
    parser.add_argument("--attention", default="sdpa", help="transformers' attn_implementation")
    parser.add_argument("--liger", action="store_true", help="use Liger's kernels")
    parser.add_argument("--sleep", action="store_true", help="let vLLM free its memory during updates")
    parser.add_argument("--no-importance-sampling", action="store_true", help="skip TRL's pass for log-probabilities")
    arguments = parser.parse_args()
    num_samples = arguments.batch_size * arguments.group_size
    if arguments.gpus < 1 or num_samples % arguments.gpus:
        parser.error(f"--gpus {arguments.gpus} does not divide a step's {num_samples} samples; choose a divisor")
    per_gpu = num_samples // arguments.gpus
    if arguments.micro_batch < 1 or per_gpu % arguments.micro_batch:
        parser.error(
            f"--micro-batch {arguments.micro_batch} does not divide a step's {per_gpu} samples per GPU; "
            f"choose a divisor of {per_gpu}"
        )
    # Each rank parses the options again. The first process has checked the machine by then.
    if not is_rank() and 0 < num_gpus() < arguments.gpus:
        parser.error(f"--gpus {arguments.gpus}: this machine has {num_gpus()}; choose at most {num_gpus()}")
    return arguments


def is_rank() -> bool:
    """Return whether torch's launcher started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launcher_words(number: int) -> list[str]:
    """Return the command that starts this script with the same options once per GPU."""
    # By default, the launcher gives the ranks the machine's host name, which may not resolve in a container.
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    return [*words, "--nproc-per-node", str(number), *sys.argv]


def main() -> None:
    arguments = parse_arguments()
    if arguments.gpus > 1 and not is_rank():
        os.execv(sys.executable, launcher_words(arguments.gpus))
    if arguments.gpus == 1 and num_gpus() > 1:
        # Transformers splits batches over all GPUs that a single process sees, and TRL refuses that.
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus()[0]
    sampler_without_flashinfer()
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOTrainer

    prompts = read_prompts(arguments.prompts)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=False)
    texts = texts_of(prompts, tokenizer)
    rows = [text for step in range(arguments.steps) for text in slice_of(texts, step, arguments.batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=arguments.model,
            reward_funcs=length_reward,
            args=config_of(arguments, folder, max_model_length=max(map(len, prompts)) + arguments.max_tokens),
            train_dataset=Dataset.from_dict({"prompt": rows}),
            processing_class=tokenizer,
        )
        watch = StepTimer(trainer)
        trainer.train()
        if trainer.is_world_process_zero():
            write_result(arguments, watch.records)


def texts_of(prompts: Sequence[list[int]], tokenizer: Any) -> list[str]:
    """Return the prompts as text. Raises ValueError if TRL's tokenization gives other ids."""
    texts = [tokenizer.decode(ids, skip_special_tokens=False) for ids in prompts]
    tokenized = tokenizer(text=texts)["input_ids"]
    changed = [i for i, ids in enumerate(prompts) if tokenized[i] != ids]
    if changed:
        raise ValueError(f"{len(changed)} of {len(prompts)} prompts get other ids as text, such as number {changed[0]}")
    return texts


def config_of(arguments: argparse.Namespace, folder: str, *, max_model_length: int) -> Any:
    """Return TRL's settings: one update per step on all samples, without logs and checkpoints."""
    import torch
    from trl import GRPOConfig

    num_samples = arguments.batch_size * arguments.group_size
    return GRPOConfig(
        output_dir=folder,
        max_steps=arguments.steps,
        # By TRL's default, one generation serves all micro-batches that an update accumulates.
        per_device_train_batch_size=arguments.micro_batch,
        gradient_accumulation_steps=num_samples // (arguments.micro_batch * arguments.gpus),
        num_generations=arguments.group_size,
        max_completion_length=arguments.max_tokens,
        shuffle_dataset=False,
        temperature=1.0,
        beta=0.0,
        learning_rate=1e-9,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=True,
        # Without a GPU, bf16 is refused unless the CPU is asked for.
        use_cpu=not torch.cuda.is_available(),
        model_init_kwargs={"dtype": arguments.dtype, "attn_implementation": arguments.attention},
        gradient_checkpointing=arguments.checkpointing,
        use_liger_kernel=arguments.liger,
        use_vllm=True,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=arguments.vllm_memory,
        vllm_max_model_length=max_model_length,
        vllm_enable_sleep_mode=arguments.sleep,
        vllm_importance_sampling_correction=not arguments.no_importance_sampling,
        generation_kwargs={"ignore_eos": True} if arguments.ignore_eos else None,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )


def length_reward(completions: Sequence[str], **_: Any) -> list[float]:
    """Return a cheap reward that varies within a group, so that advantages are not all zero."""
    return [len(completion) % 97 / 97 for completion in completions]


class StepTimer:
    """Times a trainer's steps, generations and weight syncs on this rank, and counts the tokens of all ranks."""

    def __init__(self, trainer: Any) -> None:
        from transformers import TrainerCallback

        self.records: list[dict[str, float]] = []
        self._accelerator = trainer.accelerator
        self._current: dict[str, float] = {}
        # Prompt tokens, new tokens and responses of the step on this rank.
        self._counts = [0, 0, 0]
        self._started = 0.0
        watch = self

        class Steps(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                synchronize()
                watch._started = time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                watch._end_step()

        trainer.add_callback(Steps())
        vllm = trainer.vllm_generation
        vllm.generate = self._watched(vllm.generate, "generate_s", self._count)
        vllm.sync_weights = self._watched(vllm.sync_weights, "sync_weights_s")

    def _watched(self, work: Callable[..., Any], name: str, inspect: Callable[[Any], None] | None = None) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            synchronize()
            started = time.perf_counter()
            result = work(*args, **kwargs)
            synchronize()
            self._current[name] = self._current.get(name, 0.0) + time.perf_counter() - started
            if inspect:
                inspect(result)
            return result

        return run

    def _count(self, generated: Any) -> None:
        prompt_ids, completion_ids, *_ = generated
        # Each prompt counts once per sample.
        counts = sum(map(len, prompt_ids)), sum(map(len, completion_ids)), len(completion_ids)
        self._counts = [old + new for old, new in zip(self._counts, counts, strict=True)]

    def _end_step(self) -> None:
        # A step starts at the end of the previous one, so that loading its prompts is included.
        synchronize()
        now = time.perf_counter()
        num_prompt_tokens, num_new_tokens, num_responses = self._sum_over_ranks(self._counts)
        record = {
            "step_s": now - self._started,
            **self._current,
            "num_new_tokens": num_new_tokens,
            "num_prompt_tokens_with_repeats": num_prompt_tokens,
            "mean_response_length": num_new_tokens / num_responses,
            "new_tokens_per_s": num_new_tokens / self._current["generate_s"],
        }
        record["other_s"] = record["step_s"] - record.get("generate_s", 0.0) - record.get("sync_weights_s", 0.0)
        self.records.append(record)
        if self._accelerator.is_main_process:
            print(f"step {len(self.records) - 1}: {record}", flush=True)
        self._started, self._current, self._counts = now, {}, [0, 0, 0]

    def _sum_over_ranks(self, counts: Sequence[int]) -> list[int]:
        import torch

        return self._accelerator.reduce(torch.tensor(counts, device=self._accelerator.device), "sum").tolist()


if __name__ == "__main__":
    main()
