"""Checkpoints are written atomically, damage is detected before a resume, and the best checkpoint is kept."""

import errno
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from rgtrain.checkpoints.checkpoint_store import (
    BEST_SCORE,
    LAST,
    MANIFEST,
    Best,
    CheckpointStore,
    problems,
    recorded_best,
)
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
        (actor.parent / "data.pt").write_bytes(b"state of the sampler")
    return store.root / f"global_step_{step}"


def best(step: int, score: float) -> Best:
    return Best(step, score, "val-core/*/acc/mean@1")


def test_a_saved_step_is_intact_and_the_last(store):
    assert store.last_usable() is None
    assert problems(save(store, 3)) == []
    assert store.last_usable() == 3
    assert (store.root / "latest_checkpointed_iteration.txt").read_text() == "3"


def test_a_failed_save_leaves_only_the_previous_step(store):
    save(store, 1)
    with pytest.raises(OSError, match="No space left"), store.saving(2) as staging:
        (staging / "global_step_2").mkdir()
        raise OSError("No space left on device")
    assert sorted(path.name for path in store.root.iterdir()) == ["global_step_1", "latest_checkpointed_iteration.txt"]
    assert store.last_usable() == 1


def test_only_the_latest_and_the_best_are_kept(store):
    for step in (1, 2):
        save(store, step)
    store.mark_best(best(1, 0.5))
    for step in (3, 4, 5):
        save(store, step)
    assert sorted(store.steps()) == [1, 4, 5]
    assert store.best() == best(1, 0.5)


@pytest.mark.parametrize("seed", range(10))
def test_a_flipped_bit_is_reported_and_the_previous_step_used(store, said, seed):
    save(store, 1)
    rng = random.Random(seed)
    path = rng.choice([path for path in save(store, 2).rglob("*.pt")])
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    assert store.last_usable() == 1
    assert f"skipping checkpoint global_step_2: {path.relative_to(store.root / 'global_step_2')} is damaged" in said[0]


def test_a_truncated_or_missing_file_is_reported(store):
    folder = save(store, 1)
    rank_file = folder / "actor" / "model_world_size_1_rank_0.pt"
    rank_file.write_bytes(rank_file.read_bytes()[:5000])
    assert problems(folder) == ["actor/model_world_size_1_rank_0.pt has 5000 bytes of 10000"]
    rank_file.unlink()
    assert problems(folder) == ["actor/model_world_size_1_rank_0.pt is missing"]


def test_a_folder_without_a_manifest_is_used_only_if_the_tracker_names_it(store, said):
    folder = save(store, 1)
    (folder / MANIFEST).unlink()
    assert store.last_usable() == 1
    (store.root / "global_step_2" / "actor").mkdir(parents=True)
    assert store.last_usable() == 1
    assert "skipping checkpoint global_step_2: it has no manifest" in said[0]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(store):
    (save(store, 1) / "data.pt").unlink()
    with pytest.raises(ConfigError, match="all checkpoints in .* are unusable"):
        store.last_usable()


def test_a_process_killed_while_saving_leaves_only_complete_checkpoints(tmp_path):
    code = """
import itertools, sys
from pathlib import Path
from rgtrain.checkpoints.checkpoint_store import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]), keep=3, say=print)
for step in itertools.count(1):
    with store.saving(step) as staging:
        (staging / f"global_step_{step}").mkdir()
        for part in range(20):
            (staging / f"global_step_{step}" / f"{part}.pt").write_bytes(bytes(50_000))
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


class Crash(BaseException):
    """Simulated crash of the machine."""


WRITES = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "open", "chmod")


class Machine:
    """Counter of operations that change files. Operation `limit` fails, and in a crash all later ones too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failure: str):
        self.num_done, self.limit = 0, sys.maxsize
        self._failure = failure
        # Replaced by a no-op, which is counted below. Only a power failure needs the real one.
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        for name in WRITES:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    @property
    def has_failed(self) -> bool:
        return self.num_done > self.limit

    def _counted(self, operation):
        def counted(*args, **kwargs):
            self.num_done += 1
            if self.has_failed and self._failure == "crash":
                raise Crash
            if self.num_done == self.limit + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return operation(*args, **kwargs)

        return counted


@pytest.mark.parametrize("failure", ["crash", "error"])
def test_a_failure_of_any_operation_leaves_the_last_and_the_best_intact(tmp_path, monkeypatch, failure):
    sound = tmp_path / "sound"
    store = CheckpointStore(sound, keep=1, say=print)
    save(store, 1)
    store.mark_best(best(1, 0.25))
    save(store, 2)
    machine = Machine(monkeypatch, failure)
    outcomes = set()
    for limit in range(1000):
        root = tmp_path / str(limit)
        machine.limit = sys.maxsize
        shutil.copytree(sound, root)
        machine.num_done, machine.limit = 0, limit
        with suppress(Crash, OSError):
            store = CheckpointStore(root, keep=1, say=print)
            save(store, 3)
            store.mark_best(best(3, 0.5))
            save(store, 4)
        has_failed = machine.has_failed
        machine.limit = sys.maxsize
        outcomes.add(state_after_failure(root))
        save(CheckpointStore(root, keep=1, say=print), 5)
        assert not list(root.glob(".saving*"))
        if not has_failed:
            break
    assert limit > 50
    # All pairs (last, best) that may occur. The best never gets worse and always has a checkpoint.
    assert outcomes == {(2, 1), (3, 1), (3, 3), (4, 3)}


def state_after_failure(root: Path) -> tuple[int, int]:
    store = CheckpointStore(root, keep=1, say=print)
    last, recorded = store.last_usable(), recorded_best(root)
    assert recorded.score == {1: 0.25, 3: 0.5}[recorded.step]
    for step in (last, recorded.step):
        assert problems(store.steps()[step]) == []
    return last, recorded.step


def move_and_link_back(folder: Path, elsewhere: Path) -> Path:
    elsewhere.mkdir(exist_ok=True)
    target = Path(shutil.move(folder, elsewhere))
    folder.symlink_to(target, target_is_directory=True)
    return target


def test_a_linked_step_is_intact_and_pruning_removes_only_the_link(store, said, tmp_path):
    target = move_and_link_back(save(store, 1), tmp_path / "other disk")
    assert store.last_usable() == 1
    for step in (2, 3, 4):
        save(store, step)
    assert sorted(store.steps()) == [3, 4]
    assert (target / "actor" / "model_world_size_1_rank_0.pt").is_file()
    assert said == [f"removing the link global_step_1; the files at {target} remain"]


def test_a_step_with_linked_subfolders_is_intact(store, tmp_path):
    folder = save(store, 1)
    move_and_link_back(folder / "actor", tmp_path / "other disk")
    assert problems(folder) == []


def test_a_step_linked_to_a_missing_disk_is_reported_and_the_run_does_not_start_over(store, said, tmp_path):
    save(store, 1)
    shutil.rmtree(move_and_link_back(save(store, 2), tmp_path / "other disk"))
    assert store.last_usable() == 1
    assert "skipping checkpoint global_step_2: it is a link to" in said[0]
    shutil.rmtree(store.root / "global_step_1")
    with pytest.raises(ConfigError, match="all checkpoints in"):
        store.last_usable()


def test_a_linked_checkpoint_folder_works_and_is_refused_if_its_disk_is_missing(store, tmp_path):
    (tmp_path / "other disk").mkdir()
    store.root.symlink_to(tmp_path / "other disk", target_is_directory=True)
    for step in (1, 2, 3):
        save(store, step)
    assert sorted(store.steps()) == [2, 3]
    shutil.rmtree(tmp_path / "other disk")
    with pytest.raises(ConfigError, match="is a link to .* which does not exist"):
        store.last_usable()


LEFTOVERS = {
    "a folder": lambda path, elsewhere: (path / "global_step_1").mkdir(parents=True),
    "a file": lambda path, elsewhere: path.write_text(""),
    "a link to a folder": lambda path, elsewhere: path.symlink_to(elsewhere, target_is_directory=True),
    "a broken link": lambda path, elsewhere: path.symlink_to(elsewhere / "missing"),
}


@pytest.mark.parametrize("leftover", LEFTOVERS)
@pytest.mark.parametrize("name", [".saving", ".saving_removed", ".saving_1"])
def test_no_leftover_blocks_the_next_save(store, tmp_path, name, leftover):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("belongs to others")
    save(store, 1)
    LEFTOVERS[leftover](store.root / name, elsewhere)
    for step in (2, 3):
        save(store, step)
    assert sorted(path.name for path in store.root.iterdir()) == ["global_step_2", "global_step_3", LAST]
    assert (elsewhere / "file").is_file()


def test_a_folder_that_cannot_be_removed_is_reported_once_and_does_not_fail_a_save(store, said, monkeypatch):
    # A network file system raises this while another process has one of the files open.
    def busy(path, *args, **kwargs):
        raise OSError(16, "Device or resource busy")

    save(store, 1)
    monkeypatch.setattr(shutil, "rmtree", busy)
    for step in (2, 3, 4):
        save(store, step)
    assert store.last_usable() == 4
    assert sorted(store.steps()) == [3, 4]
    assert len(said) == len(set(said))
    assert "cannot be removed (Device or resource busy)" in said[0]


@pytest.mark.parametrize(("number", "is_fatal"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_only_a_real_error_of_flushing_a_folder_fails_a_save(store, monkeypatch, number, is_fatal):
    fsync = os.fsync

    def flush_only_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush_only_files)
    with pytest.raises(OSError, match="Input/output") if is_fatal else nullcontext():
        save(store, 1)
    assert sorted(store.steps()) == ([] if is_fatal else [1])


def test_a_step_that_is_a_mount_point_is_kept_and_reported(store, said, monkeypatch):
    rename = Path.rename

    def busy_if_first(self, target):
        if self.name == "global_step_1":
            raise OSError(16, "Device or resource busy")
        return rename(self, target)

    save(store, 1)
    monkeypatch.setattr(Path, "rename", busy_if_first)
    for step in (2, 3, 4):
        save(store, step)
    assert sorted(store.steps()) == [1, 3, 4]
    assert len(said) == 1


def test_a_damaged_last_step_is_set_aside_until_the_run_has_passed_it(store, said):
    for step in (4, 6):
        save(store, step)
    store.mark_best(best(6, 0.5))
    (store.root / "global_step_6" / "data.pt").unlink()
    assert store.last_usable() == 4
    store.begin_after(4, later_are_damaged=True)
    assert "global_step_6 is later than the step that this run continues from" in said[-1]
    assert store.best() is None
    save(store, 5)
    assert sorted(store.steps()) == [4, 5]
    assert store.last_usable() == 5
    assert (store.root / "damaged_global_step_6").is_dir()
    save(store, 6)
    assert sorted(path.name for path in store.root.iterdir()) == ["global_step_5", "global_step_6", LAST]


@pytest.mark.parametrize("start", [0, 4])
def test_a_run_that_starts_at_an_earlier_step_keeps_the_later_steps_of_the_previous_run(store, start):
    for step in (4, 6):
        save(store, step)
    store.begin_after(start, later_are_damaged=False)
    for step in (start + 1, start + 2, start + 3):
        save(store, step)
    assert sorted(store.steps()) == [start + 2, start + 3]
    assert store.last_usable() == start + 3
    assert (store.root / "set_aside_global_step_6" / "data.pt").is_file()


def test_pruning_never_counts_later_steps_of_another_run(store):
    for step in (8, 9):
        save(store, step)
    save(store, 3)
    assert sorted(store.steps()) == [3, 8, 9]


def test_a_start_removes_only_temporary_files_of_interrupted_writes(store):
    save(store, 1)
    ours = [f".{LAST}-abcd_123", f".{BEST_SCORE}-00000000"]
    others = [".notes-abcd1234", f".{LAST}-backup", "notes"]
    for name in ours + others:
        (store.root / name).write_text("")
    (store.root / ".saving").mkdir()
    store.begin_after(1, later_are_damaged=True)
    assert sorted(path.name for path in store.root.iterdir()) == sorted(["global_step_1", LAST, *others])


NO_MANIFESTS = ("", "{", "{}", "[]", "null", "3", "[" * 100_000)
NO_FILES = ('{"x": 3}', '{"x": [1]}', '{"x": [1, "2"]}', '{"../x": [0, 0]}', '{"/x": [0, 0]}', '{"x\\u0000": [0, 0]}')


@pytest.mark.parametrize("content", [*NO_MANIFESTS, *NO_FILES])
def test_a_manifest_without_a_valid_list_of_files_is_damaged(store, content):
    folder = save(store, 1)
    (folder / MANIFEST).write_text(content)
    assert problems(folder)[0].startswith(f"{MANIFEST} is damaged")


def test_a_full_disk_is_reported_even_if_the_writer_raises_another_error(store, monkeypatch):
    usage = shutil.disk_usage(store.root.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4096))
    with pytest.raises(OSError, match="No space left on device") as raised, store.saving(1):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 8320 vs 8214")
    assert raised.value.errno == errno.ENOSPC
    assert store.steps() == {}


@pytest.mark.parametrize("content", [b"", b"\0\0", b"\xff", b"latest", b"-1", b"9" * 5000])
def test_a_damaged_record_of_the_last_step_is_replaced(store, content):
    save(store, 1)
    (store.root / LAST).write_bytes(content)
    assert store.last_usable() == 1
    assert (store.root / LAST).read_text() == "1"
    shutil.rmtree(store.root / "global_step_1")
    (store.root / LAST).write_bytes(content)
    assert store.last_usable() is None
    assert not (store.root / LAST).exists()


NO_RECORDS = (b"", b"{", b"{}", b"[]", b"null", b"\0" * 40, b"\xff", b'{"step": 3}', b"[" * 100_000)
NO_SCORES = (b'{"step": "3", "score": 0.5}', b'{"step": 3, "score": NaN}', b'{"step": -3, "score": 0.5}')
NO_NUMBERS = (
    b'{"step": true, "score": 0.5}',
    b'{"step": 3, "score": 1' + b"0" * 400 + b"}",
    b'{"step": 3, "score": 1, "metric": 1}',
)


@pytest.mark.parametrize("content", [*NO_RECORDS, *NO_SCORES, *NO_NUMBERS])
def test_a_damaged_record_of_the_best_step_is_reported_and_removed(store, said, content):
    for step in (1, 2, 3):
        save(store, step)
    (store.root / BEST_SCORE).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{BEST_SCORE}' is damaged"):
        recorded_best(store.root)
    assert store.best() is None
    assert said[-1].endswith("The next validation starts a new record")
    store.begin_after(3, later_are_damaged=True)
    assert not (store.root / BEST_SCORE).exists()


def test_a_record_of_an_older_version_is_read(store):
    save(store, 1)
    (store.root / BEST_SCORE).write_text('{"step": 1, "score": 0.5}')
    assert store.best() == Best(1, 0.5, None)
