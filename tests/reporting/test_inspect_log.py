"""The log for inspect_ai holds the evaluation's answers and figures, and the package itself reads it."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tracemalloc
import zipfile

import pytest
from support.evaluated import SCORES, answers_of, small_config, write_results

from rgtrain.errors import ConfigError
from rgtrain.reporting.inspect_log import write_inspect_log

# In a separate process, because importing the package replaces parts of asyncio.
READ = """
import json, sys
from inspect_ai.log import read_eval_log, read_eval_log_sample, read_eval_log_samples, read_eval_log_sample_summaries
path = sys.argv[1]
log = read_eval_log(path)
print(json.dumps({
    "log": json.loads(log.model_dump_json()),
    "header": json.loads(read_eval_log(path, header_only=True).model_dump_json()),
    "listed": [json.loads(one.model_dump_json()) for one in read_eval_log_sample_summaries(path)],
    "streamed": [one.id for one in read_eval_log_samples(path)],
    "one": json.loads(read_eval_log_sample(path, id="00001-chain_sum", epoch=2).model_dump_json()),
}))
"""
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("inspect_ai") is None,
    reason="inspect_ai is not installed: pip install --no-deps -r requirements-inspect.txt",
)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Return the log of an evaluation with two answers to each of six problems, some of them unusual."""
    folder = tmp_path_factory.mktemp("evaluation")
    config = small_config(folder, temperature=1.0, eval_repeats=2, save_metadata=True)
    answers = answers_of(config, SCORES) + answers_of(config, SCORES, repeat=1)
    unusual = {
        (0, 1): {"refused": "content policy", "score": 0.0, "answer": None, "completion": "", "tokens": None},
        (1, 0): {"finish_reason": "length", "tokens": None},
        (2, 0): {"answer": None, "completion": "\ud800 </script>\x1b[31m \u2028", "finish_reason": "abort"},
        (3, 1): {"score": 0.0, "error": "timeout"},
    }
    answers = [dataclasses.replace(answer, **unusual.get(answer.key, {})) for answer in answers]
    return write_inspect_log(write_results(config, answers).path)


@pytest.fixture(scope="module")
def read(log):
    """Return the log as the package reads it, as JSON values."""
    done = subprocess.run([sys.executable, "-c", READ, str(log)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def entries(log) -> dict[str, object]:
    with zipfile.ZipFile(log) as archive:
        return {name: json.loads(archive.read(name)) for name in archive.namelist()}


def test_every_answer_is_a_sample_with_the_repeat_as_epoch(log):
    names = [name for name in entries(log) if name.startswith("samples/")]
    assert names[:3] == [
        "samples/00000-chain_sum_epoch_1.json",
        "samples/00000-chain_sum_epoch_2.json",
        "samples/00001-chain_sum_epoch_1.json",
    ]
    assert len(names) == 12


def test_the_figures_are_those_of_the_summary(log):
    summary = json.loads((log.parent / "summary.json").read_text())
    scores = {score["name"]: score for score in entries(log)["header.json"]["results"]["scores"]}
    assert list(scores) == [
        "right", "score", "right (pass@2)", "right (majority@2)", "arithmetic/chain_sum", "words/spell_backward"
    ]  # fmt: skip
    right = scores["right"]["metrics"]
    assert right["accuracy"]["value"] == summary["overall"]["strict_accuracy"]
    assert right["stderr"]["value"] == summary["overall"]["strict_accuracy_error"]
    assert scores["right (pass@2)"]["metrics"]["accuracy"]["value"] == summary["overall"]["pass_at"]["2"]["mean"]
    sums = scores["arithmetic/chain_sum"]
    assert sums["metrics"]["accuracy"]["value"] == summary["datasets"][0]["strict_accuracy"]
    assert sums["metadata"]["size"] == 4


def test_reductions_average_the_repeats_of_a_problem(log):
    right, score = entries(log)["reductions.json"]
    assert (right["scorer"], score["scorer"]) == ("right", "score")
    assert [one["value"] for one in right["samples"]] == [1.0, 0.0, 0.0, 0.5, 1.0, 0.0]


def test_the_same_evaluation_gives_the_same_log(log):
    content = log.read_bytes()
    assert write_inspect_log(log.parent).read_bytes() == content
    assert [path.name for path in log.parent.iterdir() if "inspect" in path.name] == ["inspect.eval"]


@needs_package
def test_inspect_ai_reads_the_header(read):
    for header in (read["log"], read["header"]):
        assert (header["status"], header["version"]) == ("success", 2)
        spec = header["eval"]
        assert (spec["task"], spec["model"], spec["config"]["epochs"]) == ("quick", "models/m", 2)
        assert spec["model_generate_config"] | {"max_tokens": 16, "temperature": 1.0} == spec["model_generate_config"]
        assert spec["model_args"] == {"digest": "0" * 32}
        assert spec["dataset"]["samples"] == len(spec["dataset"]["sample_ids"]) == 6
        assert spec["metadata"]["datasets"][1]["dataset"] == "spell_backward"
        results = header["results"]
        assert results["headline"]["score"] == spec["headline_metric"]["score"] == "right"
        assert (results["total_samples"], results["completed_samples"]) == (12, 11)
        assert header["stats"]["model_usage"]["models/m"]["output_tokens"] == 50


@needs_package
def test_inspect_ai_reads_every_sample(read):
    samples = {(one["id"], one["epoch"]): one for one in read["log"]["samples"]}
    assert len(samples) == len(read["listed"]) == len(read["streamed"]) == 12
    first = samples["00000-chain_sum", 1]
    assert {name: score["value"] for name, score in first["scores"].items()} == {"right": "C", "score": 1}
    assert first["target"] and first["input"]
    assert first["output"]["completion"] == "<answer>1</answer>"
    assert first["output"]["choices"][0]["stop_reason"] == "stop"
    assert [message["role"] for message in first["messages"]][-2:] == ["user", "assistant"]
    assert first["model_usage"]["models/m"]["output_tokens"] == 5
    assert first["metadata"]["dataset"] == "chain_sum"
    assert samples["00000-chain_sum", 2]["error"]["message"] == "content policy"
    assert samples["00000-chain_sum", 2]["scores"] == {}
    cut = samples["00001-chain_sum", 1]
    assert (cut["output"]["choices"][0]["stop_reason"], cut["model_usage"]) == ("max_tokens", {})
    strange = samples["00002-chain_sum", 1]
    assert strange["output"]["completion"] == "? </script>\x1b[31m \u2028"
    assert strange["scores"]["right"]["explanation"] == "no answer could be extracted"
    assert samples["00003-chain_sum", 2]["scores"]["right"]["explanation"] == "could not be judged: timeout"
    assert read["one"] == samples["00001-chain_sum", 2]
    assert {(one["id"], one["epoch"]) for one in read["listed"]} == set(samples)


def test_texts_that_are_not_kept_are_named(tmp_path):
    config = small_config(tmp_path, save_full_results=False, save_metadata=False)
    log = write_inspect_log(write_results(config, answers_of(config, SCORES)).path)
    sample = entries(log)["samples/00000-chain_sum_epoch_1.json"]
    assert "save_full_results" in sample["input"]
    assert "save_full_results" in sample["output"]["completion"]
    assert sample["target"] == ""


def test_an_evaluation_that_is_not_finished_or_is_damaged_has_no_log(tmp_path):
    with pytest.raises(ConfigError, match="not a finished evaluation"):
        write_inspect_log(tmp_path)
    config = small_config(tmp_path)
    folder = write_results(config, answers_of(config, SCORES))
    folder.results.write_bytes(folder.results.read_bytes() + b"{}\n")
    with pytest.raises(ConfigError, match="damaged in line 7"):
        write_inspect_log(folder.path)
    folder.summary.write_text("{}")
    with pytest.raises(ConfigError, match="summary.json is damaged"):
        write_inspect_log(folder.path)
    assert not (folder.path / "inspect.eval").exists()


def test_memory_does_not_grow_with_the_answers(tmp_path):
    config = small_config(tmp_path)
    folder = write_results(config, answers_of(config, SCORES))
    peaks = []
    for num_repeats in (1, 20):
        answers = [
            dataclasses.replace(answer, repeat=repeat, completion="x" * 20_000)
            for answer in answers_of(config, SCORES)
            for repeat in range(num_repeats)
        ]
        folder.results.write_bytes(b"".join(answer.to_line() for answer in answers))
        tracemalloc.start()
        write_inspect_log(folder.path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 19 repeats of 6 answers more have 2.3 MB of text.
    assert peaks[1] - peaks[0] < 500_000
