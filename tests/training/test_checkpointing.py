"""A run saves the best step, and resumes with the state of its checkpoint."""

import errno
import json
import os
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transfer_queue
from omegaconf import OmegaConf
from support.experiments import small_experiment, small_run
from torchdata.stateful_dataloader import StatefulDataLoader
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import DAPO_FILTERED_REWARD_COUNTS_KEY
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from rgtrain.checkpoints.checkpoint_store import Best
from rgtrain.checkpoints.metrics_file import METRICS, STEP_METRICS, read_metrics
from rgtrain.checkpoints.trained_problems import TRAINED_PROBLEMS, read_trained_problems
from rgtrain.curriculum.curriculum import Curriculum, GroupResult
from rgtrain.curriculum.curriculum_config import build_curriculum
from rgtrain.errors import ConfigError
from rgtrain.problems import parse_mixture
from rgtrain.training.checkpointing import (
    CURRICULUM,
    KL_COEFFICIENT,
    CheckpointingTrainer,
    load_curriculum,
    resumed_folder,
)
from rgtrain.training.launch import _is_complete
from rgtrain.training.lifecycle.stopping import STOP, TrainingStopped
from rgtrain.training.rollout.sample_store import SampleBlock, SampleStore
from rgtrain.training.trainer import FastTrainer


class SavingTrainer(FastTrainer):
    """A trainer without workers, whose checkpoints are empty files."""

    def __init__(self, folder: Path):
        trainer = {"default_local_dir": str(folder), "max_actor_ckpt_to_keep": 1, "save_failure": "stop"}
        self.config = OmegaConf.create({"trainer": {**trainer, "resume_mode": "auto", "save_freq": 100}})
        self.agent_loop_manager = SimpleNamespace(raise_failures=lambda: None)
        self._resumed_step = 0

    def _save_checkpoint(self) -> None:
        with self._store.saving(self.global_steps) as staging:
            (staging / f"global_step_{self.global_steps}").mkdir()
            (staging / f"global_step_{self.global_steps}" / "data.pt").write_text("")
        self._saved_step = self.global_steps

    def validated(self, step: int, score: float, metric: str = "val-core/*/acc/mean@1") -> None:
        self.global_steps = step
        self._keep_if_best(Best(step, score, metric))


def test_the_best_step_is_kept_and_the_earlier_step_wins_a_tie(tmp_path):
    trainer = SavingTrainer(tmp_path)
    for step, score in ((2, 0.25), (4, 0.5), (6, 0.5), (8, 0.25)):
        trainer.validated(step, score)
    assert trainer._store.best() == Best(4, 0.5, "val-core/*/acc/mean@1")
    assert sorted(trainer._store.steps()) == [4]


def test_the_model_before_training_can_be_the_best_without_a_checkpoint(tmp_path):
    trainer = SavingTrainer(tmp_path / "checkpoints")
    trainer.validated(0, 0.5)
    trainer.validated(2, 0.25)
    assert trainer._store.best().step == 0
    assert trainer._store.steps() == {}
    trainer.validated(4, 0.75)
    assert trainer._store.best().step == 4


def test_scores_by_another_metric_are_not_compared(tmp_path):
    trainer = SavingTrainer(tmp_path)
    trainer.validated(2, 0.9, "val-core/*/acc/mean@1")
    trainer.validated(4, 0.5, "val-core/*/acc/mean@8")
    assert trainer._store.best() == Best(4, 0.5, "val-core/*/acc/mean@8")


@pytest.mark.parametrize("record", ['{"step":', '{"step": 2, "score": 0.75}'])
def test_a_lost_or_incomplete_record_of_the_best_is_restored_from_the_metrics(tmp_path, record):
    trainer = SavingTrainer(tmp_path / "checkpoints")
    trainer.config.trainer.max_actor_ckpt_to_keep = 3
    for step in (2, 4, 6):
        trainer.global_steps = step
        trainer._save_checkpoint()
    scores = {0: 0.1, 1: 0.9, 2: 0.25, 4: 0.5, 6: 0.25}
    lines = [json.dumps({"step": step, "val-core/gcd/acc/mean@1": score}) + "\n" for step, score in scores.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    (tmp_path / "checkpoints" / "best_score.json").write_text(record)
    trainer._restore_best(tmp_path / "metrics.jsonl")
    assert trainer._store.best() == Best(4, 0.5, "val-core/*/acc/mean@1")


def test_a_request_to_stop_during_validation_saves_the_step_and_ends_the_run(tmp_path, monkeypatch):
    trainer = SavingTrainer(tmp_path)
    monkeypatch.setattr(STOP, "is_made", True)
    trainer.global_steps = 0
    trainer.on_validate_end()
    assert trainer._store.steps() == {}
    trainer.global_steps = 7
    trainer.on_validate_end()
    assert sorted(trainer._store.steps()) == [7]
    trainer.global_steps = 8
    with pytest.raises(TrainingStopped, match="stopped after step 7"):
        trainer.on_step_begin()


class RunsCode:
    def __init__(self, proof: Path):
        self._proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self._proof}",)


@pytest.mark.parametrize("mode", ["auto", "resume_path"])
def test_a_checkpoint_that_would_run_code_is_refused_before_training_starts(tmp_path, mode):
    trainer = SavingTrainer(tmp_path / "checkpoints")
    with trainer._store.saving(3) as staging:
        (staging / "global_step_3").mkdir()
        torch.save({"state": RunsCode(tmp_path / "proof")}, staging / "global_step_3" / "data.pt")
    own = {"resume_mode": mode, "total_training_steps": 5}
    own["resume_from_path"] = str(tmp_path / "checkpoints" / "global_step_3")
    trainer.config.merge_with({"run_dir": str(tmp_path), "trainer": own})
    config = small_run(tmp_path, *(f"trainer.{name}={value}" for name, value in own.items()))
    with pytest.raises(ConfigError, match=r"data.pt' could run its author's code .*system"):
        _is_complete(config, num_steps=5)
    with pytest.raises(ConfigError, match=r"data.pt' could run its author's code .*system"):
        trainer._load_checkpoint()
    assert not (tmp_path / "proof").exists()


def test_a_run_is_complete_if_its_last_step_is_saved_and_logged(tmp_path):
    trainer = SavingTrainer(tmp_path / "checkpoints")
    config = small_run(tmp_path)
    with trainer._store.saving(3) as staging:
        (staging / "global_step_3").mkdir()
        torch.save({}, staging / "global_step_3" / "data.pt")
        (staging / "global_step_3" / STEP_METRICS).write_text('{"step": 3}\n')
    assert not _is_complete(config, num_steps=3)
    (tmp_path / METRICS).write_text('{"step": 3}\n')
    assert _is_complete(config, num_steps=3)


def test_the_checkpoint_to_resume_from_is_the_one_that_verl_chooses(tmp_path):
    trainer = SavingTrainer(tmp_path).config.trainer
    assert resumed_folder(trainer) is None
    (tmp_path / "global_step_3").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    assert resumed_folder(trainer) == tmp_path / "global_step_3"
    trainer.update({"resume_mode": "resume_path", "resume_from_path": f"{tmp_path}/global_step_3/"})
    assert resumed_folder(trainer) == tmp_path / "global_step_3"
    # verl parses everything after "global_step_" as a number.
    assert trainer.resume_from_path == f"{tmp_path}/global_step_3"
    trainer.resume_mode = "disable"
    assert resumed_folder(trainer) is None


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"{}", b"null", b"[]", b'{"policies": {"gcd": 3}}', b"\xff", b"\0"]
)
def test_a_damaged_curriculum_state_is_reported_with_its_file(tmp_path, content):
    specs = parse_mixture({"gcd": {"weight": 1, "config": None}})
    curriculum = build_curriculum(
        specs, seed=1, curriculum={"policy": {}, "datasets": {}}, mixture_policy={"name": "fixed"}
    )
    if content is not None:
        (tmp_path / CURRICULUM).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{CURRICULUM}' does not hold the state"):
        load_curriculum(curriculum, tmp_path)


class WorkerFiles:
    """The workers' part of a checkpoint, which is one file with the step. Resuming needs it."""

    def __init__(self, *, failure: Exception | None = None):
        self.failure = failure
        self.calls: list[dict] = []

    def save_checkpoint(self, folder: str, remote: str | None, step: int, max_ckpt_to_keep: int | None) -> None:
        self.calls.append({"folder": Path(folder), "step": step, "max_ckpt_to_keep": max_ckpt_to_keep})
        Path(folder).mkdir(parents=True)
        torch.save({"step": step}, Path(folder, "model_world_size_1_rank_0.pt"))
        if self.failure:
            raise self.failure

    def load_checkpoint(self, local_path: str, del_local_after_load: bool) -> None:
        self.calls.append({"folder": Path(local_path), **torch.load(Path(local_path, "model_world_size_1_rank_0.pt"))})


class TrainerOfSteps(CheckpointingTrainer, PPOTrainerSync):
    """A trainer with trivial steps, but with verl's saving and loading, a curriculum and a data loader."""

    def __init__(self, run_dir: Path, *overrides: str):
        super().__init__(small_experiment(run_dir, *overrides))
        self.global_steps, self.steps_per_epoch = 0, 10
        self.actor_rollout_wg = WorkerFiles()
        self.train_dataloader = StatefulDataLoader(list(range(10)), batch_size=1)
        self.train_dataset = SimpleNamespace(curriculum=rising_curriculum())
        self._init_dump_executor()

    @cached_property
    def _batches(self) -> Iterator[torch.Tensor]:
        return iter(self.train_dataloader)

    def prepare_step(self) -> dict:
        self.drawn = next(self._batches).item()
        return {}

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int) -> KVBatchMeta:
        score = 1.0 if self.global_steps <= 2 else 0.0
        self.train_dataset.curriculum.observe([GroupResult("spell_backward", 0, [score] * 8, [score] * 8)])
        metrics["loss"] = 1 / self.global_steps
        metrics[DAPO_FILTERED_REWARD_COUNTS_KEY] = {0.0: 3}
        return KVBatchMeta(partition_id="train", keys=["a_0_0"], tags=[{}])

    def _compute_metrics(self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, **counts: int) -> None:
        metrics.update(counts, num_samples=len(batch.keys))

    def train(self, *steps: int) -> "TrainerOfSteps":
        """Run and save `steps`, and log all but the last one, as if the run had been killed after saving."""
        for step in steps:
            self.global_steps, self.timing_raw, metrics = step, {}, {}
            self.step(metrics, self.timing_raw)
            self._save_checkpoint()
            if step != steps[-1]:
                self.log(step)
        return self

    def log(self, step: int) -> None:
        with Path(self.config.run_dir, METRICS).open("a") as file:
            file.write(json.dumps({"step": step}) + "\n")

    def resume(self) -> "TrainerOfSteps":
        self._load_checkpoint()
        return self

    @property
    def checkpoints(self) -> Path:
        return Path(self.config.trainer.default_local_dir)


def rising_curriculum() -> Curriculum:
    """Return a curriculum that rises by one level at each solved step."""
    specs = parse_mixture({"spell_backward": {"weight": 1, "config": None}})
    levels = {"policy": {"name": "threshold", "window": 8}, "datasets": {"spell_backward": {}}}
    return build_curriculum(specs, seed=1, curriculum=levels, mixture_policy={"name": "fixed"})


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_resumed_run_has_the_step_of_its_checkpoint(tmp_path):
    TrainerOfSteps(tmp_path).train(1, 2)
    resumed = TrainerOfSteps(tmp_path).resume()
    assert resumed.global_steps == 2
    assert resumed.actor_rollout_wg.calls == [{"folder": tmp_path / "checkpoints/global_step_2/actor", "step": 2}]


def test_a_resumed_run_has_the_curriculum_of_its_checkpoint(tmp_path):
    first = TrainerOfSteps(tmp_path).train(1, 2)
    resumed = TrainerOfSteps(tmp_path).resume()
    state = resumed.train_dataset.curriculum.state_dict()
    assert state == first.train_dataset.curriculum.state_dict() != rising_curriculum().state_dict()


def test_a_resumed_run_draws_the_problems_after_those_of_its_checkpoint(tmp_path):
    first = TrainerOfSteps(tmp_path).train(1, 2)
    resumed = TrainerOfSteps(tmp_path).resume().train(3)
    assert (first.drawn, resumed.drawn) == (1, 2)


def test_a_resumed_run_has_the_training_problems_of_its_checkpoint(tmp_path):
    first = TrainerOfSteps(tmp_path).resume()
    first._trained.add(["0" * 16, "a" * 16])
    first.train(1)
    # Trained after the checkpoint, and lost with the run.
    first._trained.add(["b" * 16])
    resumed = TrainerOfSteps(tmp_path).resume()
    resumed._trained.add(["a" * 16, "c" * 16])
    resumed.train(2)
    trained = read_trained_problems(tmp_path / "checkpoints" / "global_step_2")
    assert len(trained) == 3
    assert all(digit * 16 in trained for digit in "0ac")


def test_a_run_continues_the_record_of_an_exported_model(tmp_path):
    (tmp_path / TRAINED_PROBLEMS).write_text(f"{'d' * 16}\n")
    trainer = TrainerOfSteps(tmp_path, f"actor_rollout_ref.model.path={tmp_path}").resume()
    assert "d" * 16 in trainer._trained


def test_a_run_that_resumes_without_a_record_of_training_problems_writes_none(tmp_path):
    TrainerOfSteps(tmp_path).train(1)
    TrainerOfSteps(tmp_path).resume().train(2)
    assert read_trained_problems(tmp_path / "checkpoints" / "global_step_2") is None


@pytest.mark.parametrize("content", ["abc\n", "0" * 16, f"{'0' * 16}\n\n", f"{'G' * 16}\n"])
def test_a_damaged_record_of_training_problems_is_refused(tmp_path, content):
    (tmp_path / TRAINED_PROBLEMS).write_text(content)
    with pytest.raises(ConfigError, match="is not a list of digests"):
        read_trained_problems(tmp_path)


ADAPTIVE_KL = ("algorithm.use_kl_in_reward=true", "algorithm.kl_ctrl.type=adaptive", "algorithm.kl_ctrl.horizon=10")


def test_a_resumed_run_has_the_adaptive_kl_coefficient_of_its_checkpoint(tmp_path):
    first = TrainerOfSteps(tmp_path, *ADAPTIVE_KL)
    first.kl_ctrl_in_reward.update(current_kl=1.0, n_steps=3)
    first.train(1)
    resumed = TrainerOfSteps(tmp_path, *ADAPTIVE_KL)
    assert resumed.kl_ctrl_in_reward.value != first.kl_ctrl_in_reward.value
    assert resumed.resume().kl_ctrl_in_reward.value == first.kl_ctrl_in_reward.value


@pytest.mark.parametrize("overrides", [(), ("algorithm.use_kl_in_reward=true", "algorithm.kl_ctrl.type=fixed")])
def test_a_run_without_adaptive_kl_saves_no_coefficient_and_needs_none(tmp_path, overrides):
    TrainerOfSteps(tmp_path, *overrides).train(1)
    assert KL_COEFFICIENT not in names_in(tmp_path / "checkpoints" / "global_step_1")
    assert TrainerOfSteps(tmp_path, *overrides).resume().global_steps == 1


def test_a_checkpoint_without_the_coefficient_that_the_run_needs_is_refused(tmp_path):
    TrainerOfSteps(tmp_path).train(1)
    with pytest.raises(ConfigError, match="does not hold the coefficient of the adaptive KL reward"):
        TrainerOfSteps(tmp_path, *ADAPTIVE_KL).resume()


def test_a_checkpoint_carries_the_metrics_of_its_step(tmp_path):
    TrainerOfSteps(tmp_path).train(1, 2)
    [record], num_damaged = read_metrics(tmp_path / "checkpoints" / "global_step_2" / STEP_METRICS)
    expected = {"step": 2, "loss": 0.5, "global_steps": 2, "epoch": 0, "num_samples": 1}
    assert (record | expected, num_damaged) == (record, 0)
    assert DAPO_FILTERED_REWARD_COUNTS_KEY not in record


def test_saving_does_not_change_the_metrics_that_verl_logs_later(tmp_path):
    trainer = TrainerOfSteps(tmp_path)
    trainer.global_steps, trainer.timing_raw, metrics = 1, {}, {}
    trainer.step(metrics, trainer.timing_raw)
    before = dict(metrics)
    trainer._save_checkpoint()
    assert metrics == before and DAPO_FILTERED_REWARD_COUNTS_KEY in metrics


def test_verl_saves_into_a_staging_folder_and_prunes_no_checkpoints(tmp_path):
    trainer = TrainerOfSteps(tmp_path, "trainer.max_actor_ckpt_to_keep=1").train(1)
    [call] = trainer.actor_rollout_wg.calls
    assert call["folder"].parent.parent.parent == trainer.checkpoints
    assert call["folder"].parent.parent.name.startswith(".saving")
    assert call["max_ckpt_to_keep"] is None


@pytest.mark.parametrize("failure", [None, OSError(errno.EIO, "Input/output error")])
def test_a_save_leaves_the_configuration_unchanged(tmp_path, failure):
    trainer = TrainerOfSteps(tmp_path, "trainer.save_failure=continue")
    before = OmegaConf.to_container(trainer.config)
    trainer.actor_rollout_wg.failure = failure
    assert OmegaConf.to_container(trainer.train(1).config) == before


def test_a_checkpoint_of_another_number_of_workers_is_announced(tmp_path, capsys):
    TrainerOfSteps(tmp_path).train(1)
    assert TrainerOfSteps(tmp_path, "trainer.n_gpus_per_node=2").resume().global_steps == 1
    assert "resuming a checkpoint of 1 worker on 2\n" in capsys.readouterr().out
    TrainerOfSteps(tmp_path).resume()
    assert "resuming a checkpoint" not in capsys.readouterr().out


@pytest.mark.parametrize(("earlier", "kept"), [((), "no step is saved yet"), ((1,), "the last saved step is 1")])
def test_a_failed_save_is_reported_with_the_last_saved_step_and_leaves_no_files(tmp_path, capsys, earlier, kept):
    trainer = TrainerOfSteps(tmp_path, "trainer.save_failure=continue").train(*earlier)
    before = names_in(trainer.checkpoints) if earlier else set()
    trainer.actor_rollout_wg.failure = RuntimeError("first line\nPytorchStreamWriter failed")
    trainer.train(2)
    line = f"could not save the checkpoint of step 2 (PytorchStreamWriter failed); {kept}\n"
    assert capsys.readouterr().out.endswith(line)
    assert names_in(trainer.checkpoints) == before


def test_a_step_whose_save_failed_does_not_count_as_saved(tmp_path):
    trainer = TrainerOfSteps(tmp_path, "trainer.save_failure=continue").train(1)
    trainer.actor_rollout_wg.failure = RuntimeError("failed")
    assert trainer.train(2)._saved_step == 1


def test_a_failed_save_ends_the_run_if_the_configuration_says_so(tmp_path):
    trainer = TrainerOfSteps(tmp_path, "trainer.save_failure=stop")
    trainer.actor_rollout_wg.failure = RuntimeError("failed")
    with pytest.raises(RuntimeError, match="failed"):
        trainer.train(1)


@pytest.fixture
def stored_samples(monkeypatch) -> None:
    """Put one sample of the batch into the store from which verl's trainer reads."""
    store = SampleStore()
    sample = {"uid": "a", "prompts": torch.tensor([1, 2]), "responses": torch.tensor([3]), "rm_scores": torch.ones(1)}
    store.put("train", SampleBlock.of({"a_0_0": sample}), {"a_0_0": {}})
    monkeypatch.setattr(transfer_queue, "kv_batch_get", store.kv_batch_get)


def test_the_rollouts_of_a_saved_step_are_written_to_disk_only_once(tmp_path, stored_samples):
    trainer = TrainerOfSteps(tmp_path, f"trainer.rollout_data_dir={tmp_path}/rollouts")
    trainer.tokenizer = SimpleNamespace(pad_token_id=0, decode=lambda ids, **_: " ".join(map(str, ids.tolist())))
    # Delays the writing.
    trainer._dump_executor.submit(time.sleep, 0.3)
    trainer.train(1)
    file = tmp_path / "rollouts" / "1.jsonl"
    rollout = json.loads(file.read_text())
    assert (rollout["input"], rollout["output"], rollout["score"]) == ("1 2", "3", 1.0)
    file.unlink()
    # As verl does after each step.
    trainer._log_rollout_data(trainer._batch, trainer.timing_raw, f"{tmp_path}/rollouts")
    trainer._shutdown_dump_executor()
    assert not file.exists()


def test_the_rollouts_of_a_step_that_is_not_saved_are_written_by_verl(tmp_path, stored_samples):
    trainer = TrainerOfSteps(tmp_path)
    trainer.tokenizer = SimpleNamespace(pad_token_id=0, decode=lambda ids, **_: "")
    for trainer.global_steps in (1, 2):
        trainer.step({}, {})
        trainer._log_rollout_data(trainer._batch, {}, f"{tmp_path}/rollouts")
    trainer._shutdown_dump_executor()
    assert names_in(tmp_path / "rollouts") == {"1.jsonl", "2.jsonl"}


def test_a_resumed_run_knows_a_step_that_was_saved_but_not_logged(tmp_path):
    TrainerOfSteps(tmp_path).train(1, 2)
    assert TrainerOfSteps(tmp_path).resume()._unlogged["loss"] == 0.5


def test_a_step_that_was_logged_is_not_logged_again_after_a_resume(tmp_path):
    TrainerOfSteps(tmp_path).train(1, 2).log(2)
    assert TrainerOfSteps(tmp_path).resume()._unlogged is None


@pytest.mark.parametrize(
    ("step", "is_logged", "test_freq", "is_repeated"),
    [
        (4, False, 2, True),
        (4, True, 2, False),
        (4, False, 3, False),
        (4, False, -1, False),
        # The last step is always validated.
        (5, False, 2, True),
        (5, False, -1, False),
    ],
)
def test_a_resume_repeats_the_validation_of_its_step_if_the_result_was_lost(
    tmp_path, step, is_logged, test_freq, is_repeated
):
    words = (f"trainer.test_freq={test_freq}", "trainer.total_training_steps=5", "trainer.val_before_train=true")
    first = TrainerOfSteps(tmp_path, *words).train(step)
    if is_logged:
        first.log(step)
    assert TrainerOfSteps(tmp_path, *words).resume().config.trainer.val_before_train is is_repeated


@pytest.mark.parametrize("words", [(), ("trainer.val_only=true",)], ids=["a new run", "a run that only validates"])
def test_the_user_chooses_the_validation_before_training_in(tmp_path, words):
    if words:
        TrainerOfSteps(tmp_path).train(1).log(1)
    trainer = TrainerOfSteps(tmp_path, "trainer.val_before_train=true", *words).resume()
    assert trainer.config.trainer.val_before_train is True


def test_a_later_step_that_a_resume_skipped_is_set_aside_as_damaged(tmp_path):
    TrainerOfSteps(tmp_path, "trainer.max_actor_ckpt_to_keep=2").train(1, 2)
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("1")
    resumed = TrainerOfSteps(tmp_path).resume()
    assert resumed.global_steps == 1
    assert {"global_step_1", "damaged_global_step_2"} <= names_in(resumed.checkpoints)


def test_a_run_that_goes_back_to_an_earlier_step_keeps_the_later_ones(tmp_path):
    TrainerOfSteps(tmp_path, "trainer.max_actor_ckpt_to_keep=2").train(1, 2)
    path = tmp_path / "checkpoints" / "global_step_1"
    resumed = TrainerOfSteps(tmp_path, "trainer.resume_mode=resume_path", f"trainer.resume_from_path={path}").resume()
    assert resumed.global_steps == 1
    assert {"global_step_1", "set_aside_global_step_2"} <= names_in(resumed.checkpoints)


@pytest.fixture
def continued_elsewhere(tmp_path) -> TrainerOfSteps:
    """Resume from the unlogged step 2 of another run, in a folder that already has a best step."""
    TrainerOfSteps(tmp_path / "other").train(1, 2)
    own = TrainerOfSteps(tmp_path / "own").train(1)
    own._store.mark_best(Best(1, 0.5, "val-core/*/acc/mean@1"))
    path = tmp_path / "other" / "checkpoints" / "global_step_2"
    words = ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={path}")
    return TrainerOfSteps(tmp_path / "own", *words).resume()


def test_a_run_from_another_runs_checkpoint_takes_over_its_step_and_curriculum(continued_elsewhere):
    assert continued_elsewhere.global_steps == 2
    assert continued_elsewhere.train_dataset.curriculum.state_dict() != rising_curriculum().state_dict()


def test_a_run_from_another_runs_checkpoint_does_not_log_its_metrics(continued_elsewhere):
    assert continued_elsewhere._unlogged is None


def test_a_run_from_another_runs_checkpoint_forgets_the_best_step_of_its_folder(continued_elsewhere):
    assert continued_elsewhere._store.best() is None
    assert "set_aside_global_step_1" in names_in(continued_elsewhere.checkpoints)


def test_a_resume_removes_the_remains_of_interrupted_writes(tmp_path):
    TrainerOfSteps(tmp_path).train(1)
    for name in (".metrics.jsonl-abcd1234", ".config.yaml-abcd1234", ".wandb_run_id-abcd1234", ".notes-abcd1234"):
        (tmp_path / name).write_text("")
    TrainerOfSteps(tmp_path).resume()
    assert {name for name in names_in(tmp_path) if name.endswith("abcd1234")} == {".notes-abcd1234"}


def test_a_resume_prunes_checkpoints_that_the_previous_start_left(tmp_path):
    TrainerOfSteps(tmp_path, "trainer.max_actor_ckpt_to_keep=3").train(1, 2, 3)
    resumed = TrainerOfSteps(tmp_path, "trainer.max_actor_ckpt_to_keep=1").resume()
    assert sorted(resumed._store.steps()) == [3]


@pytest.mark.parametrize(
    ("save_freq", "metrics", "best"),
    [
        (1, {"val-core/gcd/acc/mean@1": 0.5}, Best(1, 0.5, "val-core/*/acc/mean@1")),
        (1, {"val-core/gcd/reward/mean@1": 0.5}, None),
        (-1, {"val-core/gcd/acc/mean@1": 0.5}, None),
    ],
    ids=["with an accuracy", "without an accuracy", "in a run that saves nothing"],
)
def test_a_validation_marks_the_best_step(tmp_path, monkeypatch, save_freq, metrics, best):
    monkeypatch.setattr(PPOTrainerSync, "_validate", lambda self: metrics)
    trainer = TrainerOfSteps(tmp_path, f"trainer.save_freq={save_freq}").train(1)
    assert trainer._validate() == metrics
    assert trainer._store.best() == best


def test_a_better_step_that_cannot_be_saved_does_not_become_the_best(tmp_path):
    trainer = TrainerOfSteps(tmp_path, "trainer.save_failure=continue").train(1)
    trainer._keep_if_best(Best(1, 0.25, "val-core/*/acc/mean@1"))
    trainer.global_steps = 2
    trainer.step({}, {})
    trainer.timing_raw = {}
    trainer.actor_rollout_wg.failure = RuntimeError("failed")
    trainer._keep_if_best(Best(2, 0.5, "val-core/*/acc/mean@1"))
    assert trainer._store.best().step == 1


def test_a_record_of_the_best_that_cannot_be_written_does_not_end_the_run(tmp_path, capsys):
    trainer = TrainerOfSteps(tmp_path, "trainer.save_failure=continue").train(1)
    (trainer.checkpoints / "best_score.json").mkdir()
    trainer._keep_if_best(Best(1, 0.25, "val-core/*/acc/mean@1"))
    assert "could not save the checkpoint of step 1 (" in capsys.readouterr().out
