"""Sampled problems cover all levels, and their tokens and scoring times are measured as in training."""

from types import SimpleNamespace

import pytest
from support.experiments import plain_project_experiment
from support.preflights import preflight_only

from rgtrain.config.run_config import RunConfig
from rgtrain.preflight import problem_samples
from rgtrain.preflight.training_model import find_model
from rgtrain.problems import PromptRenderer


def test_each_level_of_a_curriculum_is_sampled(tiny_model, tmp_path, quick):
    words = [f"actor_rollout_ref.model.path={tiny_model}", "hardware=cpu"]
    code, text = preflight_only(plain_project_experiment("curriculum/spell_backward", tmp_path / "run", *words))
    assert code == 0, text
    for level in range(5):
        assert f"\nspell_backward, level {level}  20.0%" in text


def test_tokens_are_counted_as_training_counts_them(tiny_model, tmp_path):
    from transformers import AutoTokenizer

    words = ["hardware=cpu", f"actor_rollout_ref.model.path={tiny_model}"]
    config = RunConfig.of(plain_project_experiment("quickstart", tmp_path / "run", *words))
    tokens, tokenizer = (
        problem_samples.token_counter(find_model(config), config),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    messages = [{"role": "system", "content": "Think."}, {"role": "user", "content": "2 + 2 = ?"}]
    assert tokens.prompt(messages, "gcd") == PromptRenderer(tokenizer, model="m").token_ids(messages)
    assert tokens.encode("<answer>4</answer>") == tokenizer.encode("<answer>4</answer>", add_special_tokens=False)


@pytest.mark.parametrize("num_workers", ["2", "null"])
def test_scoring_time_is_divided_by_the_number_of_scoring_processes(monkeypatch, tmp_path, num_workers):
    monkeypatch.setattr("rgtrain.problems.scoring.scorer.num_cpus", lambda: 2)
    plain = plain_project_experiment(
        "quickstart", tmp_path / "run", "hardware=cpu", f"reward.scorer.num_workers={num_workers}"
    )
    config, sample = RunConfig.of(plain), SimpleNamespace(share=1.0, generate_seconds=0.0, score_seconds=0.5)
    _, seconds = problem_samples.seconds_per_step([sample], config)
    assert seconds == config.data.train_batch_size * config.rollout.n * 0.5 / 2
