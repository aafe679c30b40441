"""The results folder: no answer is lost, duplicated or mixed with those of another evaluation."""

import dataclasses
import json
import os
import random
import re
import resource
import signal
import time

import pytest
from support.evaluated import plan_of, write_results

from rgtrain.errors import ConfigError
from rgtrain.evaluation.engine_interface import Completion
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.evaluation.received_completions import ReceivedCompletion
from rgtrain.evaluation.results import ResultsFolder, ResultsNotWritten, read_answers
from rgtrain.evaluation.summary import identity_of
from rgtrain.reporting.evaluation_report import write_report

IDENTITY = {"temperature": 0}
NUM_WRITTEN = 20_000


def test_an_incomplete_last_line_is_reported_and_dropped(tmp_path, answers):
    folder = ResultsFolder(tmp_path / "results")
    with folder.writing(IDENTITY) as writer:
        writer.add(answers[0])
        writer.add(answers[1])
    whole = folder.results.read_bytes()
    folder.results.write_bytes(whole[:-20])
    with folder.writing(IDENTITY) as writer:
        assert writer.answers == answers[:1]
        assert re.fullmatch(r"line 2 of .*results\.jsonl is not usable \(.*\)", *writer.dropped)
        writer.add(answers[1])
    assert folder.results.read_bytes() == whole


def test_a_last_line_without_its_newline_is_dropped(tmp_path, answers):
    folder = ResultsFolder(tmp_path / "results")
    with folder.writing(IDENTITY) as writer:
        writer.add(answers[0])
    folder.results.write_bytes(folder.results.read_bytes()[:-1])
    with folder.writing(IDENTITY) as writer:
        assert (writer.answers, len(writer.dropped)) == ([], 1)


def test_a_repeated_answer_is_dropped(tmp_path, answers):
    folder = ResultsFolder(tmp_path / "results")
    with folder.writing(IDENTITY) as writer:
        for answer in (answers[0], answers[0], answers[1]):
            writer.add(answer)
    with folder.writing(IDENTITY) as writer:
        assert writer.answers == answers[:2]
        assert writer.dropped == [f"line 2 of {folder.results} is not usable (it repeats an earlier answer)"]


# Contents of files damaged by a power loss, a full disk, another program or an editor.
DAMAGED = [b"", b"{", b"[]", b"null", b"5", b"\0" * 100, b"\xff\xfe{}", b"[" * 200_000, b'{"a": %s}' % (b"9" * 10_000)]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_evaluation_json_is_reported_with_the_fix(config, answers, content):
    folder = write_results(config, answers)
    (folder.path / "evaluation.json").write_bytes(content)
    message = r"evaluation\.json is damaged .*; restore it, or delete .* and evaluate the model again"
    with pytest.raises(ConfigError, match=message):
        write_results(config, answers)


@pytest.mark.parametrize("damage", [b"", b"{}", b"[" * 200_000])
def test_a_damaged_line_of_the_results_is_reported_with_its_number_and_set_aside(config, answers, damage):
    folder = write_results(config, answers)
    whole = folder.results.read_bytes()
    lines = whole.splitlines(keepends=True)
    folder.results.write_bytes(whole.replace(lines[2], damage + b"\n"))
    with pytest.raises(ConfigError, match=r"results\.jsonl is damaged in line 3 \(.*\); the same evaluate_model\.py"):
        read_answers(folder.results)
    with folder.writing(identity_of(config, plan_of(config))) as writer:
        assert writer.answers == [*answers[:2], *answers[3:]]
        assert re.fullmatch(r"line 3 of .*results\.jsonl is not usable \(.{1,200}\)", *writer.dropped)
    assert folder.damaged.read_bytes() == damage + b"\n"
    assert folder.results.read_bytes() == whole.replace(lines[2], b"")


def test_a_damaged_line_of_the_received_completions_is_reported_and_set_aside(tmp_path):
    folder = ResultsFolder(tmp_path / "results")
    with folder.writing(IDENTITY) as writer:
        for problem in range(2):
            writer.receive(ReceivedCompletion(problem, 0, "f", Completion("text", None, None)))
    lines = folder.received.read_bytes().splitlines(keepends=True)
    folder.received.write_bytes(lines[0].replace(b'"text": "text"', b'"text": 0') + lines[1])
    with folder.writing(IDENTITY) as writer:
        assert [completion.problem for completion in writer.unjudged] == [1]
        assert writer.dropped == [f"line 1 of {folder.received} is not usable (text is 0)"]


def test_completions_are_kept_until_they_are_judged(tmp_path, answers):
    folder = ResultsFolder(tmp_path / "results")
    text = 'line\nnext\r\x00\x1b[2J \ud800 \u2028 "quoted" é'
    completions = [
        ReceivedCompletion(*answers[number].key, answers[number].fingerprint, Completion(text, None, None, "why", "no"))
        for number in range(2)
    ]
    with folder.writing(IDENTITY) as writer:
        for completion in completions:
            writer.receive(completion)
        writer.add(answers[0])
    with folder.writing(IDENTITY) as writer:
        assert (writer.answers, writer.unjudged) == ([answers[0]], [completions[1]])
        writer.add(answers[1])
        assert folder.received.read_bytes() == b""
    assert not folder.received.exists()


@pytest.mark.parametrize("kind", ["results", "received"])
def test_a_full_disk_is_reported_and_earlier_answers_are_kept(tmp_path, answers, kind):
    folder = ResultsFolder(tmp_path / "results")
    completions = [ReceivedCompletion(*answer.key, answer.fingerprint, Completion("x", 1, None)) for answer in answers]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with folder.writing(IDENTITY) as writer:
        writer.add(answers[0])
        writer.receive(completions[1])
        file, write = {
            "results": (folder.results, lambda: writer.add(answers[1])),
            "received": (folder.received, lambda: writer.receive(completions[2])),
        }[kind]
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 20, limits[1]))
        try:
            with pytest.raises(
                ResultsNotWritten, match=r"cannot write .*\.jsonl \(.*\); free some space or give another"
            ):
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with folder.writing(IDENTITY) as writer:
        assert (writer.answers, writer.unjudged) == (answers[:1], completions[1:2])


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


def test_no_answer_is_lost_or_duplicated_by_a_kill_at_any_moment(tmp_path):
    folder, chance = ResultsFolder(tmp_path / "results"), random.Random(0)
    num_there = 0
    for _ in range(5):
        process = start_writer(folder)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(process, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        num_before, num_there = num_there, folder.results.read_bytes().count(b"\n")
        assert num_there >= num_before
    assert 0 < num_there < NUM_WRITTEN
    assert os.waitpid(start_writer(folder), 0)[1] == 0
    assert [answer.problem for answer in read_answers(folder.results)] == list(range(NUM_WRITTEN))


def start_writer(folder: ResultsFolder) -> int:
    """Start to write answers in a fork, wait until it has opened the folder, and return its process id."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        try:
            write_answers(folder, writer)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    assert os.read(reader, 1) == b"."
    os.close(reader)
    return pid


def write_answers(folder: ResultsFolder, ready: int) -> None:
    with folder.writing(IDENTITY) as writer:
        os.write(ready, b".")
        done = {record.key for record in writer.answers}
        for problem in range(NUM_WRITTEN):
            text = str(problem) * 500
            answer = Answer(problem, 0, "c", "d", 42, problem, str(problem), None, 0.0, None, 5, "stop", None, text)
            if answer.key not in done:
                writer.receive(ReceivedCompletion(problem, 0, str(problem), Completion(text, 5, "stop")))
                writer.add(answer)
        writer.finish({})


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


def test_a_start_that_got_no_answer_does_not_keep_another_evaluation_out_of_the_folder(config):
    folder = ResultsFolder(config.results_folder)
    with folder.writing(identity_of(config, plan_of(config))):
        pass
    changed = dataclasses.replace(config, max_tokens=32)
    with folder.writing(identity_of(changed, plan_of(changed))) as writer:
        writer.receive(ReceivedCompletion(0, 0, "f", Completion("x", 1, None)))
    writing = folder.writing(identity_of(config, plan_of(config)))
    with pytest.raises(ConfigError, match=r"differs in max_tokens \(32 there, 16 now\)"), writing:
        pass


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
