"""Rollouts are kept once per step within a limit, and damage to the files costs only the damaged blocks."""

import gzip
import json
from pathlib import Path

import pytest

from rgtrain.checkpoints.rollout_files import (
    INDEX,
    TRAINING,
    VALIDATION,
    KeptCompletion,
    KeptGroup,
    RolloutFiles,
    read_index,
    read_rollouts,
)

HOSTILE = '\x1b[2J"}\n{"dataset":\u2028\x00 \ud800 </script>'


def group(text: str = "<answer>3</answer>", *, size: int = 1) -> KeptGroup:
    completion = KeptCompletion(text, "3", 1.0, {"acc": 1.0}, 7, "stop", 0.5, -0.25, None)
    return KeptGroup("gcd", 2, "0" * 16, "<|user|>1+2", "3", ["first"], [completion] * size)


def opened(folder: Path, *, max_bytes: int = 10**9, first_step: int = 0) -> RolloutFiles:
    return RolloutFiles(folder, max_bytes=max_bytes, first_step=first_step)


def kept(folder: Path) -> dict[tuple[int, str], list[KeptGroup]]:
    return {(block.step, block.split): groups for block, groups in read_rollouts(folder, read_index(folder))}


def test_groups_are_read_as_they_were_written(tmp_path):
    files = opened(tmp_path / "rollouts")
    files.append([group(size=2), group("x")], step=1, split=TRAINING)
    files.append([group()], step=1, split=VALIDATION)
    files.append([group("y")], step=2, split=TRAINING)
    assert kept(tmp_path / "rollouts") == {
        (1, TRAINING): [group(size=2), group("x")],
        (1, VALIDATION): [group()],
        (2, TRAINING): [group("y")],
    }


def test_any_text_of_a_model_is_kept(tmp_path):
    opened(tmp_path).append([group(HOSTILE)], step=1, split=TRAINING)
    [[read]] = kept(tmp_path).values()
    # A lone surrogate has no encoding.
    assert read.completions[0].text == HOSTILE.replace("\ud800", "?")


def test_a_file_is_read_by_gzip_line_by_line(tmp_path):
    files = opened(tmp_path)
    for step in range(1, 4):
        files.append([group(str(step))], step=step, split=TRAINING)
    lines = gzip.decompress((tmp_path / "training-000001.jsonl.gz").read_bytes()).splitlines()
    assert [json.loads(line)["completions"][0]["text"] for line in lines] == ["1", "2", "3"]


def test_a_restart_replaces_the_steps_that_it_repeats(tmp_path):
    files = opened(tmp_path)
    for step in (*range(1, 24), 41):
        files.append([group(f"old {step}")], step=step, split=TRAINING)
    files = opened(tmp_path, first_step=3)
    assert sorted(step for step, _ in kept(tmp_path)) == [1, 2]
    assert [path.name for path in tmp_path.glob("*.gz")] == ["training-000001.jsonl.gz"]
    files.append([group("new 3")], step=3, split=TRAINING)
    assert [groups[0].completions[0].text for groups in kept(tmp_path).values()] == ["old 1", "old 2", "new 3"]


def test_a_step_that_is_written_again_counts_once(tmp_path):
    files = opened(tmp_path)
    files.append([group("first")], step=4, split=VALIDATION)
    files.append([group("second")], step=4, split=VALIDATION)
    assert kept(tmp_path) == {(4, VALIDATION): [group("second")]}


def test_an_interrupted_write_leaves_no_trace(tmp_path):
    files = opened(tmp_path)
    files.append([group("1")], step=1, split=TRAINING)
    with (tmp_path / "training-000001.jsonl.gz").open("ab") as file:
        file.write(b"\x1f\x8b half a block")
    with (tmp_path / INDEX).open("a") as file:
        file.write('{"step": 2, "split": "trai')
    opened(tmp_path, first_step=2).append([group("2")], step=2, split=TRAINING)
    assert [groups for groups in kept(tmp_path).values()] == [[group("1")], [group("2")]]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"step": 1}',
        '{"step": -1, "split": "training", "file": "a", "offset": 0, "num_bytes": 1, "num_groups": 1}',
        '{"step": 1, "split": "training", "file": "../a", "offset": 0, "num_bytes": 1, "num_groups": 1}',
        '{"step": 1, "split": "training", "file": "a", "offset": 0, "num_bytes": 1e99, "num_groups": 1}',
        '{"step": 1, "split": "other", "file": "a", "offset": 0, "num_bytes": 1, "num_groups": 1}',
    ],
    ids=lambda line: line[:60],
)
def test_a_damaged_line_of_the_index_is_skipped(tmp_path, line):
    opened(tmp_path).append([group()], step=1, split=TRAINING)
    with (tmp_path / INDEX).open("a") as file:
        file.write(line + "\n")
    assert list(kept(tmp_path)) == [(1, TRAINING)]


def test_a_damaged_block_costs_only_itself(tmp_path):
    files = opened(tmp_path)
    for step in (1, 2, 3):
        files.append([group(str(step))], step=step, split=TRAINING)
    path = tmp_path / "training-000001.jsonl.gz"
    damaged = bytearray(path.read_bytes())
    middle = read_index(tmp_path)[1]
    damaged[middle.offset + middle.num_bytes // 2] ^= 0xFF
    path.write_bytes(damaged)
    assert sorted(step for step, _ in kept(tmp_path)) == [1, 3]


def test_the_oldest_training_files_go_first(tmp_path):
    files = opened(tmp_path, max_bytes=1)
    files.append([group()], step=0, split=VALIDATION)
    files.append([group()], step=1, split=TRAINING)
    assert list(kept(tmp_path)) == [(1, TRAINING)]
    block = read_index(tmp_path)[0]
    files = opened(tmp_path, max_bytes=4 * block.num_bytes, first_step=2)
    for step in (20, 21, 41):
        files.append([group()], step=step, split=TRAINING)
    files.append([group()], step=41, split=VALIDATION)
    files.append([group()], step=61, split=TRAINING)
    assert list(kept(tmp_path)) == [
        (21, TRAINING),
        (41, TRAINING),
        (41, VALIDATION),
        (61, TRAINING),
    ]
    assert sum(path.stat().st_size for path in tmp_path.glob("*.gz")) <= 4 * block.num_bytes


def test_a_folder_without_rollouts_has_none(tmp_path):
    assert read_index(tmp_path / "missing") == []
