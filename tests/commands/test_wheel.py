"""A wheel that is installed into an empty environment works from an empty folder.

The environment finds the installed training stack by a .pth file, so that nothing is downloaded.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from support.chat_server import KEY, MODEL, serving
from support.checkpoint_files import tiny_model as tiny_llama
from support.checkpoint_files import write_checkpoint

from rgtrain.paths import PROJECT_ROOT

SOURCES = ("rgtrain", "configs", "evaluation", "pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE")
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, because a build writes into its source."""
    source = tmp_path_factory.mktemp("source")
    for name in (*SOURCES, *(path.name for path in PROJECT_ROOT.glob("requirements*.txt"))):
        original = PROJECT_ROOT / name
        if original.is_dir():
            shutil.copytree(original, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(original, source / name)
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*PIP, "wheel", *options], check=True)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def program(wheel, tmp_path_factory) -> Path:
    """The console script in its environment."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    install = [*PIP, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    # Without PYTHONPATH, in which pip would find the tree.
    subprocess.run(install, check=True, env=clean_environment())
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "stack.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return environment / "bin" / "rgtrain"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An empty folder, in which all tests of this file start their commands."""
    return tmp_path_factory.mktemp("empty")


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def run(program: Path, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(program), *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=clean_environment(), capture_output=True, text=True, timeout=600)


def test_the_wheel_carries_every_configuration_and_evaluation_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        carried = {name: archive.read(name) for name in archive.namelist()}
    for top in ("configs", "evaluation"):
        files = [*(PROJECT_ROOT / top).rglob("*.yaml"), *(PROJECT_ROOT / top).rglob("tasks.py")]
        assert len(files) > 10
        for file in files:
            assert carried[f"rgtrain/carried/{file.relative_to(PROJECT_ROOT)}"] == file.read_bytes()
    assert "rgtrain/problems/audit/data/audit.json" in carried
    assert any(name.startswith("rgtrain/reporting/templates/") for name in carried)
    assert not any(name.split("/")[0] in ("tests", "benchmarks", "utils", "configs", "evaluation") for name in carried)


def test_the_metadata_holds_the_requirements(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
        licences = [name for name in archive.namelist() if ".dist-info/licenses/" in name]
    assert sorted(name.rpartition("/")[2] for name in licences) == ["LICENSE", "NOTICE"]
    assert "License-Expression: Apache-2.0" in lines
    for file, extra in (("", ""), ("-cpu", "cpu"), ("-cuda", "cuda"), ("-eval", "eval"), ("-test", "test")):
        marker = f'; extra == "{extra}"' if extra else ""
        for line in (PROJECT_ROOT / f"requirements{file}.txt").read_text().splitlines():
            if requirement := line.partition("#")[0].strip():
                assert any(
                    found.replace(" ", "") == f"Requires-Dist:{requirement}{marker}".replace(" ", "") for found in lines
                )


def test_the_version_is_the_packages(program, folder):
    done = run(program, "--version", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] == "rgtrain"


def test_a_preflight_finds_everything_in_order(program, folder, tiny_model):
    words = ["--config-name", "quickstart", "preflight=only", f"actor_rollout_ref.model.path={tiny_model}"]
    done = run(program, "train", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []


# The setup of a checkout unpacks the model with the same function.
@pytest.mark.slow
def test_a_preflight_unpacks_the_model_on_first_use(program, folder):
    done = run(program, "train", "--config-name", "quickstart", "preflight=only", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "unpacking the embedded model" in done.stdout
    assert "models" in [path.name for path in folder.iterdir()]
    assert (folder / "models" / "SmolLM2-135M-Instruct" / "model.safetensors").stat().st_size > 2e8


def test_a_wrong_evaluation_is_refused(program, folder):
    done = run(program, "evaluate", "--config", "evaluation/quickstart.yaml", "max_token=5", cwd=folder)
    assert done.returncode == 2
    assert "unknown key 'max_token'" in done.stderr
    assert "unpacking" not in done.stdout


def test_evaluations_run_and_are_compared(program, folder, monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    with serving() as server:
        for name in ("first", "second"):
            words = ["--config", "evaluation/categories/arithmetic.yaml", "--model", f"openai://{MODEL}"]
            words += [f"output_dir=outputs/{name}", f"base_url={server.base_url}", "max_tokens=8"]
            words += ["categories=[{category: a, datasets: [{dataset: chain_sum, size: 4}]}]"]
            done = run(program, "evaluate", *words, "endpoint={api_key_env: TEST_KEY}", cwd=folder)
            assert done.returncode == 0, done.stderr
    results = sorted(folder.glob("outputs/*/*/summary.json"))
    assert len(results) == 2
    assert json.loads(results[0].read_text())
    done = run(program, "compare", *(path.parent for path in results), "--html", "outputs/compared.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "chain_sum" in done.stdout
    assert (folder / "outputs" / "compared.html").is_file()


def test_a_checkpoint_is_exported(program, folder):
    write_checkpoint(folder / "runs" / "global_step_1", tiny_llama(), world_size=2)
    done = run(program, "export", "runs/global_step_1", "runs/exported", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "exported" / "model.safetensors").is_file()


def test_datasets_are_audited_into_a_folder_of_the_users(program, folder):
    words = ["--datasets", "gcd", "--items", "4", "--seeds", "0", "--budget", "1"]
    refused = run(program, "audit", *words, cwd=folder)
    assert refused.returncode == 2
    assert "name another folder with --out DIR" in refused.stderr
    done = run(program, "audit", *words, "--out", "outputs/audit", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "outputs" / "audit" / "audit.json").is_file()


def test_the_quickstart_starts_the_installed_commands(program, folder):
    done = run(program, "quickstart", "data.held_out_files=[evaluation/none.yaml]", cwd=folder)
    assert done.returncode == 2
    assert "1/4 train ended with exit code 2" in done.stderr
    assert "data.held_out_files names evaluation/none.yaml" in done.stderr


@pytest.mark.slow
def test_the_quickstart_trains_exports_and_evaluates(program, folder):
    words = ["trainer.total_training_steps=2", "trainer.save_freq=1", "data.validation_size=4"]
    evaluation = yaml.safe_load((PROJECT_ROOT / "evaluation" / "quickstart.yaml").read_text())
    for dataset in evaluation["categories"][0]["datasets"]:
        dataset["size"] = 4
    (folder / "few.yaml").write_text(yaml.safe_dump(evaluation))
    done = run(program, "quickstart", *words, "data.held_out_files=[few.yaml]", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "quickstart" / "hf_step_2" / "model.safetensors").is_file()
    assert "after" in done.stdout
    # The current folder may be another project's repository.
    started = json.loads((folder / "runs" / "quickstart" / "provenance.jsonl").read_text().splitlines()[0])
    assert started["commit"] is None


@pytest.mark.slow
def test_the_declared_replacements_apply(program, folder):
    command = [program.with_name("python"), "-m", "rgtrain.upstream"]
    assert run(command[0], *command[1:], cwd=folder).returncode == 0
