"""The package's structure: floors of rooms, names that are unique, and one wall to other libraries."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import rgtrain
from rgtrain.upstream.overrides import OVERRIDES

PACKAGE = Path(rgtrain.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# A room imports rooms of the floors below its own, and no other.
FLOORS = (
    {"errors", "files", "paths", "tables", "stats"},
    {"machine", "models", "provenance"},
    {"config", "jobs", "problems", "upstream"},
    {"checkpoints", "curriculum"},
    {"evaluation", "preflight"},
    {"reporting", "training"},
    {"quickstart"},
)
# Within training, in the same way; modules beside these rooms tie them together.
TRAINING_FLOORS = ({"lifecycle"}, {"rollout"}, {"update"})
# Rooms that know no training framework, and third-party packages that they may import.
PURE = ("problems", "curriculum", "stats", "machine", "errors", "files", "paths")
PURE_NEEDS = {"reasoning_gym", "numpy", "yaml"}
HEAVY = ("torch", "verl", "vllm", "ray", "transformers")
# Assigning these is how the standard library is told.
SETTINGS_OF_PYTHON = {"os.environ", "sys.argv", "tempfile.tempdir"}


def imports_of(path: Path) -> set[str]:
    """The full names of all modules and names that the file imports, at any depth of it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def own_rooms(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("rgtrain.")}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def files_of(*rooms: str) -> list[Path]:
    return [path for path in MODULES if room_of(path) in rooms]


def as_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent != PACKAGE or path.stem != "__init__"], ids=as_id
)
def test_a_room_imports_only_rooms_of_the_floors_below(path):
    room = room_of(path)
    [floor] = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    below = set().union(*FLOORS[:floor])
    assert own_rooms(imports_of(path)) <= below | {room}


@pytest.mark.parametrize("path", files_of("training"), ids=as_id)
def test_a_room_of_training_imports_only_those_below(path):
    parts = path.relative_to(PACKAGE / "training").parts
    floors = [number for number, rooms in enumerate(TRAINING_FLOORS) if parts[0] in rooms]
    if not floors:
        return
    allowed = {parts[0]}.union(*TRAINING_FLOORS[: floors[0]])
    inside = {name.split(".")[2] for name in imports_of(path) if name.startswith("rgtrain.training.")}
    assert inside <= allowed


def test_no_files_import_each_other_in_a_circle():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES
    }

    def modules_imported_by(path: Path) -> set[str]:
        names = imports_of(path)
        return {name for name in modules if name in names or any(each.rpartition(".")[0] == name for each in names)}

    imported = {name: modules_imported_by(path) - {name} for name, path in modules.items()}
    # A package only hands on the names of its own files.
    imported = {name: {one for one in found if modules[one].stem != "__init__"} for name, found in imported.items()}
    while leaves := [name for name, others in imported.items() if not others & set(imported)]:
        for name in leaves:
            del imported[name]
    assert imported == {}


def test_readers_of_shards_know_nothing_of_the_export():
    for path in (PACKAGE / "checkpoints" / "shards").glob("*.py"):
        assert not any(name.startswith("rgtrain.checkpoints.export") for name in imports_of(path)), path


@pytest.mark.parametrize("path", files_of(*PURE), ids=as_id)
def test_a_pure_room_imports_only_python_reasoning_gym_and_pure_rooms(path):
    names = imports_of(path)
    outside = {name.split(".")[0] for name in names} - {"rgtrain"}
    assert outside - set(sys.stdlib_module_names) <= PURE_NEEDS
    assert own_rooms(names) <= set(PURE)


@pytest.mark.parametrize("module", ["rgtrain.problems", "rgtrain.stats", "rgtrain.problems.splits"])
def test_importing_a_pure_room_loads_no_training_framework(module):
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=as_id)
def test_the_package_imports_no_entry_point(path):
    entry_points = {"train_grpo", "evaluation", "utils", "configs", "tests"}
    assert not {name.split(".")[0] for name in imports_of(path)} & entry_points


def test_no_two_files_of_the_package_share_a_name():
    names = Counter(path.name for path in MODULES if not path.stem.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_two_public_classes_share_a_name():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in MODULES]
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1 and not name.startswith("_")] == []


def test_no_two_test_files_share_a_name():
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_folders_of_tests_mirror_the_package():
    own = {"end_to_end", "experiments", "support"}
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    rooms = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_dir()}
    assert {str(folder) for folder in folders - rooms - {Path()}} <= own


def foreign_names(tree: ast.Module) -> dict[str, str]:
    """By the names that a file gives them, what it imports from other packages."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return {name: full for name, full in names.items() if full.split(".")[0] != "rgtrain"}


def assigned(tree: ast.Module) -> Iterator[ast.expr]:
    """Everything that the file assigns or deletes, by a statement or by setattr."""
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=targets) | ast.Delete(targets=targets):
                for target in targets:
                    yield from target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
            case ast.AugAssign(target=target) | ast.AnnAssign(target=target) | ast.For(target=target):
                yield target
            case ast.With(items=items):
                yield from (item.optional_vars for item in items if item.optional_vars is not None)
            case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[holder, *_]):
                yield ast.Attribute(value=holder, attr="")
            case ast.Call(func=ast.Attribute(attr="update" | "setdefault" | "pop", value=ast.Attribute() as holder)):
                yield holder


def foreign_root(target: ast.expr, foreign: dict[str, str]) -> str | None:
    """The imported name that an assigned attribute or item belongs to."""
    if not isinstance(target, ast.Attribute | ast.Subscript):
        return None
    node: ast.expr = target
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return foreign.get(node.id) if isinstance(node, ast.Name) else None


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) != "upstream"], ids=as_id)
def test_nothing_outside_of_upstream_assigns_a_foreign_name(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    foreign = foreign_names(tree)
    found = {ast.unparse(target) for target in assigned(tree) if foreign_root(target, foreign)}
    assert {name for name in found if not any(name.startswith(setting) for setting in SETTINGS_OF_PYTHON)} == set()


@pytest.mark.parametrize(
    "statement",
    [
        "from verl.trainer import base\nbase.Tracking = None",
        "import torch\ntorch.cpu.empty_cache = print",
        "import torch as t\nsetattr(t.cpu, 'empty_cache', print)",
        "from verl.x import REGISTRY\nREGISTRY['vllm', 'async'] = 'ours'",
        "from vllm import SamplingParams\ndel SamplingParams.warm_up",
        "from verl.x import registry\nregistry.CLASSES.update(sync=None)",
    ],
)
def test_an_assigned_foreign_name_is_found(statement):
    tree = ast.parse(statement)
    foreign = foreign_names(tree)
    assert any(foreign_root(target, foreign) for target in assigned(tree))


def test_subclasses_of_verl_and_vllm_are_declared():
    """Those that override a method which is not abstract; tests/upstream compares the methods."""
    found = set()
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        foreign = foreign_names(tree)
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in tree.body:
            bases = [
                foreign_root(base, foreign) or foreign.get(ast.unparse(base), "") for base in getattr(node, "bases", [])
            ]
            if any(base.split(".")[0] in ("verl", "vllm") for base in bases):
                found.add(f"{module}:{node.name}")
    # They override abstract methods only, or none.
    abstract = {
        "rgtrain.training.rollout.vllm_rollout:VllmRollout",
        "rgtrain.training.update.engine:CriticEngine",
        "rgtrain.upstream.cpu_platform:CpuPlatform",
    }
    assert found - abstract <= {override.ours for override in OVERRIDES}


@pytest.mark.parametrize("path", MODULES, ids=as_id)
def test_no_bare_assert_guards_anything(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []
