"""Tasks of reasoning-core are reproducible datasets whose verifiers only read the answer, with one exception."""

import importlib
import json
import random
import sys

import numpy
import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from rgtrain.curriculum.ladder import build_ladder
from rgtrain.errors import ConfigError
from rgtrain.problems import DatasetSpec, Scorer, dump_entry
from rgtrain.problems.mixture import ProblemSource, check_spec
from rgtrain.problems.plugins import import_plugins
from rgtrain.problems.scoring.execution import may_run_code
from rgtrain.problems.soundness import committed_audit

MODULE = "rgtrain.problems.reasoning_core_tasks"
try:
    import_plugins(["reasoning_core"])
except ConfigError as error:
    pytest.skip(f"{error}: pip install -c constraints-cpu.txt -r requirements-tasks.txt", allow_module_level=True)
core = importlib.import_module(MODULE)
# Tasks that draw from generators which no seed of Python's reaches, that keep state, and that are quick to import.
QUICK = ("lambda_reduction", "defeasible_nli", "qualitative_causal_reasoning", "planning", "multistep_nli")
NAMES = [core.CORE_PREFIX + name for name in core.TASKS]
PROBLEMS = """
import json, sys
from rgtrain.problems import DatasetSpec, dump_entry
from rgtrain.problems.mixture import ProblemSource
from rgtrain.problems.plugins import import_plugins
import_plugins(["reasoning_core"])
made = {}
for name in sys.argv[1:]:
    source = ProblemSource(DatasetSpec(name), seed=7)
    source[40]
    made[name] = [dump_entry(dict(source[index].entry)) for index in (3, 2, 1, 0)][::-1]
print(json.dumps(made))
"""
ANSWERS_THAT_ARE_CODE = ("{}", "[{}]", "({},)", "f({})", "x = {}", "exec('import no_such_module_canary')")


class Imports:
    """Counts attempts to import a module that only an executed answer names."""

    def __init__(self) -> None:
        self.count = 0
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        self.count += event == "import" and arguments[0] == "no_such_module_canary"


@pytest.fixture(scope="module")
def imports() -> Imports:
    return Imports()


def source_of(name: str, **params) -> ProblemSource:
    return ProblemSource(DatasetSpec(name, params=params), seed=7)


def test_every_task_is_registered_and_audited():
    audited = committed_audit().datasets
    assert {name for name in DATASETS if name.startswith(core.CORE_PREFIX)} == set(NAMES)
    assert {name for name in audited if name.startswith(core.CORE_PREFIX)} == set(NAMES)


def test_problems_depend_on_level_seed_and_index_only(in_another_process):
    names = [core.CORE_PREFIX + name for name in QUICK]
    other = json.loads(in_another_process("-c", PROBLEMS, *names))
    for name in names:
        source = source_of(name)
        assert [dump_entry(dict(source[index].entry)) for index in range(4)] == other[name]
        assert len({source[index].question for index in range(4)}) == 4
        assert source_of(name, level=3)[0].question != source[0].question


def test_making_a_problem_leaves_the_random_generators_as_they_were():
    source = source_of("core/planning")
    random.seed(1), numpy.random.seed(1)
    expected = random.random(), numpy.random.random()
    random.seed(1), numpy.random.seed(1)
    source._page(0)[5]
    assert (random.random(), numpy.random.random()) == expected


def test_right_answers_score_1_in_the_sandbox_and_others_do_not():
    sources = {name: source_of(core.CORE_PREFIX + name) for name in QUICK}
    with Scorer(num_workers=1) as scorer:
        for source in sources.values():
            entries = [source[index].entry for index in range(3)]
            right = scorer.score_many((entry["answer"], entry) for entry in entries)
            assert [(score.accuracy, score.error) for score in right] == [(1, None)] * 3
            wrong = scorer.score_many((answer, entries[0]) for answer in ("no such answer", "[[", "\0"))
            assert all(score.accuracy < 0.5 for score in wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_verifier_that_runs_the_answer_is_marked(name, imports):
    entry = dict(source_of(name)[0].entry)
    dataset = reasoning_gym.create_dataset(name, seed=0, size=1)
    before = imports.count
    for form in ANSWERS_THAT_ARE_CODE:
        try:
            dataset.score_answer(form.format("__import__('no_such_module_canary')"), entry)
        except ImportError:
            continue
    # inverse_math runs methods only, as the next test shows.
    assert (imports.count > before) == (dataset.executes_answers and name != "core/inverse_math")
    assert dataset.executes_answers == may_run_code(name, "__import__('os')")


def test_inverse_math_runs_methods_in_full_width_letters():
    reasoning_gym.create_dataset("core/inverse_math", seed=0, size=1)
    full_width = "".join(chr(ord(letter) + 0xFEE0) for letter in "subs")
    answer = f"x.{full_width}(x, 3)"
    assert sys.modules["reasoning_core.tasks.dev.math_inverse"].parse(answer) == 3
    assert may_run_code("core/inverse_math", answer)
    assert not may_run_code("core/inverse_math", "x^2*exp(x)/2 + C")


def test_a_level_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="level is 6; give a whole number from 0 to 5"):
        check_spec(DatasetSpec("core/planning", params={"level": 6}))


def test_the_curriculum_has_the_levels_of_the_task():
    ladder = build_ladder(DatasetSpec("core/planning"))
    assert [level["level"] for level in ladder.levels] == [0, 1, 2, 3, 4, 5]


def test_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(core, "AUDITED_VERSION", "0.0.1")
    with pytest.raises(ConfigError, match=r"need reasoning-core 0.0.1, but .* is installed"):
        core._check_installed()
