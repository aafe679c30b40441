import pytest
from support.curricula import group, small_curriculum


def test_adaptive_weights_shift_within_bounds_to_datasets_with_a_signal():
    curriculum = small_curriculum({"name": "uniform"}, {"name": "adaptive", "least": 0.5, "most": 1.5, "memory": 8})
    for _ in range(100):
        curriculum.observe([group("spell_backward", 0, 1.0), group("chain_sum", None, 0.5, mixed=True)])
    assert curriculum.metrics()["curriculum/chain_sum/share"] == pytest.approx(0.75)
