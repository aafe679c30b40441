"""A process of Ray imports the packages of the run before its first task."""

import subprocess
import sys

import pytest

from rgtrain.errors import ConfigError
from rgtrain.problems import plugins
from rgtrain.training.worker_setup import PLUGINS_VARIABLE, set_up_worker


def test_a_worker_imports_the_plugins_of_the_run(monkeypatch):
    monkeypatch.setattr(plugins, "_registered", {})
    monkeypatch.setenv(PLUGINS_VARIABLE, "json tomllib")
    set_up_worker()
    assert plugins.imported_plugins() == ("json", "tomllib")


def test_a_worker_on_a_machine_without_the_package_says_so(monkeypatch):
    monkeypatch.setenv(PLUGINS_VARIABLE, "no_such_package")
    with pytest.raises(ConfigError, match="plugin 'no_such_package' cannot be imported .*install it"):
        set_up_worker()


def test_a_worker_of_a_run_without_plugins_does_not_wait_for_reasoning_gym():
    code = "import sys; from rgtrain.training.worker_setup import set_up_worker; set_up_worker(); "
    code += "print('reasoning_gym' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
