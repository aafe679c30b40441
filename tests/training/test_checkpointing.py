"""Which step is the best, and the state that a run takes up again from a checkpoint."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from rgtrain.checkpoints.checkpoint_store import Best
from rgtrain.checkpoints.metrics_file import METRICS, STEP_METRICS
from rgtrain.curriculum.curriculum_config import build_curriculum
from rgtrain.errors import ConfigError
from rgtrain.problems import parse_mixture
from rgtrain.training.checkpointing import CURRICULUM, load_curriculum, resumed_folder
from rgtrain.training.launch import _is_complete
from rgtrain.training.lifecycle.stopping import STOP, TrainingStopped
from rgtrain.training.trainer import ReasoningGymTrainer


class SavingTrainer(ReasoningGymTrainer):
    """The trainer without its workers: a checkpoint is an empty file."""

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


def test_the_best_is_saved_and_kept_and_a_tie_leaves_the_earlier_one(tmp_path):
    trainer = SavingTrainer(tmp_path)
    for step, score in ((2, 0.25), (4, 0.5), (6, 0.5), (8, 0.25)):
        trainer.validated(step, score)
    assert trainer._store.best() == Best(4, 0.5, "val-core/*/acc/mean@1")
    assert sorted(trainer._store.steps()) == [4]


def test_the_model_before_training_counts_and_needs_no_checkpoint(tmp_path):
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
def test_a_lost_or_old_record_of_the_best_is_restored_from_the_metrics_of_saved_steps(tmp_path, record):
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


def test_a_request_to_stop_during_validation_saves_that_step_and_needs_no_other(tmp_path, monkeypatch):
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
def test_a_start_refuses_a_checkpoint_that_would_run_code_before_anything_heavy(tmp_path, mode):
    trainer = SavingTrainer(tmp_path / "checkpoints")
    with trainer._store.saving(3) as staging:
        (staging / "global_step_3").mkdir()
        torch.save({"state": RunsCode(tmp_path / "proof")}, staging / "global_step_3" / "data.pt")
    own = {"resume_mode": mode, "total_training_steps": 5}
    own["resume_from_path"] = str(tmp_path / "checkpoints" / "global_step_3")
    trainer.config.merge_with({"run_dir": str(tmp_path), "trainer": own})
    with pytest.raises(ConfigError, match=r"data.pt' could run code of its author .*system"):
        _is_complete(trainer.config)
    with pytest.raises(ConfigError, match=r"data.pt' could run code of its author .*system"):
        trainer._load_checkpoint()
    assert not (tmp_path / "proof").exists()


def test_a_run_is_complete_if_its_last_step_is_saved_and_logged(tmp_path):
    trainer = SavingTrainer(tmp_path / "checkpoints")
    trainer.config.merge_with({"run_dir": str(tmp_path), "trainer": {"total_training_steps": 3}})
    with trainer._store.saving(3) as staging:
        (staging / "global_step_3").mkdir()
        torch.save({}, staging / "global_step_3" / "data.pt")
        (staging / "global_step_3" / STEP_METRICS).write_text('{"step": 3}\n')
    assert not _is_complete(trainer.config)
    (tmp_path / METRICS).write_text('{"step": 3}\n')
    assert _is_complete(trainer.config)


def test_the_checkpoint_to_resume_from_is_the_one_that_verl_takes(tmp_path):
    trainer = SavingTrainer(tmp_path).config.trainer
    assert resumed_folder(trainer) is None
    (tmp_path / "global_step_3").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    assert resumed_folder(trainer) == tmp_path / "global_step_3"
    trainer.update({"resume_mode": "resume_path", "resume_from_path": f"{tmp_path}/global_step_3/"})
    assert resumed_folder(trainer) == tmp_path / "global_step_3"
    # verl makes a number of all that follows "global_step_".
    assert trainer.resume_from_path == f"{tmp_path}/global_step_3"
    trainer.resume_mode = "disable"
    assert resumed_folder(trainer) is None


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"{}", b"null", b"[]", b'{"policies": {"gcd": 3}}', b"\xff", b"\0"]
)
def test_a_damaged_state_of_the_curriculum_is_named(tmp_path, content):
    specs = parse_mixture({"gcd": {"weight": 1, "config": None}})
    curriculum = build_curriculum(
        specs, seed=1, curriculum={"policy": {}, "datasets": {}}, mixture_policy={"name": "fixed"}
    )
    if content is not None:
        (tmp_path / CURRICULUM).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{CURRICULUM}' does not hold the state"):
        load_curriculum(curriculum, tmp_path)
