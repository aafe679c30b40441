"""The structure of the package: layers, unique names, and a single place for changes to other libraries."""

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
# A component, which is a subpackage or a top-level module, imports only components of lower layers.
LAYERS = (
    {"errors", "files", "paths", "tables", "stats", "yaml_files"},
    {"machine", "models", "provenance"},
    {"config", "jobs", "problems", "upstream"},
    {"checkpoints", "curriculum"},
    {"evaluation", "migration", "preflight", "run_health"},
    {"reporting", "training"},
    {"environments", "quickstart"},
    {"commands"},
    {"__main__"},
)
# The same rule within training. The modules beside these subpackages may import all of them.
TRAINING_LAYERS = ({"lifecycle"}, {"rollout"}, {"update"})
# Components without a training framework, and the third-party packages that they may import.
PURE = ("problems", "curriculum", "stats", "machine", "errors", "files", "paths", "yaml_files")
PURE_DEPENDENCIES = {"reasoning_gym", "numpy", "sympy", "yaml", "easydict", "reasoning_core"}
HEAVY = ("torch", "verl", "vllm", "ray", "transformers")
# Settings of the standard library, which are made by assignment.
STANDARD_LIBRARY_SETTINGS = {
    *("os.environ", "sys.argv", "sys.path", "tempfile.tempdir"),
    *("signal.alarm", "signal.setitimer"),  # in scoring processes only
}


def imports_of(path: Path) -> set[str]:
    """Return the full names of all modules and objects that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def own_components(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("rgtrain.")} - {"__version__"}


def component_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def files_of(*components: str) -> list[Path]:
    return [path for path in MODULES if component_of(path) in components]


def as_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.parent != PACKAGE or path.stem != "__init__"], ids=as_id
)
def test_a_component_imports_only_lower_layers(path):
    component = component_of(path)
    [layer] = [number for number, components in enumerate(LAYERS) if component in components]
    below = set().union(*LAYERS[:layer])
    assert own_components(imports_of(path)) <= below | {component}


@pytest.mark.parametrize("path", files_of("training"), ids=as_id)
def test_a_subpackage_of_training_imports_only_lower_layers(path):
    parts = path.relative_to(PACKAGE / "training").parts
    layers = [number for number, names in enumerate(TRAINING_LAYERS) if parts[0] in names]
    if not layers:
        return
    allowed = {parts[0]}.union(*TRAINING_LAYERS[: layers[0]])
    inside = {name.split(".")[2] for name in imports_of(path) if name.startswith("rgtrain.training.")}
    assert inside <= allowed


def test_there_are_no_circular_imports():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES
    }

    def modules_imported_by(path: Path) -> set[str]:
        names = imports_of(path)
        return {name for name in modules if name in names or any(each.rpartition(".")[0] == name for each in names)}

    imported = {name: modules_imported_by(path) - {name} for name, path in modules.items()}
    # A package only re-exports the names of its files.
    imported = {name: {one for one in found if modules[one].stem != "__init__"} for name, found in imported.items()}
    while leaves := [name for name, others in imported.items() if not others & set(imported)]:
        for name in leaves:
            del imported[name]
    assert imported == {}


def test_shard_readers_do_not_import_the_export():
    for path in (PACKAGE / "checkpoints" / "shards").glob("*.py"):
        assert not any(name.startswith("rgtrain.checkpoints.export") for name in imports_of(path)), path


@pytest.mark.parametrize("path", files_of(*PURE), ids=as_id)
def test_a_pure_component_imports_only_the_standard_library_reasoning_gym_and_pure_components(path):
    names = imports_of(path)
    outside = {name.split(".")[0] for name in names} - {"rgtrain"}
    assert outside - set(sys.stdlib_module_names) <= PURE_DEPENDENCIES
    assert own_components(names) <= set(PURE)


@pytest.mark.parametrize(
    "module", ["rgtrain.problems", "rgtrain.problems.splits", "rgtrain.stats", "rgtrain.environments"]
)
def test_importing_a_pure_component_loads_no_training_framework(module):
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
    not_mirrored = {"end_to_end", "evidence", "experiments", "support"}
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    subpackages = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_dir()}
    assert {str(folder) for folder in folders - subpackages - {Path()}} <= not_mirrored


def foreign_names(tree: ast.Module) -> dict[str, str]:
    """Return the imports of a file from other packages, as full names by local names."""
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
    """Yield the targets of all assignments and deletions, by a statement or by setattr."""
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
    """Return the imported name that an assigned attribute or item belongs to, or None."""
    if not isinstance(target, ast.Attribute | ast.Subscript):
        return None
    node: ast.expr = target
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return foreign.get(node.id) if isinstance(node, ast.Name) else None


@pytest.mark.parametrize("path", [path for path in MODULES if component_of(path) != "upstream"], ids=as_id)
def test_only_upstream_assigns_names_of_other_packages(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    foreign = foreign_names(tree)
    found = {ast.unparse(target) for target in assigned(tree) if foreign_root(target, foreign)}
    assert {
        name for name in found if not any(name.startswith(setting) for setting in STANDARD_LIBRARY_SETTINGS)
    } == set()


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
def test_an_assignment_to_another_package_is_found(statement):
    tree = ast.parse(statement)
    foreign = foreign_names(tree)
    assert any(foreign_root(target, foreign) for target in assigned(tree))


def test_subclasses_of_verl_and_vllm_are_declared():
    """Check subclasses that override a method which is not abstract; tests/upstream compares the methods."""
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
    # These override abstract methods only, or none.
    abstract = {
        "rgtrain.training.rollout.vllm_rollout:VllmRollout",
        "rgtrain.upstream.cpu_platform:CpuPlatform",
    }
    assert found - abstract <= {override.ours for override in OVERRIDES}


@pytest.mark.parametrize("path", MODULES, ids=as_id)
def test_the_package_has_no_assert_statements(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []
