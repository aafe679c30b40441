"""The tasks of the package reasoning-core, registered as Reasoning Gym datasets named `core/NAME`.

Importing this module registers them. A task's own module, and the packages that it needs, are imported when the dataset
is first created.

reasoning-core has its own adapter for Reasoning Gym, which this one replaces for these reasons:

- It ignores seed and index. Each access makes another problem from the state of Python's random generators.
- Each problem loads a tokenizer over the network, records the time, runs git, and sets an alarm signal that kills child
  processes of the trainer.
- Its list of tasks parses 600 files and writes a cache into the home folder.

Ten tasks are left out:

- metamath_core_select and metamath_entailment download their data.
- game_best_move and game_forced_win need a package that is not on PyPI.
- most_probable_outcome starts another program for each problem.
- constraint_satisfaction takes a second for most problems.
- constrained_continuation, parsing_derivation, regex_following and syntax_error_detection make other problems in
  another process.
"""

import copy
import importlib
import importlib.metadata
import json
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy
from reasoning_gym.coaching import BaseCurriculum, ScalarAttributeDefinition
from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import register_dataset

from rgtrain.errors import ConfigError

CORE_PREFIX = "core/"
# The version that these names and classes belong to, and that the audit measured.
AUDITED_VERSION = "0.5.0"
LEVELS = tuple(range(6))
# Module and class of each task, under reasoning_core.tasks.
TASKS = {
    "analogical_case_matching": "formal_analogies:AnalogicalCaseMatching",
    "arithmetics": "arithmetics:Arithmetics",
    "attribute_grammar": "dev.attribute_grammar:AttributeGrammar",
    "belief_tracking": "belief_tracking:BeliefTracking",
    "code_analysis": "code_analysis:CodeAnalysis",
    "code_runnability": "code_execution:CodeRunnability",
    "combinatorics_formula": "combinatorics:CombinatoricsFormula",
    "controlled_code_execution": "generated.controlled_code_execution:ControlledCodeExecution",
    "coreference": "coreference:Coreference",
    "defeasible_nli": "logic_depth:DefeasibleNLI",
    "dynamic_programming": "generated.dynamic_programming:DynamicProgramming",
    "equation_system": "equation_system:EquationSystem",
    "finite_automaton_execution": (
        "generated.wave0.n04_finite_automaton_execution.n04_finite_automaton_execution:FiniteAutomatonExecution"
    ),
    "function_manipulation": "function_manipulation:FunctionManipulation",
    "graph_pathfinding": "graph_operations:GraphPathfinding",
    "graph_successors": "graph_operations:GraphSuccessors",
    "grid_navigation": "grid_navigation:GridNavigation",
    "inverse_math": "dev.math_inverse:InverseMath",
    "lambda_reduction": "binding:LambdaReduction",
    "logic_derivation": "logic_derivation:LogicDerivation",
    "logic_qa": "logic_depth:LogicQA",
    "math_word_problem": "arithmetics:MathWordProblem",
    "most_probable_evidence": "probabilistic_reasoning:MostProbableEvidence",
    "multistep_abduction": "logic_depth:MultistepAbduction",
    "multistep_evidence_retrieval": "logic_depth:MultistepEvidenceRetrieval",
    "multistep_nli": "logic_depth:MultistepNLI",
    "planar_geometry_relations": "math_geometry:PlanarGeometryRelations",
    "planning": "planning:Planning",
    "process_inversion": "dev.process_inversion:ProcessInversion",
    "qualitative_causal_reasoning": "qualitative_causal_reasoning:QualitativeCausalReasoning",
    "qualitative_reasoning": "qstr:QualitativeReasoning",
    "reference_tracking": "tracking:ReferenceTracking",
    "regex_reasoning": "regex:RegexReasoning",
    "rewrite_system": "binding:RewriteSystem",
    "rule_switching": "generated.rule_switching:RuleSwitching",
    "sequential_induction": "sequential_induction:SequentialInduction",
    "set_expression": "set_operations:SetExpression",
    "set_missing_element": "set_operations:SetMissingElement",
    "shift_reduce_parsing": "generated.shift_reduce_parsing:ShiftReduceParsing",
    "string_transduction": "string_transduction:StringTransduction",
    "systems_trace": "dev.systems_trace:SystemsTrace",
    "table_equivalence": "table_qa:TableEquivalence",
    "table_qa": "table_qa:TableQA",
    "table_statistics": "table_qa:TableStatistics",
    "unification_entailment": "binding:UnificationEntailment",
}
# The verifiers of these tasks pass the answer to sympy, which runs it as Python. inverse_math allows only some
# names, but does not see names in full-width letters, which Python reads as plain ones.
EXECUTING_TASKS = frozenset({"inverse_math", "sequential_induction"})
# Verifiers import this, and a confined worker cannot open files.
_PRELOADED = ("rapidfuzz.distance",)
# generate_entry returns None if a draw is not admissible. The original makes as many attempts.
_MAX_ATTEMPTS = 1_000


@dataclass
class CoreConfig:
    """The parameters of a task: its level of difficulty, and the seed and size that every dataset has."""

    level: int = 0
    seed: int | None = None
    size: int = 500

    def validate(self) -> None:
        """Raise ValueError unless the level is in `LEVELS`."""
        if self.level not in LEVELS:
            raise ValueError(f"level is {self.level}; give a whole number from 0 to {LEVELS[-1]}")


class CoreCurriculum(BaseCurriculum):
    """The levels of a task."""

    def __init__(self) -> None:
        super().__init__(CoreCurriculum.__name__, CoreConfig)
        level = ScalarAttributeDefinition(
            name="level", field_name="level", levels=list(LEVELS), description="Difficulty of the task"
        )
        self._define_attributes(level)


class CoreDataset(ProceduralDataset):
    """A task of reasoning-core as a Reasoning Gym dataset. Problem `index` depends on level, `seed + index` only."""

    distribution = "reasoning-core"
    executes_answers = False
    task_name: str

    def __init__(self, config: CoreConfig):
        super().__init__(config=config, seed=config.seed, size=config.size)
        self._task_class = _load_task(self.task_name)
        # Constructors may draw random numbers, and some take 0.1 s.
        with _random_state(0):
            self._judge = self._task_class()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the entry of problem `index`. Raises IndexError if it is out of range."""
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is not below {self.size}")
        with _random_state(self.seed + index):
            # Tasks keep state between problems, so each problem gets a new one.
            task = self._task_class()
            task.config.set_level(self.config.level)
            task.on_config_level_change()
            made = next(filter(None, (task.generate_entry() for _ in range(_MAX_ATTEMPTS))), None)
            if made is None:
                raise RuntimeError(f"task {self.task_name!r} made no problem in {_MAX_ATTEMPTS} attempts")
            question = task.render_prompt(made.metadata)
        # All metadata are JSON values, but in other classes than Python's.
        metadata = json.loads(json.dumps(made.metadata))
        # code_runnability measures a time.
        metadata.pop("elapsed", None)
        metadata |= {"source_dataset": CORE_PREFIX + self.task_name, "source_index": index}
        metadata["difficulty"] = {"level": self.config.level}
        return {"question": question, "answer": str(made.answer), "metadata": metadata}

    def score_answer(self, answer: str | None, entry: Mapping[str, Any]) -> float:
        """Return the score of the task's own verifier, in [0, 1]."""
        from easydict import EasyDict

        return 0.0 if answer is None else float(self._judge.score_answer(answer, EasyDict(entry)))


def _load_task(name: str) -> type[Any]:
    """Import a task, without the tokenizer that it would download only to count tokens."""
    from reasoning_core.template import Task

    module, _, class_name = TASKS[name].partition(":")
    original = getattr(importlib.import_module(f"reasoning_core.tasks.{module}"), class_name)
    for preloaded in _PRELOADED:
        importlib.import_module(preloaded)
    _make_random_generators_seedable()

    class TaskWithoutTokenizer(Task):
        def __init__(self, config: Any = None, timeout: int = 10, seed: int | None = None, **_: Any):
            self.config = original.config_cls() if config is None else copy.deepcopy(config)
            self.timeout, self.seed = timeout, seed

    # The constructor of the task calls the next class in this order, which is the one above instead of Task.
    return type(original.__name__, (original, TaskWithoutTokenizer), {"task_name": name})


class _SeededRandom(random.Random):
    """A generator that is seeded by the global one if it gets no seed, instead of by the entropy of the system."""

    def __init__(self, seed: Any = None):
        super().__init__(random.getrandbits(64) if seed is None else seed)


def _seed_if_given(seed: Any = None, *_: Any) -> None:
    if seed is not None:
        random.seed(seed)


def _seeded_numpy_generator(seed: Any = None) -> numpy.random.Generator:
    return numpy.random.default_rng(random.getrandbits(64) if seed is None else seed)


def _module_with(original: ModuleType, **changed: Any) -> ModuleType:
    module = ModuleType(original.__name__)
    vars(module).update(vars(original) | changed)
    return module


# The modules `random` and `numpy` for the packages below, which otherwise seed generators by the entropy of
# the system for each problem.
_SEEDABLE = {
    random: _module_with(random, Random=_SeededRandom, seed=_seed_if_given),
    numpy: _module_with(numpy, random=_module_with(numpy.random, default_rng=_seeded_numpy_generator)),
}


def _make_random_generators_seedable() -> None:
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("reasoning_core", "gramforge", "exrex"):
            names = vars(module)
            for alias in ("random", "np", "numpy"):
                if isinstance(used := names.get(alias), ModuleType):
                    names[alias] = _SEEDABLE.get(used, used)


@contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Set the random generators that tasks draw from, and restore Python's and NumPy's afterwards."""
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    if faker := sys.modules.get("faker"):
        faker.Faker.seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


def _check_installed() -> None:
    try:
        version = importlib.metadata.version(CoreDataset.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "the core/ datasets need reasoning-core, which is not installed; install the extra `tasks` of rgtrain"
        ) from None
    if version != AUDITED_VERSION:
        raise ConfigError(
            f"the core/ datasets need reasoning-core {AUDITED_VERSION}, but {version} is installed; install the extra "
            "`tasks` of rgtrain"
        )


_check_installed()
for _name in TASKS:
    _attributes = {"task_name": _name, "executes_answers": _name in EXECUTING_TASKS}
    _dataset = type(f"Core_{_name}", (CoreDataset,), _attributes)
    register_dataset(CORE_PREFIX + _name, _dataset, CoreConfig, CoreCurriculum)
