"""Measure the seconds per step of the trainer's process itself: drawing, advantages, metrics, dispatch and logging.

python benchmarks/trainer_overhead.py --model models/SmolLM2-135M-Instruct --samples 512 4096

The training loop is the real one, with groups of eight samples of 1,024 tokens, on a CPU. Its workers answer at once
with random log-probabilities, and their own time is left out. While real workers generate, samples are stored and the
next problems are made, so that time is shown but does not count.
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from record import RESULTS, write_record
from tensordict import TensorDict
from verl.single_controller.base import WorkerGroup
from verl.single_controller.base.decorator import collect_lazy_compute_data_proto, dispatch_lazy_compute_data_proto
from verl.utils import tensordict_utils as tu

from rgtrain.config.composition import checked_config, register_plugins
from rgtrain.config.run_config import plain_config
from rgtrain.curriculum.curriculum import GroupResult
from rgtrain.machine.environment import fix_hash_seed
from rgtrain.paths import CONFIGS
from rgtrain.problems.group_rewards import CompletionReward
from rgtrain.problems.scoring import FAILURES
from rgtrain.tables import text_table
from rgtrain.training.rollout.groups import Group
from rgtrain.upstream.replacements import apply

GROUP_SIZE = 8
# The parts that are done while the workers still generate.
STORING, AHEAD = "store samples (while generating)", "make problems (while generating)"
# The time of the stand-ins for workers, which is left out.
WORKERS = "workers"


class Stopwatch:
    """Seconds by part. The time of a part within another one does not count for the outer one."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]
        self._began = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part of the present step."""
        began = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self._seconds[name] += spent - self._inner.pop()
            self._inner[-1] += spent

    def begin_step(self) -> None:
        """End the present step, if there is one. The time outside all parts is the part `other`."""
        now = time.perf_counter()
        if self._seconds:
            self.steps.append({**self._seconds, "other": now - self._began - sum(self._seconds.values())})
            self._seconds.clear()
        self._began = time.perf_counter()


class InstantWorkers(WorkerGroup):
    """A worker group that gets its data through Ray's object store as real workers do, and answers at once."""

    def __init__(self, num_workers: int, stopwatch: Stopwatch):
        super().__init__(resource_pool=None)
        self._workers = [None] * num_workers
        self._stopwatch = stopwatch
        for mesh in ("actor", "ref", "train"):
            self._dispatch_info[mesh] = list(range(num_workers))
            self._collect_info[mesh] = [True] * num_workers

    def trained_model(self) -> list[tuple[str, dict[str, Any]]]:
        return [("shared prompts", {})]

    def compute_log_prob(self, data: TensorDict) -> TensorDict:
        return self._call("actor", data, "log_probs", "entropy")

    def compute_ref_log_prob(self, data: TensorDict) -> TensorDict:
        return self._call("ref", data, "log_probs")

    def infer_batch(self, data: TensorDict) -> TensorDict:
        return self._call("train", data, "values")

    def update_actor(self, data: TensorDict) -> TensorDict:
        return self._call("actor", data)

    def train_mini_batch(self, data: TensorDict) -> TensorDict:
        return self._call("train", data)

    def update_weights(self, *args: Any, **kwargs: Any) -> list[Any]:
        return []

    def _call(self, mesh: str, data: TensorDict, *names: str) -> TensorDict:
        [references], _ = dispatch_lazy_compute_data_proto(mesh, self, data)
        with self._stopwatch.part(WORKERS):
            outputs = [ray.put(self._output(ray.get(reference), names)) for reference in references]
        return collect_lazy_compute_data_proto(mesh, self, ray.get(outputs))

    def _output(self, data: TensorDict, names: tuple[str, ...]) -> TensorDict:
        ids = data["input_ids"]
        columns = {
            name: torch.nested.nested_tensor_from_jagged(-torch.rand(len(ids.values())), offsets=ids.offsets())
            for name in names
        }
        metrics = {name: [0.1] for name in ("loss", "mfu", "grad_norm", "rollout_gap/mean", "rollout_gap/max")}
        return tu.get_tensordict(columns, {"metrics": metrics})


class InstantRollout:
    """Stores random completions of every prompt as a rollout does, with rewards that differ within a group."""

    # As with a single engine.
    engine_idle_share = None

    def __init__(self, stopwatch: Stopwatch, *, num_tokens: int, vocabulary_size: int):
        self._stopwatch = stopwatch
        self._shape = GROUP_SIZE, num_tokens
        self._vocabulary_size = vocabulary_size
        self._random = np.random.default_rng(0)
        self._results: list[GroupResult] = []

    def raise_failures(self) -> None:
        """Do nothing."""

    def take_training_results(self) -> list[GroupResult]:
        results, self._results = self._results, []
        return results

    def generate_sequences(self, prompts: TensorDict) -> None:
        from rgtrain.training.rollout.group_rollout import TRAIN_PARTITION, _as_list, _group_result, _samples
        from rgtrain.training.rollout.sample_store import STORE

        names = ("uid", "data_source", "extra_info", "reward_model")
        columns = {name: _as_list(prompts[name]) for name in names}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        for row in rows:
            with self._stopwatch.part(WORKERS):
                group, rewards = self._completed(row["uid"])
            with self._stopwatch.part(STORING):
                self._results.append(_group_result(row, rewards))
                samples, tags = _samples(row, group, rewards, step=1)
                STORE.put(TRAIN_PARTITION, samples, {**tags, row["uid"]: {"status": "finished"}})

    def _completed(self, uid: str) -> tuple[Group, list[CompletionReward]]:
        """Return random completions of a prompt with their rewards."""
        group = Group(
            uid=uid,
            responses=self._random.integers(self._vocabulary_size, size=self._shape, dtype=np.int32).tolist(),
            log_probs=list(-self._random.random(self._shape, dtype=np.float32)),
            version=0,
        )
        details = {"answered": 1.0, "response_length": float(self._shape[1]), "score_seconds": 0.001}
        details |= {f"num_{failure.replace(' ', '_')}": 0.0 for failure in FAILURES}
        scores = self._random.integers(2, size=GROUP_SIZE).astype(float).tolist()
        return group, [
            CompletionReward(score, {"acc": score, "solved": score, "reward_accuracy": score, **details}, None)
            for score in scores
        ]


# The trainer's methods, and objects with a method, by the part of a step that they are.
METHODS = {
    "_next_train_batch": "draw prompts",
    "_balance_batch": "balance",
    "_compute_old_log_prob": "old log-probabilities",
    "_compute_ref_log_prob": "reference log-probabilities",
    "_compute_values": "values",
    "_compute_advantage": "advantages",
    "_update_critic": "dispatch of the update",
    "_update_actor": "dispatch of the update",
    "_group_rewards": "kept rollouts",
    "_scored_samples": "kept rollouts",
    "_compute_metrics": "metrics",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model folder, whose tokenizer is used")
    parser.add_argument("--samples", type=int, nargs="+", default=[512, 4096], help="samples per step")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens per response (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="training workers (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="measured steps (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "trainer_overhead", help="the folder for the results")
    parser.add_argument("overrides", nargs="*", help="settings, such as algorithm=ppo")
    arguments = parser.parse_args()
    apply("trainer")
    apply("fast_trainer")
    # Ray gives the trainer's process one thread, except in a run on a CPU.
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    medians = {num_samples: record(arguments, num_samples) for num_samples in arguments.samples}
    names = list(dict.fromkeys(name for parts in medians.values() for name in parts))
    rows = [[name, *(f"{parts.get(name, 0):.3f}" for parts in medians.values())] for name in names]
    print(text_table(["seconds per step", *(f"{num_samples} samples" for num_samples in medians)], rows))


def record(arguments: argparse.Namespace, num_samples: int) -> dict[str, float]:
    """Measure one size, write its record, and return the median seconds of each part and of all together."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TENSORBOARD_DIR"] = f"{folder}/tensorboard"
        steps = run(arguments, num_samples, Path(folder))[arguments.warmup :]
    for parts in steps:
        parts["the trainer's own time"] = sum(
            value for name, value in parts.items() if name not in (STORING, AHEAD, WORKERS)
        )
    names = [name for name in steps[0] if name not in (STORING, AHEAD, WORKERS)] + [STORING, AHEAD]
    medians = {name: median(parts.get(name, 0.0) for parts in steps) for name in names}
    write_record(
        arguments.out / f"{num_samples}_samples.json",
        settings={"samples": num_samples, "tokens": arguments.tokens, "workers": arguments.workers},
        raw={"seconds": steps},
        derived={"seconds": medians},
    )
    return medians


def run(arguments: argparse.Namespace, num_samples: int, folder: Path) -> list[dict[str, float]]:
    """Run the training loop in `folder`, and return the seconds of each part of each step."""
    from rgtrain.training.rollout.sample_store import STORE, StoredWorkers
    from rgtrain.training.trainer import FastTrainer

    stopwatch = Stopwatch()

    class MeasuredTrainer(FastTrainer):
        def on_step_begin(self) -> None:
            stopwatch.begin_step()
            super().on_step_begin()

        def on_step_end(self) -> None:
            """Leave out the weight sync, which is the workers' time."""

        def on_sample_end(self) -> None:
            """Leave out the engines' sleep, which is the workers' time."""

    trainer = MeasuredTrainer(composed(arguments, num_prompts=num_samples // GROUP_SIZE, folder=folder))
    trainer.global_steps = trainer._resumed_step = 0
    trainer._init_tokenizer()
    trainer._init_dataloader()
    trainer._init_dump_executor()
    trainer.ref_in_actor = False
    trainer.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
    trainer.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: arguments.workers)
    trainer.actor_rollout_wg = InstantWorkers(arguments.workers, stopwatch)
    workers = StoredWorkers(trainer.actor_rollout_wg, STORE, trainer._division)
    trainer.actor_rollout_wg = trainer.ref_policy_wg = trainer.critic_wg = workers
    rollout = InstantRollout(stopwatch, num_tokens=arguments.tokens, vocabulary_size=trainer.tokenizer.vocab_size)
    for method, name in METHODS.items():
        setattr(trainer, method, stopwatch.part(name)(getattr(trainer, method)))
    sample = stopwatch.part("sample")(trainer.replay_buffer.sample)

    def sample_after_generation(*args: Any, **kwargs: Any) -> Any:
        with stopwatch.part(AHEAD):
            trainer.train_dataset.wait_for_rows()
        return sample(*args, **kwargs)

    trainer.replay_buffer.sample = sample_after_generation
    curriculum = trainer.train_dataset.curriculum
    setattr(curriculum, "observe", stopwatch.part("curriculum")(curriculum.observe))  # noqa: B010
    trainer.fit(rollout)
    stopwatch.begin_step()
    return stopwatch.steps


def composed(arguments: argparse.Namespace, *, num_prompts: int, folder: Path) -> DictConfig:
    """Return the configuration of a run in `folder` with prompts of about 270 tokens."""
    num_steps = arguments.warmup + arguments.steps
    words = [
        "hardware=cpu",
        f"run_dir={folder}",
        f"actor_rollout_ref.model.path={arguments.model}",
        f"data.train_batch_size={num_prompts}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={num_prompts}",
        f"actor_rollout_ref.rollout.n={GROUP_SIZE}",
        f"data.max_response_length={arguments.tokens}",
        "data.prompt.num_examples=3",
        f"data.train_size={num_prompts * num_steps}",
        f"trainer.total_training_steps={num_steps}",
        f"trainer.n_gpus_per_node={arguments.workers}",
        "trainer.save_freq=-1",
        "trainer.experiment_name=overhead",
    ]
    register_plugins()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = checked_config(compose("quickstart", overrides=[*words, *arguments.overrides]))
    return OmegaConf.create(plain_config(config))


if __name__ == "__main__":
    fix_hash_seed()
    main()
