"""A checkpoint is there whole or not at all, damage is found before it is continued from, and the best is kept."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rgtrain.checkpoint_store import MANIFEST, CheckpointStore, problems
from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path, said) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2, say=said.append)


def save(store: CheckpointStore, step: int) -> Path:
    with store.saving(step) as staging:
        actor = staging / f"global_step_{step}" / "actor"
        actor.mkdir(parents=True)
        (actor / "model_world_size_1_rank_0.pt").write_bytes(random.Random(step).randbytes(10_000))
        (actor.parent / "data.pt").write_bytes(b"where the sampler stands")
    store.publish(step)
    return store.root / f"global_step_{step}"


def test_a_saved_step_is_the_last_and_sound(store):
    assert store.last_usable() is None
    assert problems(save(store, 3)) == []
    assert store.last_usable() == 3
    assert (store.root / "latest_checkpointed_iteration.txt").read_text() == "3"


def test_a_save_that_fails_leaves_nothing_and_the_one_before(store):
    save(store, 1)
    with pytest.raises(OSError, match="No space left"), store.saving(2) as staging:
        (staging / "global_step_2").mkdir()
        raise OSError("No space left on device")
    assert sorted(path.name for path in store.root.iterdir()) == ["global_step_1", "latest_checkpointed_iteration.txt"]
    assert store.last_usable() == 1


def test_only_the_latest_and_the_best_are_kept(store):
    for step in (1, 2):
        save(store, step)
    store.mark_best(1, 0.5)
    for step in (3, 4, 5):
        save(store, step)
    assert sorted(store.steps()) == [1, 4, 5]
    assert store.best_score() == 0.5


@pytest.mark.parametrize("seed", range(10))
def test_a_flipped_bit_is_named_and_the_step_before_taken(store, said, seed):
    save(store, 1)
    rng = random.Random(seed)
    path = rng.choice([path for path in save(store, 2).rglob("*.pt")])
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    assert store.last_usable() == 1
    assert f"global_step_2 is passed over: {path.relative_to(store.root / 'global_step_2')} is damaged" in said[0]


def test_a_file_cut_short_or_missing_is_named(store):
    folder = save(store, 1)
    rank_file = folder / "actor" / "model_world_size_1_rank_0.pt"
    rank_file.write_bytes(rank_file.read_bytes()[:5000])
    assert problems(folder) == ["actor/model_world_size_1_rank_0.pt has 5000 bytes of 10000"]
    rank_file.unlink()
    assert problems(folder) == ["actor/model_world_size_1_rank_0.pt is missing"]


def test_a_folder_without_a_manifest_is_taken_only_where_the_tracker_names_it(store, said):
    folder = save(store, 1)
    (folder / MANIFEST).unlink()
    assert store.last_usable() == 1
    (store.root / "global_step_2" / "actor").mkdir(parents=True)
    assert store.last_usable() == 1
    assert "global_step_2 is passed over: it has no manifest" in said[0]


def test_where_none_can_be_used_nothing_begins_anew(store):
    (save(store, 1) / "data.pt").unlink()
    with pytest.raises(ConfigError, match="no checkpoint in .* can be continued from"):
        store.last_usable()


def test_a_process_killed_while_saving_leaves_whole_checkpoints_only(tmp_path):
    code = """
import itertools, sys
from pathlib import Path
from rgtrain.checkpoint_store import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]), keep=3, say=print)
for step in itertools.count(1):
    with store.saving(step) as staging:
        (staging / f"global_step_{step}").mkdir()
        for part in range(20):
            (staging / f"global_step_{step}" / f"{part}.pt").write_bytes(bytes(50_000))
    store.publish(step)
"""
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    rng = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
        while not list(tmp_path.glob("global_step_*")):
            time.sleep(0.02)
        time.sleep(rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        store = CheckpointStore(tmp_path, keep=3, say=print)
        assert all(problems(folder) == [] for folder in store.steps().values())
        assert store.last_usable() == max(store.steps())
