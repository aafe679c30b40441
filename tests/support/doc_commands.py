"""Check the code blocks of Markdown files: commands, configurations, evaluation files and Python.

Commands of this project are read by their real parsers, and training configurations are composed and checked as a start
does. Commands of other programs have to be on a list here, and files of the tree that they name have to exist.
"""

import ast
import fnmatch
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import yaml
from omegaconf import OmegaConf
from support.example_package import example_package_importable
from support.experiments import composed
from support.links import tracked_files
from support.parse_only import NO_PARSER
from support.shell_text import SUBSTITUTED, Command, parse_commands

from rgtrain.config.catalogue import GROUPS
from rgtrain.config.composition import declared_tree
from rgtrain.config.default_experiment import default_experiment
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.errors import ConfigError
from rgtrain.evaluation.evaluation_config import KEYS, load_config, parse_overrides
from rgtrain.paths import CONFIGS, PROJECT_ROOT
from rgtrain.preflight.checks import collect_errors

SHELL = ("bash", "sh", "shell", "console")
YAML = ("yaml", "yml")
PYTHON = ("python", "py")
# Files that commands make, and places outside the tree.
_MADE = ("runs/", "outputs/", "models/", "my_", "my-", "../", "/", "~", "$", SUBSTITUTED)
_PLACEHOLDER = re.compile(r"(?:^|[/_.=-])[A-Z][A-Z0-9_]{1,}(?:$|[/_.-])")
_EMBEDDED_MODEL = PROJECT_ROOT / "models" / "SmolLM2-135M-Instruct"
_SLURM_SCRIPT = "cluster/slurm.sbatch"
_TRAIN, _EVALUATE = "train_grpo.py", "evaluation/evaluate_model.py"
# The scripts that take the same words as these sub-commands of `rgtrain`.
SCRIPTS = {
    "train": _TRAIN,
    "train-sft": "train_sft.py",
    "evaluate": _EVALUATE,
    "export": "utils/load_fsdp_to_hf.py",
    "compare": "evaluation/compare_models.py",
    "external": "evaluation/run_external.py",
    "audit": "utils/audit_datasets.py",
    "quickstart": "utils/quickstart.py",
    "report": "utils/report.py",
    "serve-environment": "utils/serve_environment.py",
    "migrate": "utils/migrate_config.py",
    "prepare-model": "utils/prepare_model.py",
    "random-model": "utils/make_random_model.py",
}


class Fault(Exception):
    """A code block does not work. The message names the mistake."""


class Block(NamedTuple):
    """A fenced code block: its file, the line of its first line of text, its language and its text."""

    path: Path
    line: int
    language: str
    text: str


def blocks(path: Path) -> Iterator[Block]:
    """Yield the fenced code blocks of a Markdown file, without their indentation."""
    fence, language, first, lines = "", "", 0, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        marker = re.match(r"\s*(`{3,}|~{3,})\s*(\S*)", line)
        if not fence and marker:
            fence, language, first, lines = marker[1], marker[2].lower().strip("{}."), number + 1, []
        elif fence and marker and marker[1].startswith(fence) and line.strip() == marker[1]:
            yield Block(path, first, language, textwrap.dedent("\n".join(lines)))
            fence = ""
        elif fence:
            lines.append(line)
    if fence:
        raise Fault(f"{path.name}:{first}: no line closes this code block")


def check_block(block: Block) -> None:
    """Raise Fault if a block of shell, YAML or Python does not work. Blocks of other languages are output."""
    if block.language in SHELL:
        with example_package_importable():
            check_shell(block.text, inside=block.path)
    elif block.language in YAML:
        with example_package_importable(), _modules_of(block.path, block.text):
            check_yaml(block.text)
    elif block.language in PYTHON:
        check_python(block.text)


def check_shell(text: str, *, inside: Path | None = None) -> None:
    """Raise Fault for the first command of shell text that does not work.

    Args:
        text: The shell text.
        inside: The Markdown file, whose other blocks may define functions.
    """
    commands, functions = _parsed(text)
    if inside is not None:
        for block in blocks(inside):
            if block.language in SHELL:
                functions |= _parsed(block.text)[1]
    for command in commands:
        for file in command.inputs:
            _must_exist(file)
        if command.words[0] not in functions:
            try:
                check_words(command.words)
            except Fault as fault:
                raise Fault(f"line {command.line}: {' '.join(command.words)[:100]}: {fault}") from fault


def check_words(words: Sequence[str]) -> None:
    """Raise Fault if a command does not work, as far as that can be said without running it."""
    program, arguments = _program(words[0]), list(words[1:])
    if program not in PROGRAMS:
        raise Fault(f"{program} is an unknown program; add it to PROGRAMS in tests/support/doc_commands.py")
    PROGRAMS[program](arguments)


def check_training(words: Sequence[str], *, config_dir: Path | None = None) -> None:
    """Compose the configuration that the words of train_grpo.py describe, and check it as a start does.

    Args:
        words: The words after train_grpo.py.
        config_dir: A folder to take the experiment from instead of configs/.

    Raises:
        Fault: An option, experiment, choice, key or value is unknown or unusable.
    """
    from hydra._internal.utils import get_args_parser

    if {"--help", "-h"} & set(words):
        return
    try:
        with _quiet():
            arguments = get_args_parser().parse_args(list(words))
    except SystemExit as error:
        raise Fault("Hydra refuses these options") from error
    if arguments.hydra_help or arguments.info or arguments.shell_completion:
        return
    folder = config_dir or CONFIGS
    if arguments.config_path or arguments.config_dir:
        folder = PROJECT_ROOT / (arguments.config_path or arguments.config_dir)
        if not folder.is_dir():
            # A folder of the reader's: only the other words can be checked, with the quickstart.
            if not _is_made(f"{arguments.config_path or arguments.config_dir}/"):
                raise Fault(f"there is no folder {folder}")
            folder, arguments.config_name = CONFIGS, "quickstart"
    name = arguments.config_name or default_experiment()
    for overrides in _jobs(arguments.overrides) if arguments.multirun else [arguments.overrides]:
        _check_composed(name, tuple(overrides), folder)


@cache
def _check_composed(name: str, overrides: tuple[str, ...], folder: Path) -> None:
    with tempfile.TemporaryDirectory() as run_dir:
        try:
            plain = plain_config(composed(*overrides, f"run_dir={run_dir}", name=name, config_dir=folder))
        except Exception as error:
            raise Fault(f"{name} does not compose: {error}") from error
        model = plain["actor_rollout_ref"]["model"]
        if not Path(model["path"]).exists() and (_is_made(model["path"]) or model["path"].count("/") != 1):
            # A model of the reader's.
            model["path"] = str(_EMBEDDED_MODEL)
            # verl derives this name from the path.
            plain["actor_rollout_ref"]["rollout"]["prometheus"]["served_model_name"] = model["path"]
            plain["model"]["shape"] = None
        if plain["trainer"]["resume_from_path"] and _is_made(plain["trainer"]["resume_from_path"]):
            plain["trainer"] |= {"resume_mode": "auto", "resume_from_path": None}
        try:
            # The services of the reader's reward functions do not run here.
            with patch("rgtrain.preflight.checks._try_own_rewards"):
                wrong, _ = collect_errors(RunConfig.of(plain))
        except ConfigError as error:
            wrong = [str(error)]
    if wrong:
        raise Fault("; ".join(wrong))


def _jobs(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(list(overrides)), None)
    return jobs


def check_evaluation(words: Sequence[str]) -> None:
    """Parse the words of evaluate_model.py with its own parser and load the evaluation that they describe."""
    given = parse_with_script(_EVALUATE, words)
    if given is None:
        return
    config = str(given["config"])
    if _is_made(config) and not Path(config).is_file():
        config = "evaluation/quick.yaml"
    _must_exist(config)
    try:
        overrides = parse_overrides(given["overrides"])
    except ConfigError as error:
        raise Fault(str(error)) from error
    overrides |= {key: given[key] for key in ("model_path", "output_dir") if given.get(key) is not None}
    load_evaluation(PROJECT_ROOT / config, overrides, category=given.get("category"))


def load_evaluation(path: Path, overrides: Mapping[str, Any], *, category: str | None = None) -> None:
    """Load an evaluation file. A model that is not on this machine is replaced, and GPUs are supposed.

    Raises:
        Fault: A key or a value is unknown or unusable.
    """
    given = dict(overrides)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in ("model_path", "base_model"):
        model = str(given.get(key) or raw.get(key) or "")
        if model and "://" not in model and _is_made(model) and not Path(model).exists():
            given[key] = "Qwen/Qwen2.5-3B-Instruct"
    try:
        with patch("rgtrain.evaluation.evaluation_config.num_gpus", return_value=64):
            load_config(path, overrides=given, category=category)
    except ConfigError as error:
        raise Fault(str(error)) from error


@cache
def _parse(script: str, words: tuple[str, ...]) -> tuple[int, str, str]:
    command = [sys.executable, str(PROJECT_ROOT / "tests" / "support" / "parse_only.py"), str(PROJECT_ROOT / script)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*command, *words], capture_output=True, text=True, cwd=folder, env=environment)
    return done.returncode, done.stdout, done.stderr


def parse_with_script(script: str, words: Sequence[str]) -> dict[str, Any] | None:
    """Parse words with a script's own parser, without running the script.

    Args:
        script: The script, from the project's root.
        words: The words after it.

    Returns:
        The parsed values by name, or None if the words only ask for help.

    Raises:
        Fault: The parser refuses the words, or the script has no parser.
    """
    _must_exist(script)
    code, output, errors = _parse(script, tuple(words))
    if code == NO_PARSER:
        raise Fault(f"{script} does not parse its arguments with argparse, so they cannot be checked")
    if code:
        raise Fault(f"{script}: {(errors.strip() or f'exit code {code}').splitlines()[-1]}")
    return None if {"--help", "-h", "--version"} & set(words) else json.loads(output.splitlines()[-1])


def check_script(script: str, words: Sequence[str]) -> None:
    """Raise Fault if a Python script of this project does not take these words."""
    if script in (_TRAIN, "train_sft.py"):
        check_training(words)
    elif script == _EVALUATE:
        check_evaluation(words)
    elif script.startswith("tests/"):
        _must_exist(script)
        for word in words:
            _must_exist(word)
    else:
        parse_with_script(script, words)


def check_yaml(text: str) -> None:
    """Raise Fault if a YAML block is no working experiment, part of one, choice, evaluation file or manifest.

    A comment `# configs/GROUP/NAME.yaml` in front makes the block a choice of that group. A block with `defaults` is an
    experiment. One with keys of the configuration is put over the quickstart.
    """
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise Fault(f"no YAML: {' '.join(str(error).split())}") from error
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise Fault("no mapping; tag a block that is not one of this project's files as something else than yaml")
    if all({"apiVersion", "kind"} <= set(document) for document in documents):
        for document in documents:
            if not {"metadata", "spec"} <= set(document):
                raise Fault(f"{document['kind']} needs metadata and spec")
        return
    if len(documents) > 1:
        raise Fault("several documents in one block")
    keys = set(documents[0])
    named = re.search(r"^# *configs/(\w+)/([\w.-]+)\.yaml", text, re.MULTILINE)
    if named and named[1] in GROUPS:
        _check_choice(named[1], named[2], text)
    elif "defaults" in keys:
        _check_experiment(text)
    elif (package := re.search(r"^# *@package ([\w.]+)", text, re.MULTILINE)) and package[1] != "_global_":
        _check_experiment(_over_quickstart(OmegaConf.to_yaml(OmegaConf.create({package[1]: documents[0]}))))
    elif keys <= set(map(str, declared_tree())):
        _check_experiment(_over_quickstart(text))
    elif "categories" in keys and keys <= set(KEYS):
        _check_evaluation_file(text, {})
    elif keys <= set(KEYS):
        load_evaluation(PROJECT_ROOT / "evaluation" / "quick.yaml", documents[0])
    else:
        unknown = sorted(keys - set(map(str, declared_tree())) - set(KEYS)) or sorted(keys)
        raise Fault(f"unknown keys {', '.join(unknown)}; tag a block for another program as something else than yaml")


def _over_quickstart(text: str) -> str:
    # The experiment's own debug choice comes last, as in files of configs/.
    return f"# @package _global_\ndefaults: [/quickstart, _self_]\n{text}"


def _check_experiment(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "documented.yaml").write_text(text, encoding="utf-8")
        check_training(["--config-name", "documented"], config_dir=Path(folder))


def _check_choice(group: str, name: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / group).mkdir()
        (Path(folder) / group / f"{name}.yaml").write_text(text, encoding="utf-8")
        experiment = "# @package _global_\ndefaults: [/quickstart, _self_]\n"
        (Path(folder) / "documented.yaml").write_text(experiment, encoding="utf-8")
        check_training(["--config-name", "documented", f"{group}={name}"], config_dir=Path(folder))


def _check_evaluation_file(text: str, overrides: Mapping[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "documented.yaml"
        path.write_text(text, encoding="utf-8")
        # Documentation may leave out keys that it is not about.
        given = yaml.safe_load(text)
        quick = yaml.safe_load((PROJECT_ROOT / "evaluation" / "quick.yaml").read_text(encoding="utf-8"))
        load_evaluation(path, {key: value for key, value in quick.items() if key not in given} | dict(overrides))


def check_python(text: str) -> None:
    """Raise Fault if Python text does not compile, or if it only defines things and cannot be imported."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise Fault(f"no Python: {error}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rgtrain":
            module = _imported(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    _imported(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "rgtrain":
                    _imported(alias.name)
    if all(_only_defines(node) for node in tree.body):
        try:
            exec(compile(tree, "documented", "exec"), {"__name__": "documented"})
        except Exception as error:
            raise Fault(f"cannot be imported: {error!r}") from error


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Fault(f"cannot import {name}: {error}") from error


def _only_defines(node: ast.stmt) -> bool:
    is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_docstring or isinstance(
        node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
    )


@contextmanager
def _modules_of(path: Path, text: str) -> Iterator[None]:
    """Make the modules importable that a Markdown file defines, so that `pkg://` names work.

    A Python block of the file defines the functions and classes in it. In a YAML block, a comment such as
    `# def brevity(completion, *, per_token)` defines the function that its line names.
    """
    sources: dict[str, str] = {}
    python = [block.text for block in blocks(path) if block.language in PYTHON]
    for line in text.splitlines():
        for module, name in re.findall(r"pkg\\?://([\w.]+)\.(\w+)", line):
            definitions = [
                source for source in python if re.search(rf"^(?:async def|def|class) {name}\b", source, re.MULTILINE)
            ]
            if signature := re.search(rf"# *(def {name}\(.*\))", line):
                definitions.append(f"{signature[1]}:\n    return 0.0\n")
            sources[module] = "\n".join([sources.get(module, ""), *definitions[:1]])
    sources = {module: source for module, source in sources.items() if source.strip()}
    with tempfile.TemporaryDirectory() as folder:
        for module, source in sources.items():
            file = Path(folder, *module.split(".")).with_suffix(".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source, encoding="utf-8")
        before = set(sys.modules)
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(folder)
            for name in set(sys.modules) - before:
                if name.split(".")[0] in {module.split(".")[0] for module in sources}:
                    del sys.modules[name]


def _parsed(text: str) -> tuple[list[Command], set[str]]:
    try:
        return parse_commands(text)
    except ValueError as error:
        raise Fault(str(error)) from error


def _program(word: str) -> str:
    name = word.removeprefix("./").removeprefix(".venv/bin/") if not word.startswith("/") else Path(word).name
    return "python" if re.fullmatch(r"python3?(\.\d+)?", name) else name


def _is_made(word: str) -> bool:
    return word.startswith(_MADE) or bool(_PLACEHOLDER.search(word))


@cache
def _tree() -> tuple[str, ...]:
    return tuple(sorted(str(path.relative_to(PROJECT_ROOT)) for path in tracked_files(PROJECT_ROOT)))


def _must_exist(word: str) -> None:
    """Raise Fault if a word looks like a file of the tree but is none."""
    name = word.partition("::")[0].removeprefix("./").rstrip("/")
    if not name or name == "." or _is_made(word) or "://" in name or name.startswith((".venv", "-")):
        return
    if any(file == name or file.startswith(f"{name}/") or fnmatch.fnmatch(file, name) for file in _tree()):
        return
    raise Fault(f"there is no file {name}; outputs begin with runs/ or outputs/, placeholders are in CAPITALS")


def _files(*, flags: Sequence[str] = (), looks: str = r".*[/.][\w*-]+") -> Callable[[list[str]], None]:
    """Return a check of a program that works on files: those of its words that look like paths have to exist."""

    def check(words: list[str]) -> None:
        skipped = False
        for word in words:
            if not skipped and not word.startswith("-") and re.fullmatch(looks, word):
                _must_exist(word)
            skipped = word in flags

    return check


def _anything(words: list[str]) -> None:
    """Accept every word of a program that works on nothing of this project."""


def _verbs(*allowed: str, options: Sequence[str] = ()) -> Callable[[list[str]], None]:
    """Return a check of a program whose first word is one of these, and whose options name files of the tree."""

    def check(words: list[str]) -> None:
        verb = next((word for word in words if not word.startswith("-")), "")
        if verb not in allowed and not {"--help", "--version"} & set(words):
            raise Fault(f"{verb or 'no word'} is an unknown sub-command; known here are {', '.join(allowed)}")
        for option, value in pairwise(words):
            if option in options:
                _must_exist(value)

    return check


def _wrapped(*, values: Sequence[str] = (), operands: int = 0) -> Callable[[list[str]], None]:
    """Return a check of a program that runs another one: after its options, of which `values` take a word."""

    def check(words: list[str]) -> None:
        rest = list(words)
        while rest and (rest[0].startswith("-") or re.match(r"\w+=", rest[0])):
            del rest[: 2 if rest[0] in values else 1]
        if rest[operands:]:
            check_words(rest[operands:])

    return check


def _check_python(words: list[str]) -> None:
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] not in {"-m", "-c", "-", "-V", "--version"}:
        del rest[: 2 if rest[0] in {"-X", "-W"} else 1]
    if not rest or rest[0] in {"-", "-V", "--version"}:
        return
    if rest[0] == "-c":
        try:
            compile(rest[1], "-c", "exec")
        except SyntaxError as error:
            raise Fault(f"no Python: {error}") from error
    elif rest[0] == "-m":
        if rest[1] in PROGRAMS:
            PROGRAMS[rest[1]](rest[2:])
        elif importlib.util.find_spec(rest[1]) is None:
            raise Fault(f"there is no module {rest[1]}")
    elif not _is_made(rest[0]):
        _must_exist(rest[0])
        check_script(rest[0], rest[1:])


def _check_bash(words: list[str]) -> None:
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-c":
        del rest[0]
    if not rest:
        return
    if rest[0] == "-c":
        check_shell(rest[1])
        return
    _must_exist(rest[0])
    if rest[0] == "train.sh" and rest[1:] != ["setup"]:
        if rest[1:]:
            check_training(rest[1:])
    elif rest[0] == "tests/run.sh":
        PROGRAMS["pytest"](rest[1:])


def _check_rgtrain(words: list[str]) -> None:
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if "rgtrain" not in project.get("scripts", {}):
        raise Fault("pyproject.toml installs no command rgtrain")
    if not words or words[0].startswith("-"):
        return
    if words[0] not in SCRIPTS:
        raise Fault(f"rgtrain has no sub-command {words[0]} among {', '.join(SCRIPTS)}")
    check_script(SCRIPTS[words[0]], words[1:])


def _check_pip(words: list[str]) -> None:
    _verbs("install", "index", "check", "freeze", "show", "list", "uninstall", "wheel", options=("-r", "-c"))(words)
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    dynamic = project["tool"]["setuptools"].get("dynamic", {})
    extras = {**project["project"].get("optional-dependencies", {}), **dynamic.get("optional-dependencies", {})}
    for word in words:
        for extra in (re.match(r"(?:\.|rgtrain)\[([\w,-]+)\]", word) or ("", ""))[1].split(","):
            if extra and extra not in extras:
                raise Fault(f"pyproject.toml has no extra {extra}")


def _check_docker(words: list[str]) -> None:
    _verbs("build", "run", "pull", "push", "compose", options=("-f", "--file"))(words)
    image = next((i for i, word in enumerate(words) if word.startswith("rgtrain")), len(words))
    if words[0] == "run" and words[image + 1 :]:
        # The image's entry point.
        check_words(["rgtrain", *words[image + 1 :]])


def _check_sbatch(words: list[str]) -> None:
    script = next((i for i, word in enumerate(words) if not word.startswith("-")), None)
    if script is None:
        raise Fault("sbatch needs a script; write its options as --name=value")
    _must_exist(words[script])
    if words[script] == _SLURM_SCRIPT:
        check_training(words[script + 1 :])


def _check_ray(words: list[str]) -> None:
    _verbs("start", "stop", "status", "job", "list", "up", "down", "memory", "timeline", "summary", "--version")(words)
    if words[0] in {"start", "stop", "status"}:
        import click
        from ray.scripts.scripts import cli

        try:
            cli.commands[words[0]].make_context(words[0], words[1:])
        except click.exceptions.Exit:
            pass
        except click.ClickException as error:
            raise Fault(error.format_message()) from error


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "python": _check_python,
    "bash": _check_bash,
    "rgtrain": _check_rgtrain,
    "pip": _check_pip,
    "docker": _check_docker,
    "sbatch": _check_sbatch,
    "srun": _wrapped(),
    "ray": _check_ray,
    "pytest": _files(flags=("-k", "-m", "-n", "-p", "-o", "--dist")),
    "ruff": _verbs("check", "format"),
    "mypy": _files(),
    "pre-commit": _verbs("install", "run", "autoupdate", "uninstall"),
    "git": _verbs(
        *(
            "clone",
            "worktree",
            "checkout",
            "switch",
            "add",
            "commit",
            "diff",
            "log",
            "status",
            "pull",
            "push",
            "tag",
            "show",
        ),
    ),
    "kubectl": _verbs(
        *("apply", "get", "logs", "delete", "describe", "create", "wait", "exec", "port-forward", "cp"),
        options=("-f", "--filename"),
    ),
    "scontrol": _verbs("requeue", "show", "hold", "release", "update"),
    "hf": _verbs("auth", "download", "upload", "cache", "login"),
    "huggingface-cli": _verbs("login", "download", "upload"),
    "wandb": _verbs("login", "sync", "offline", "online"),
    "vllm": _verbs("serve"),
    "vf-eval": _files(),
    "apt-get": _verbs("update", "install"),
    # Programs that run another one.
    "env": _wrapped(values=("-u",)),
    "exec": _wrapped(),
    "nohup": _wrapped(),
    "nice": _wrapped(values=("-n",)),
    "setsid": _wrapped(),
    "sudo": _wrapped(),
    "timeout": _wrapped(values=("-k", "-s"), operands=1),
    "watch": _wrapped(values=("-n",)),
    "xargs": _wrapped(values=("-n", "-I", "-P")),
    "command": _wrapped(),
    # Programs that read files.
    **dict.fromkeys(
        ("cat", "zcat", "tail", "head", "less", "diff", "sort", "wc", "source", ".", "ls", "column", "cp"), _files()
    ),
    **dict.fromkeys(("grep", "jq", "sed", "awk"), _files(looks=r"[\w./-]+\.(?:jsonl?|log|yaml|csv|py|md|txt|toml|sh)")),
    # Programs that work on nothing of the tree.
    **dict.fromkeys(
        (
            "cd",
            "export",
            "unset",
            "set",
            "echo",
            "printf",
            "mkdir",
            "mv",
            "rm",
            "ln",
            "touch",
            "chmod",
            "true",
            "false",
        ),
        _anything,
    ),
    **dict.fromkeys(
        ("curl", "wget", "ssh", "scp", "rsync", "tar", "unzip", "find", "cut", "tr", "tee", "uniq"), _anything
    ),
    **dict.fromkeys(
        ("kill", "ps", "top", "htop", "free", "df", "du", "nproc", "nvidia-smi", "sleep", "wait"), _anything
    ),
    **dict.fromkeys(
        ("squeue", "scancel", "sacct", "sinfo", "tensorboard", "module", "hostname", "date", "uv"), _anything
    ),
    **dict.fromkeys(
        ("deactivate", "eval", "exit", "read", "test", "[", "ulimit", "trap", "return", "shellcheck"), _anything
    ),
}


@contextmanager
def _quiet() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, patch("sys.stderr", nowhere):
        yield
