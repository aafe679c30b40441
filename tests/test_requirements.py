"""The CUDA stack can be installed: pip finds versions for everything it asks for, without installing any."""

import json
import shutil
import subprocess
import sys

import pytest

from rgtrain.paths import PROJECT_ROOT


def interpreter(version: str) -> str | None:
    """A Python of `version`: this one, or one on the PATH."""
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
    done = subprocess.run([*command, "-r", str(PROJECT_ROOT / "requirements.txt")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {
        item["metadata"]["name"].lower(): item["metadata"]["version"]
        for item in json.loads(report.read_text())["install"]
    }
    wanted = {"torch": "2.11.0", "vllm": "0.24.0", "verl": "0.9.1", "transformers": "5.9.0"}
    assert {name: found[name] for name in wanted} == wanted
