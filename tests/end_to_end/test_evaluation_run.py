"""Whole evaluations on the command line, with vLLM and a tiny random model."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from support.checkpoint_files import write_checkpoint

from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems import extract_answer, load_entry

DATASETS = [{"dataset": "chain_sum", "size": 6}, {"dataset": "isomorphic_strings", "size": 6}]


def run_cli(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"}
    command = [sys.executable, PROJECT_ROOT / "evaluation" / "evaluate_model.py", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def write_file(folder: Path, **changes) -> Path:
    values = {
        "model_path": "no/model",
        "output_dir": "results",
        "max_tokens": 12,
        # In bf16, which some processors compute, an adapter and its merged model round to different tokens.
        "dtype": "float32",
        "temperature": 1.0,
        "developer_prompt": "direct",
        "eval_repeats": 2,
        "save_metadata": True,
        "save_full_results": True,
        "categories": [{"category": "mixed", "datasets": DATASETS}],
    }
    path = folder / "short.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


class Run:
    """A finished evaluation on the command line, with its output, summary and answers."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.stdout = (folder / "stdout.txt").read_text()
        self.summary = json.loads((folder / "results/short_tiny/summary.json").read_text())
        with (folder / "results/short_tiny/results.jsonl").open() as file:
            self.records = [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def sampled(tiny_model, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("sampled")
    write_file(folder)
    done = run_cli("--config", "short.yaml", "--model", tiny_model, "--inspect-log", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    return Run(folder)


def test_the_log_for_inspect_ai_holds_every_answer(sampled):
    with zipfile.ZipFile(sampled.folder / "results/short_tiny/inspect.eval") as archive:
        names = archive.namelist()
    assert len([name for name in names if name.startswith("samples/")]) == len(sampled.records) == 24


@pytest.fixture(scope="module")
def greedy(several) -> Run:
    return Run(several["whole"])


def test_every_problem_is_answered_eval_repeats_times_in_order(sampled):
    answered = [(record["dataset"], record["index"], record["repeat"]) for record in sampled.records]
    assert answered == [(item["dataset"], i, repeat) for item in DATASETS for i in range(6) for repeat in range(2)]


def test_repeats_are_sampled_independently(sampled):
    texts = [record["completion"] for record in sampled.records]
    assert all(first != second for first, second in zip(texts[::2], texts[1::2], strict=True))


def test_scores_equal_those_of_the_scorer_used_in_training(sampled, scorer):
    for record in sampled.records:
        assert record["answer"] == extract_answer(record["completion"])
        assert record["score"] == scorer.score(record["answer"], load_entry(record["entry"])).accuracy


def test_a_completion_that_reaches_max_tokens_counts_as_truncated(sampled):
    cut = [record["tokens"] == 12 and record["finish_reason"] == "length" for record in sampled.records]
    assert any(cut)
    assert sampled.summary["overall"]["share_truncated"] == sum(cut) / len(cut)


def test_problems_are_those_of_hash_seed_0_with_any_hash_seed_of_the_shell(sampled):
    code = (
        "import sys, json; from rgtrain.problems.evaluation_set import load_evaluation_problems as load\n"
        "print(json.dumps([problem.question for problem in load(sys.argv[1])]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": str(PROJECT_ROOT)}
    command = [sys.executable, "-c", code, sampled.folder / "short.yaml"]
    questions = json.loads(subprocess.check_output(command, env=environment))
    assert [record["question"] for record in sampled.records[::2]] == questions


def test_the_table_and_the_folder_of_the_results_are_printed(sampled):
    lines, folder = sampled.stdout.splitlines(), "results/short_tiny"
    places = [f"results: {folder}", f"report: {folder}/report.html", f"log for inspect_ai: {folder}/inspect.eval"]
    assert lines[-4:] == ["", *places]
    # The second table has pass@2 and majority@2.
    rows = [line.split()[0] for line in lines if line.startswith(("mixed", "overall"))]
    assert rows == ["mixed", "mixed", "overall"] * 2


def test_progress_is_shown_during_generation(sampled):
    assert re.search(
        r"100%.*24/24 answers, +[\d.]+answer/s, [\d.]+ tokens/s, 00:00 left",
        (sampled.folder / "stderr.txt").read_text(),
    )


def test_greedy_repeats_are_generated_once_with_a_notice(greedy):
    assert len(greedy.records) == 12
    assert "not eval_repeats = 3: at temperature 0 all repeats would be the same" in greedy.stdout


def test_both_evaluations_have_the_same_problems(sampled, greedy):
    digests = [[dataset["problems_digest"] for dataset in run.summary["datasets"]] for run in (sampled, greedy)]
    assert digests[0] == digests[1]


def test_a_repeated_command_generates_no_answers(greedy, tiny_model):
    folder = greedy.folder / "results/short_tiny"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json*")}
    arguments = ["--config", "short.yaml", "--model", tiny_model, "temperature=0", "eval_repeats=3"]
    done = run_cli(*arguments, cwd=greedy.folder)
    assert (done.returncode, "already finished" in done.stdout) == (0, True)
    assert done.stdout.splitlines()[-6:] == greedy.stdout.splitlines()[-6:]
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json*")} == before


def completions(folder: Path) -> list[str]:
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [json.loads(line)["completion"] for line in lines]


# Runs the command line once per folder of its second argument, in one process that imports vLLM once. The run in
# `interrupted` finds the files of that in `whole` as if it had been killed while it wrote its seventh answer.
SEVERAL = """
import contextlib, json, os, pathlib, runpy, shutil, sys
cli, evaluations = sys.argv[1], json.loads(sys.argv[2])
for folder, arguments in evaluations:
    os.chdir(folder)
    if os.path.basename(folder) == "interrupted":
        whole, partial = pathlib.Path("../whole/results/short_tiny"), pathlib.Path("results/short_tiny")
        partial.mkdir(parents=True)
        shutil.copy(whole / "evaluation.json", partial)
        lines = (whole / "results.jsonl").read_bytes().splitlines(keepends=True)
        (partial / "results.jsonl").write_bytes(b"".join([*lines[7:], *lines[:1]]) + lines[1][:50])
    sys.argv = [cli, *arguments]
    with open("stdout.txt", "w") as file, contextlib.redirect_stdout(file):
        runpy.run_path(cli, run_name="__main__")
"""


@pytest.fixture(scope="module")
def several(tiny_model, tmp_path_factory) -> dict[str, Path]:
    """Return the folders of greedy evaluations of the model, of an interrupted run and of other forms of the model."""
    base = tmp_path_factory.mktemp("several")
    adapter, merged = make_adapter(tiny_model, base)
    models = {
        "whole": tiny_model,
        "interrupted": tiny_model,
        "sharded in two copies": make_sharded_checkpoint(tiny_model, base / "global_step_7"),
        "adapter": adapter,
        "merged": merged,
    }
    evaluations = []
    for name, model in models.items():
        folder = base / name
        folder.mkdir()
        write_file(folder)
        arguments = ["--config", "short.yaml", "--model", str(model), "temperature=0", "eval_repeats=3"]
        evaluations.append((str(folder), [*arguments, *(["data_parallel_size=2"] if "copies" in name else [])]))
    command = [
        sys.executable,
        "-c",
        SEVERAL,
        PROJECT_ROOT / "evaluation" / "evaluate_model.py",
        json.dumps(evaluations),
    ]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONHASHSEED": "0"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return {name: base / name for name in models}


@pytest.fixture(scope="module")
def variants(several) -> dict[str, Path]:
    """Return the results folders of the evaluations in `several`."""
    return {name: next(folder.glob("results/*")) for name, folder in several.items()}


def make_sharded_checkpoint(model: Path, step: Path) -> Path:
    from transformers import AutoModelForCausalLM

    actor = write_checkpoint(step, AutoModelForCausalLM.from_pretrained(model), world_size=2)
    shutil.copytree(model, actor / "huggingface", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    return step


def make_adapter(model: Path, folder: Path) -> tuple[Path, Path]:
    """Return the folders of a random adapter and of the model with the adapter merged into it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    adapted.save_pretrained(folder / "adapter_only")
    adapted.merge_and_unload().save_pretrained(folder / "merged_model")
    AutoTokenizer.from_pretrained(model).save_pretrained(folder / "merged_model")
    return folder / "adapter_only", folder / "merged_model"


def test_a_killed_and_resumed_run_has_the_results_of_an_uninterrupted_one(greedy, variants):
    whole, continued = greedy.folder / "results/short_tiny", variants["interrupted"]
    assert "continuing with 6 answers that are there already" in (continued.parents[1] / "stdout.txt").read_text()
    assert (continued / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()
    numbers = [json.loads((folder / "summary.json").read_text())["overall"] for folder in (whole, continued)]
    assert numbers[0] == numbers[1]


def test_two_copies_of_a_sharded_checkpoint_answer_like_one_of_its_model(greedy, variants):
    assert completions(variants["sharded in two copies"]) == completions(greedy.folder / "results/short_tiny")


def test_an_adapter_answers_like_the_merged_model(greedy, variants):
    of_adapter = completions(variants["adapter"])
    assert of_adapter == completions(variants["merged"])
    assert of_adapter != completions(greedy.folder / "results/short_tiny")


def test_an_unusable_configuration_gives_one_line_and_exit_code_2(tmp_path):
    done = run_cli("--config", write_file(tmp_path, max_token=5), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown key 'max_token'")
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["short.yaml"]
