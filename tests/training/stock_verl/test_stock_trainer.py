"""Each of verl's trainers is combined with the parts of a run that belong to every trainer."""

import pytest
from verl.trainer.ppo.v1 import PPOTrainer, get_trainer_cls
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

from rgtrain.preflight.stock_verl_checks import MODES
from rgtrain.training.checkpointing import CheckpointingTrainer
from rgtrain.training.reasoning_gym_trainer import ReasoningGymTrainer
from rgtrain.training.stock_verl.stock_trainer import StockTrainer, combined, over_verls


def test_the_known_modes_are_those_of_verl():
    assert set(MODES) == set(TRAINER_REGISTRY)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_trained_by_verls_trainer_with_our_parts_over_it(mode):
    trainer, original = over_verls(get_trainer_cls)(mode), get_trainer_cls(mode)
    assert issubclass(trainer, original)
    assert not trainer.__abstractmethods__
    order = trainer.__mro__
    ours, theirs = (StockTrainer, ReasoningGymTrainer, CheckpointingTrainer), (original, PPOTrainer)
    assert [order.index(each) for each in (*ours, *theirs)] == sorted(order.index(each) for each in (*ours, *theirs))


@pytest.mark.parametrize("mode", MODES)
def test_no_hook_of_a_trainer_is_lost(mode):
    """Every method that both define is ours, and ours calls that of verl's trainer."""
    original = get_trainer_cls(mode)
    trainer = combined(original)
    for part in (StockTrainer, ReasoningGymTrainer, CheckpointingTrainer):
        for name in set(vars(part)) & set(vars(original)) - {
            "__module__",
            "__doc__",
            "__init__",
            "__abstractmethods__",
        }:
            if callable(vars(part)[name]):
                assert "super" in vars(part)[name].__code__.co_names, (part, name)
                assert getattr(trainer, name) is getattr(part, name)


def test_a_trainer_that_the_user_registers_is_combined_too():
    class Mine(PPOTrainer):
        def on_step_end(self):
            pass

        def on_sample_end(self):
            pass

    trainer = over_verls({"mine": Mine}.__getitem__)("mine")
    assert issubclass(trainer, Mine) and issubclass(trainer, StockTrainer)
