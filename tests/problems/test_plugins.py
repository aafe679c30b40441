"""Packages of `plugins` register datasets in every process, or are refused by name with the reason."""

import itertools
import sys
from pathlib import Path

import pytest
from reasoning_gym.factory import CURRICULA, DATASETS

from rgtrain.errors import ConfigError
from rgtrain.problems import Scorer, build_mixture, parse_mixture, plugins
from rgtrain.problems.audit.items import make_items
from rgtrain.problems.plugins import import_plugins, imported_plugins, load_plugin
from rgtrain.problems.scoring.execution import may_run_code

DATASET = """
from dataclasses import dataclass
from reasoning_gym import register_dataset
from reasoning_gym.dataset import ProceduralDataset
from typing import Optional, Union

@dataclass
class Config:
    seed: Optional[int] = None
    size: int = 500
    sides: "Union[int, float, None]" = 6
    required: int = None

class Dice(ProceduralDataset):
    def __init__(self, config):
        super().__init__(config, seed=config.seed, size=config.size)
        if self.config.sides == 13:
            raise RuntimeError("thirteen is unlucky")
    def __getitem__(self, index):
        return {"question": f"What is {index % 50} times {self.config.sides}?",
                "answer": str(index % 50 * self.config.sides), "metadata": {}}
    def score_answer(self, answer, entry):
        return float(answer == entry["answer"])

def register():
    register_dataset("times_sides", Dice, Config)
"""
NUMBERS = itertools.count()


@pytest.fixture
def write_plugin(tmp_path, monkeypatch):
    """Return a function that writes a package of a new name and returns this name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_registered", {})
    before, curricula = dict(DATASETS), dict(CURRICULA)

    def write(text: str) -> str:
        name = f"written_plugin_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    for registry, content in ((DATASETS, before), (CURRICULA, curricula)):
        registry.clear()
        registry.update(content)


def test_a_registered_dataset_is_known_to_the_mixture_the_scorer_and_the_audit(write_plugin):
    name = write_plugin(f"{DATASET}\nregister()")
    assert import_plugins([name]) == []
    assert imported_plugins() == (name,)
    [problem, *_] = build_mixture(parse_mixture({"times_sides": {"config": {"sides": 7}}}), seed=0, size=3)
    with Scorer(num_workers=1) as scorer:
        assert [
            score.accuracy for score in scorer.score_many((a, problem.entry) for a in ("x", problem.entry["answer"]))
        ] == [0, 1]
    made = make_items(["times_sides"], seeds=[0], num_items=2, budget_s=5, hash_seed=0, on_step=lambda name: None)[
        "times_sides"
    ]
    assert (made.error, len(made.items)) == (None, 2)


def test_a_dataset_of_a_plugin_may_refuse_its_parameters_with_any_error(write_plugin):
    import_plugins([write_plugin(f"{DATASET}\nregister()")])
    for config, message in (
        ({"sides": 13}, "refuses {'sides': 13}: thirteen is unlucky"),
        ({"sides": "six"}, "is 'six'; give a whole number or a finite number"),
        ({"side": 6}, "has no parameter 'side'; did you mean 'sides'"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_mixture({"times_sides": {"config": config}})
    parse_mixture({"times_sides": {"config": {"sides": 2.5}}})


def test_a_function_may_register_the_datasets(write_plugin):
    name = write_plugin(DATASET)
    [notice] = import_plugins([name])
    assert notice.startswith(f"plugin {name!r} registers no dataset")
    assert import_plugins([f"{name}:register"]) == []
    # A second call neither registers again nor fails.
    assert import_plugins([f"{name}:register"]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import no_such_module",
            "ModuleNotFoundError: No module named 'no_such_module', .* line 1.; correct the package",
        ),
        ("x = (", "SyntaxError: .*; correct the package"),
        ("\n\nundefined", "NameError: name 'undefined' is not defined, .*py line 3"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        (f"{DATASET}\nregister_dataset('chain_sum', Dice, Config)", "'chain_sum' is already registered.*another name"),
        (
            f"{DATASET}\nregister()\nfrom reasoning_gym.factory import DATASETS\nDATASETS['gcd'] = (Dice, Config)",
            "replaces the dataset 'gcd'; register it under another name",
        ),
        ("from reasoning_gym.factory import CURRICULA\nCURRICULA.pop('gcd')", "replaces the dataset 'gcd'"),
    ],
)
def test_a_package_that_fails_or_replaces_a_dataset_is_refused_and_leaves_no_trace(write_plugin, text, message):
    name, before = write_plugin(text), dict(DATASETS)
    with pytest.raises(ConfigError, match=f"(?s)plugin {name!r} .*{message}"):
        import_plugins([name])
    assert before == DATASETS
    assert imported_plugins() == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_such_package",
            "cannot be imported .*install it into this Python environment, or add its folder to PYTHONPATH",
        ),
        ("json:no_function", "cannot be imported .*no attribute 'no_function'"),
        ("examples/my_tasks", "write a package, as in `my_tasks`"),
        ("my-tasks", "write a package"),
        ("my_tasks.py:", "write a package"),
        (3, "plugins has 3; write a package"),
    ],
)
def test_a_name_that_is_no_package_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        import_plugins([name])


def test_a_package_that_only_the_scorer_cannot_import_is_refused_with_the_reason(write_plugin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("")
    name = write_plugin("open('names.txt')")
    import_plugins([name])
    with (
        pytest.raises(ConfigError, match=f"in the process that judges answers, plugin {name!r} .*No such file"),
        Scorer(num_workers=1),
    ):
        pass


def test_answers_to_scorers_of_other_packages_may_be_code_unless_these_say_otherwise(write_plugin):
    name = write_plugin(f"{DATASET}\nregister()\ndef judge(answer, entry): return 1.0")
    import_plugins([name])
    own = f"pkg://{name}.judge"
    assert may_run_code("times_sides", "exit()") and may_run_code(own, "exit()")
    assert not may_run_code("times_sides", "3 + 4")
    other = write_plugin("def judge(answer, entry): return 1.0\njudge.executes_answers = False")
    assert not may_run_code(f"pkg://{other}.judge", "exit()")


def test_a_module_of_a_function_that_registers_datasets_becomes_a_plugin(write_plugin):
    name = write_plugin(f"{DATASET}\nregister()\ndef judge(answer, entry): return 1.0")
    load_plugin(f"pkg://{name}.judge", kind="verifier", form="a name")
    assert imported_plugins() == (name,)


@pytest.mark.parametrize(("text", "cause"), [("undefined", "NameError"), ("raise SystemExit(0)", "SystemExit: 0")])
def test_a_module_that_fails_is_named_with_the_cause(write_plugin, text, cause):
    name = write_plugin(text)
    with pytest.raises(ConfigError, match=f"reward 'pkg://{name}.x' cannot be imported .{cause}.*; write a name"):
        load_plugin(f"pkg://{name}.x", kind="reward", form="a name")
    assert name not in sys.modules
