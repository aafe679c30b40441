"""The results folder: no answer is lost, duplicated or mixed with those of another evaluation."""

import dataclasses
import json
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
from support.evaluated import plan_of, write_results

from rgtrain.errors import ConfigError
from rgtrain.evaluation.results import ResultsFolder, ResultsNotWritten, read_answers
from rgtrain.evaluation.summary import identity_of
from rgtrain.paths import PROJECT_ROOT
from rgtrain.reporting.evaluation_report import write_report

IDENTITY = {"temperature": 0}
NUM_WRITTEN = 20_000


def test_an_incomplete_last_line_is_dropped(tmp_path, answers):
    folder = ResultsFolder(tmp_path / "results")
    with folder.writing(IDENTITY) as writer:
        writer.add(answers[0])
        writer.add(answers[1])
    whole = folder.results.read_bytes()
    folder.results.write_bytes(whole[:-20])
    with folder.writing(IDENTITY) as writer:
        assert writer.answers == answers[:1]
        writer.add(answers[1])
    assert folder.results.read_bytes() == whole


@pytest.mark.parametrize("damage", [lambda lines: [lines[0], b"{}", lines[1]], lambda lines: [lines[0], *lines]])
def test_a_file_with_other_damage_is_refused(tmp_path, answers, damage):
    folder = ResultsFolder(tmp_path / "results")
    with folder.writing(IDENTITY) as writer:
        writer.add(answers[0])
        writer.add(answers[1])
    folder.results.write_bytes(b"\n".join(damage(folder.results.read_bytes().split(b"\n")[:2])) + b"\n")
    message = r"is damaged \(line 2 (is not an answer|repeats an earlier answer)\); remove these lines, and the same"
    with pytest.raises(ConfigError, match=message), folder.writing(IDENTITY):
        pass


# Contents of files damaged by a power loss, a full disk, another program or an editor.
DAMAGED = [b"", b"{", b"[]", b"null", b"5", b"\0" * 100, b"\xff\xfe{}", b"[" * 200_000, b'{"a": %s}' % (b"9" * 10_000)]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_evaluation_json_is_reported_with_the_fix(config, answers, content):
    folder = write_results(config, answers)
    (folder.path / "evaluation.json").write_bytes(content)
    message = r"evaluation\.json is damaged .*; restore it, or delete .* and evaluate the model again"
    with pytest.raises(ConfigError, match=message):
        write_results(config, answers)


BROKEN_VALUES = [{"problem": -1}, {"problem": "0"}, {"repeat": True}, {"score": "1"}, {"score": float("nan")}]
BROKEN_VALUES += [{"tokens": -1}, {"refused": None}, {"dataset": 3}, {"answer": []}, {"entry": {}}]
BROKEN_VALUES += [{"difficulty": None}, {"more": 1}]


@pytest.mark.parametrize("change", [*BROKEN_VALUES, *DAMAGED], ids=str)
def test_a_damaged_line_of_the_results_is_reported_with_its_number(config, answers, change):
    folder = write_results(config, answers)
    lines = folder.results.read_bytes().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change).encode() if isinstance(change, dict) else change
    folder.results.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ConfigError, match=r"results\.jsonl is damaged in line 3 \(.*\); remove that line"):
        read_answers(folder.results)
    with pytest.raises(ConfigError, match=r"results\.jsonl is damaged \(line 3 is not an answer\); remove these lines"):
        write_results(config, [])


def test_a_full_disk_is_reported_and_earlier_answers_are_kept(tmp_path, answers):
    folder = ResultsFolder(tmp_path / "results")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with folder.writing(IDENTITY) as writer:
        writer.add(answers[0])
        resource.setrlimit(resource.RLIMIT_FSIZE, (folder.results.stat().st_size + 20, limits[1]))
        try:
            with pytest.raises(
                ResultsNotWritten, match=r"cannot write .*results\.jsonl \(.*\); free some space or give another"
            ):
                writer.add(answers[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with folder.writing(IDENTITY) as writer:
        assert writer.answers == answers[:1]


def test_secrets_are_not_written_and_do_not_identify_an_evaluation(config, answers):
    urls = {"base_url": "http://me:pa55word@host/v1", "model_path": "openai://m"}
    command = ["python", "x.py", "base_url=http://me:pa55word@host/v1", "--api-key", "pa55word"]
    folder = write_results(dataclasses.replace(config, **urls), answers, command=command)
    write_report(folder.path)
    assert all(b"pa55word" not in path.read_bytes() for path in folder.path.iterdir())
    assert json.loads(folder.summary.read_text())["config"]["base_url"] == "http://***@host/v1"
    write_results(dataclasses.replace(config, **urls | {"base_url": "http://me:other@host/v1"}), [])
    with pytest.raises(ConfigError, match="which differs in base_url"):
        write_results(dataclasses.replace(config, **urls | {"base_url": "http://me:other@elsewhere/v1"}), [])


WRITER = """
import sys, time
from pathlib import Path
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.evaluation.results import ResultsFolder

with ResultsFolder(Path(sys.argv[1])).writing({"temperature": 0}) as writer:
    print("ready", flush=True)
    for problem in range(len(writer.answers), int(sys.argv[2])):
        text = str(problem) * 500
        writer.add(Answer(problem, 0, "c", "d", 42, problem, str(problem), None, 0.0, None, 5, "stop", None, text))
    writer.finish({})
"""


def test_no_answer_is_lost_or_duplicated_by_a_kill_at_any_moment(tmp_path):
    folder, chance = ResultsFolder(tmp_path / "results"), random.Random(0)
    num_there = 0
    for _ in range(5):
        process = start_writer(folder)
        time.sleep(chance.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        num_before, num_there = num_there, folder.results.read_bytes().count(b"\n")
        assert num_there >= num_before
    assert 0 < num_there < NUM_WRITTEN
    assert start_writer(folder).wait() == 0
    assert [answer.problem for answer in read_answers(folder.results)] == list(range(NUM_WRITTEN))


def start_writer(folder: ResultsFolder) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, folder.path, str(NUM_WRITTEN)]
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_cannot_write_into_one_folder(tmp_path):
    folder = ResultsFolder(tmp_path / "results")
    second = folder.writing(IDENTITY)
    with folder.writing(IDENTITY), pytest.raises(ConfigError, match="another process is writing into"), second:
        pass


def test_results_of_another_evaluation_are_not_mixed_in(config, answers):
    write_results(config, answers)
    write_results(config, [])
    changed = dataclasses.replace(config, max_tokens=32, dtype="bfloat16")
    message = r"another evaluation, which differs in dtype \(\"float32\" there, \"bfloat16\" now\), max_tokens \(16 the"
    with pytest.raises(ConfigError, match=message):
        write_results(changed, [])


def test_results_of_other_weights_are_not_mixed_in(config, answers):
    write_results(config, answers)
    other = dataclasses.replace(plan_of(config), model={"digest": "1" * 32})
    writing = ResultsFolder(config.results_folder).writing(identity_of(config, other))
    with pytest.raises(ConfigError, match="which differs in model"), writing:
        pass


def test_an_evaluation_can_be_continued_with_another_number_of_processes(config, answers):
    write_results(config, answers)
    write_results(dataclasses.replace(config, scorer={"num_workers": 7}, data_parallel_size=4), [])


def test_an_evaluation_cannot_be_continued_with_another_time_limit_for_judging(config, answers):
    write_results(config, answers)
    with pytest.raises(ConfigError, match="which differs in scorer"):
        write_results(dataclasses.replace(config, scorer={"timeout_s": 1}), [])


def test_an_output_folder_that_cannot_be_written_is_refused(config, answers, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write results into .*; give another output_dir"):
        write_results(dataclasses.replace(config, output_dir=tmp_path / "file"), answers)
