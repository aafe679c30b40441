import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rgtrain.machine.devices import num_gpus
from rgtrain.machine.environment import cpu_environment
from rgtrain.problems import Scorer

# The slowest files in a run without --slow, slowest first. They run first, so that all test workers finish at about the
# same time.
SLOWEST_FILES = (
    "test_resume.py",
    "test_survival.py",
    "test_quickstart_run.py",
    "test_evaluation_run.py",
    "test_engine.py",
    "test_example_package.py",
    "test_wheel.py",
    "test_auditing.py",
    "test_external.py",
    "test_trl_adapter.py",
    "test_model_families.py",
    "test_group_rollout.py",
    "test_replacements.py",
    "test_sweeper.py",
    "test_dataset.py",
)


def pytest_configure(config: pytest.Config) -> None:
    # Tests send SIGHUP to programs that they start. Under nohup, these programs would inherit that it is ignored.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Tests behave equally with and without a network.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Waiting threads of torch sleep, as in a run. Otherwise they would take the processors from other test workers.
    os.environ.update(cpu_environment())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow, which take minutes each")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: start_rank(item.path.name))
    skips = {}
    if not config.getoption("--slow"):
        skips["slow"] = pytest.mark.skip(reason="takes minutes; run with --slow")
    if not num_gpus():
        skips["gpu"] = pytest.mark.skip(reason="no CUDA device is available")
    for item in items:
        for name, skip in skips.items():
            if name in item.keywords:
                item.add_marker(skip)


def pytest_collection_finish(session: pytest.Session) -> None:
    # The collected files have imported torch and vLLM. Without this, each garbage collection visits their objects.
    gc.collect()
    gc.freeze()


def start_rank(file_name: str) -> int:
    """Return the file's position among SLOWEST_FILES, or their number for all other files."""
    return SLOWEST_FILES.index(file_name) if file_name in SLOWEST_FILES else len(SLOWEST_FILES)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a random two-layer Llama with the embedded model's tokenizer and a context of 2048 tokens."""
    from rgtrain.models.random_models import make_tiny_model  # imports torch, which most tests do not need

    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def scorer() -> Iterator[Scorer]:
    """Run a scorer of two workers with a time limit that no honest answer reaches, even on a busy machine."""
    with Scorer(num_workers=2, timeout_s=60) as scorer:
        yield scorer
