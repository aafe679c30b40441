"""The command `rgtrain`: its help is complete and needs no package of the stack, and mistakes are reported at once."""

import os
import subprocess
import sys

import pytest

from rgtrain.commands.command_line import COMMANDS
from rgtrain.config import catalogue
from rgtrain.config.composition import declared_tree, verl_tree
from rgtrain.machine.own_commands import own_command
from rgtrain.models.embedded_model import EMBEDDED_MODEL
from rgtrain.paths import CONFIGS, PROJECT_ROOT

HEAVY = ("torch", "verl", "vllm", "ray", "transformers", "reasoning_gym")
# Runs the command line, then prints the heavy packages that it imported.
PROGRAM = f"""
import sys
from rgtrain.commands.command_line import main
try:
    main()
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
SCRIPTS = {
    "train_grpo.py": "train",
    "train_sft.py": "train-sft",
    "evaluation/evaluate_model.py": "evaluate",
    "evaluation/compare_models.py": "compare",
    "evaluation/run_external.py": "external",
    "utils/audit_datasets.py": "audit",
    "utils/load_fsdp_to_hf.py": "export",
    "utils/make_random_model.py": "random-model",
    "utils/migrate_config.py": "migrate",
    "utils/prepare_model.py": "prepare-model",
    "utils/quickstart.py": "quickstart",
    "utils/report.py": "report",
    "utils/serve_environment.py": "serve-environment",
}


def run(command: list[str], *, cwd, **environment: str) -> subprocess.CompletedProcess[str]:
    # Wide lines, so that no description is broken.
    environment = os.environ | {"COLUMNS": "120", "PYTHONPATH": str(PROJECT_ROOT)} | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def rgtrain(*words: str, cwd, **environment: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "rgtrain", *words], cwd=cwd, **environment)


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_comes_without_the_training_stack(words, tmp_path):
    done = run([sys.executable, "-c", PROGRAM, *words], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert not list(tmp_path.iterdir())


def test_the_help_names_every_command(tmp_path):
    shown = rgtrain("--help", cwd=tmp_path).stdout
    for name, command in COMMANDS.items():
        assert any(line.split()[:1] == [name] and line.endswith(command.summary) for line in shown.splitlines())


def test_without_a_command_the_help_is_shown(tmp_path):
    assert rgtrain(cwd=tmp_path).stdout == rgtrain("--help", cwd=tmp_path).stdout


def test_an_unknown_command_is_answered_with_the_nearest(tmp_path):
    done = rgtrain("trian", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown command 'trian'; did you mean 'train'?")


@pytest.mark.parametrize(("script", "name"), SCRIPTS.items())
def test_a_script_takes_the_arguments_of_its_command(script, name, tmp_path):
    assert set(SCRIPTS.values()) == set(COMMANDS)
    of_script = run([sys.executable, str(PROJECT_ROOT / script), "--help"], cwd=tmp_path)
    assert of_script.returncode == 0
    of_command = rgtrain(name, "--help", cwd=tmp_path).stdout
    # argparse indents by the program's length.
    expected = " ".join(of_command.replace(f"rgtrain {name}", f"python {script}").split())
    assert " ".join(of_script.stdout.split()) == expected


@pytest.mark.parametrize("script", [script for script, name in SCRIPTS.items() if name not in ("external", "compare")])
def test_a_script_prints_its_help_in_a_python_without_any_package(script, tmp_path):
    done = run([sys.executable, "-S", str(PROJECT_ROOT / script), "--help"], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python {script}")


@pytest.mark.parametrize("name", ["--help", "-x", ""])
@pytest.mark.parametrize("command", [["prepare-model"], ["random-model", "--like", "Qwen/Qwen3-4B"]])
def test_an_output_folder_is_no_mistyped_option(command, name, tmp_path):
    done = rgtrain(*command, "--", name, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{name!r} is no folder's name" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_help_of_training_describes_every_key_of_the_project():
    described = {key.path for key in catalogue.documented_keys() if key.description}
    own = [path for path in leaves(declared_tree()) if path not in set(leaves(verl_tree()))]
    assert len(own) > 20
    # A section's description is that of all its keys.
    assert [path for path in own if not any(path == key or path.startswith(f"{key}.") for key in described)] == []


def leaves(tree, path: str = ""):
    """Yield the dotted names of a configuration's values."""
    for name in tree:
        inside = f"{path}.{name}" if path else str(name)
        child = tree._get_node(name)
        if hasattr(child, "keys") and len(child):
            yield from leaves(child, inside)
        else:
            yield inside


def test_the_listed_keys_have_their_defaults():
    tree = declared_tree()
    for key in catalogue.documented_keys():
        node = tree
        for name in key.path.split("."):
            assert name in node, key
            node = node._get_node(name)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("# One. Two.\n", "One."),
        ("# @package _global_\n# Dr. GRPO is\n# long. Two.\nkey: 1\n", "Dr. GRPO is long."),
        ("key: 1\n# Not of the file.\n", ""),
        ("# e.g. rgtrain/a.py (see b): all of it\n", "e.g. rgtrain/a.py (see b): all of it"),
    ],
)
def test_a_description_is_a_whole_sentence(tmp_path, text, first):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    assert catalogue.description(path) == first


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rgtrain ev", {"evaluate"}),
        ("rgtrain ", set(COMMANDS)),
        ("rgtrain train --config-name quickstart algorithm=grp", {"algorithm=grpo", "algorithm=grpo_no_kl"}),
        ("rgtrain train model=models/Smo", {f"model=models/{EMBEDDED_MODEL}"}),
        ("rgtrain train trainer.stop_with", {"trainer.stop_within_s="}),
        ("rgtrain evaluate --con", set()),
    ],
)
def test_words_are_completed(line, expected, tmp_path):
    done = rgtrain("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == expected


def test_bash_completes_after_the_installation(tmp_path):
    program = tmp_path / "rgtrain"
    program.write_text(f"#!{sys.executable}\nfrom rgtrain.commands.command_line import main\nmain()\n")
    program.chmod(0o755)
    script = """
eval "$(rgtrain train --shell-completion install=bash)"
COMP_LINE="rgtrain train --config-name quickstart reward=sol" COMP_CWORD=4
hydra_bash_completion
echo "${COMPREPLY[@]}"
complete -p rgtrain
"""
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = run(["bash", "-c", script], cwd=tmp_path, PATH=path)
    completed, registered = done.stdout.splitlines()
    assert completed == "reward=solved", done.stderr
    assert "-F hydra_bash_completion rgtrain" in registered


def test_hydra_looks_for_a_relative_config_path_in_the_project_and_then_here(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.yaml").write_text("defaults: [/base, /model: smollm2_135m, _self_]\nseed: 7\n")
    for folder, name, seed in (("mine", "own", "7"), ("configs", "quickstart", "1")):
        words = ["--config-path", folder, "--config-name", name, "--cfg", "job", "--package", "seed"]
        done = run([sys.executable, str(PROJECT_ROOT / "train_grpo.py"), *words], cwd=tmp_path)
        assert done.stdout.split() == [seed], done.stderr


def test_a_folder_of_experiments_needs_the_name_of_one(tmp_path):
    done = run([sys.executable, str(PROJECT_ROOT / "train_grpo.py"), "--config-path", "configs"], cwd=tmp_path)
    assert done.returncode == 2
    assert f"--config-path={CONFIGS} is given without an experiment; add --config-name NAME" in done.stderr


@pytest.mark.parametrize("words", [["-m", "rgtrain"], [str(PROJECT_ROOT / "rgtrain" / "__main__.py")]])
def test_the_package_is_run_from_any_folder(words, tmp_path):
    # A module of that name in the package would hide this one.
    (tmp_path / "random.py").write_text("raise SystemExit('not this one')")
    done = run([sys.executable, "-P", *words, "--help"], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_our_own_commands_start_without_an_installation(tmp_path):
    command = own_command("evaluate", "--help")
    done = subprocess.run([command[0], "-S", *command[1:]], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: rgtrain evaluate")
