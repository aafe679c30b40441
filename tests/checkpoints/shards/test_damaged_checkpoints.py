"""Damage to a rank file is reported with the file's name, or changes no tensor."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoint_files import tiny_config, tiny_model, write_checkpoint

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.shards.random_checkpoints import rank_file, write_random_checkpoint
from rgtrain.errors import ConfigError

NUM_POSITIONS = 50


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """Return a checkpoint of two ranks, whose data and structure have about the same size, and its exported tensors."""
    folder = tmp_path_factory.mktemp("sound")
    actor = write_random_checkpoint(folder / "global_step_1", tiny_config(), world_size=2)
    return actor, load_file(export(actor, folder / "exported") / "model.safetensors")


def reported_or_unchanged(actor: Path, damaged: Path, expected: dict[str, torch.Tensor], output: Path) -> bool:
    """Return True if the damage was reported with the file's name, False if the export equals `expected`."""
    try:
        exported = load_file(export(actor, output) / "model.safetensors")
    except ConfigError as error:
        assert damaged.name in str(error)
        assert not output.exists()
        return True
    assert exported.keys() == expected.keys()
    for name, tensor in exported.items():
        assert torch.equal(tensor, expected[name]), f"{name} changed without an error"
    return False


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damage_at_random_positions_is_reported_with_the_file_or_changes_no_tensor(sound, tmp_path, damage):
    actor, expected = sound
    drawn = random.Random(damage)
    num_reported = 0
    for number in range(NUM_POSITIONS):
        path = rank_file(actor, 2, drawn.randrange(2))
        before = path.read_bytes()
        at = drawn.randrange(len(before))
        if damage == "flip":
            path.write_bytes(before[:at] + bytes([before[at] ^ 1 << drawn.randrange(8)]) + before[at + 1 :])
        else:
            path.write_bytes(before[:at])
        num_reported += reported_or_unchanged(actor, path, expected, tmp_path / str(number))
        path.write_bytes(before)
    # Some flips hit padding. Every truncation removes the table of contents at the end.
    assert num_reported >= NUM_POSITIONS // 2 if damage == "flip" else num_reported == NUM_POSITIONS


def test_damage_to_the_structure_never_changes_a_tensor_without_an_error(sound, tmp_path):
    actor, expected = sound
    path = rank_file(actor, 2, 1)
    before = path.read_bytes()
    # The structure is at the start, the table of contents at the end, and the data between them.
    for at in [*range(0, 400, 11), *range(len(before) - 6000, len(before), 97)]:
        path.write_bytes(before[:at] + bytes([before[at] ^ 0xFF]) + before[at + 1 :])
        reported_or_unchanged(actor, path, expected, tmp_path / str(at))
    path.write_bytes(before)


def test_a_damaged_tensor_is_reported_with_its_file(tmp_path):
    model = tiny_model()
    actor = write_checkpoint(tmp_path / "global_step_1", model, world_size=2)
    path = rank_file(actor, 2, 1)
    content = path.read_bytes()
    values = model.model.norm.weight.detach()[12:].numpy().tobytes()
    at = content.index(values)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(ConfigError, match=r"model_world_size_2_rank_1.pt' is damaged: .* 'model.norm.weight'"):
        export(actor, tmp_path / "exported")
