"""Imports point one way: entry points -> adapters (verl_plugin, evaluating, ...) -> problems, curriculum, stats."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rgtrain

PACKAGE = Path(rgtrain.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# The parts that know no training framework, and the modules they may share.
PURE = ("problems", "curriculum", "stats", "devices", "errors", "files", "paths")
# Reasoning Gym, and what it needs itself.
PURE_NEEDS = {"reasoning_gym", "numpy", "yaml"}
HEAVY = ("torch", "verl", "vllm", "ray", "transformers")


def imports_of(path: Path) -> set[str]:
    """The full names of all modules that the file imports, at any depth of it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            # `from rgtrain import models` names a part too.
            inside = [f"rgtrain.{alias.name}" for alias in node.names]
            names.update(inside if node.module == "rgtrain" else [node.module])
    return names


def part_of(name: str) -> str:
    """The part of the library that a module of it belongs to: a package or module directly under rgtrain."""
    return name.split(".")[1] if "." in name else ""


def parts_imported_by(path: Path) -> set[str]:
    return {part_of(name) for name in imports_of(path) if name.split(".")[0] == "rgtrain"} - {""}


def own_part(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def files_of(*parts: str) -> list[Path]:
    return [path for path in MODULES if own_part(path) in parts]


def as_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", files_of(*PURE), ids=as_id)
def test_the_pure_parts_import_only_python_reasoning_gym_and_each_other(path):
    outside = {name.split(".")[0] for name in imports_of(path)} - {"rgtrain"}
    assert outside - set(sys.stdlib_module_names) <= PURE_NEEDS
    assert parts_imported_by(path) <= set(PURE)


@pytest.mark.parametrize(("part", "other"), [("verl_plugin", "evaluating"), ("evaluating", "verl_plugin")])
def test_training_and_evaluation_never_import_each_other(part, other):
    assert files_of(part)
    assert [as_id(path) for path in files_of(part) if other in parts_imported_by(path)] == []


@pytest.mark.parametrize("path", MODULES, ids=as_id)
def test_the_library_imports_no_entry_point(path):
    entry_points = {"train_grpo", "evaluation", "utils", "configs", "tests"}
    assert not {name.split(".")[0] for name in imports_of(path)} & entry_points


def test_no_two_parts_of_the_library_import_each_other_even_through_others():
    imported = {own_part(path): set() for path in MODULES}
    for path in MODULES:
        imported[own_part(path)] |= parts_imported_by(path) - {own_part(path)}
    while leaves := [part for part, others in imported.items() if not others & set(imported)]:
        for part in leaves:
            del imported[part]
    assert imported == {}


@pytest.mark.parametrize("module", ["rgtrain.problems", "rgtrain.stats", "rgtrain.problems.splits"])
def test_importing_a_pure_part_loads_no_training_framework(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
