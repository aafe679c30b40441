"""Each part of the evidence programme expands to trainings that are comparable and can start."""

import itertools
import json
import subprocess
import sys
from collections import defaultdict

import pytest

from rgtrain.paths import CONFIGS, PROJECT_ROOT

sys.path.insert(0, str(PROJECT_ROOT))
from evidence import outside_data
from evidence.outside_answers import same_number, same_target
from evidence.parts import algorithms, boundary, breadth, categories, controls, curriculum, greedy, outside, warm_start
from evidence.training_plan import BOUNDARY, read_programme
from rgtrain.curriculum import ladder, probe
from rgtrain.curriculum.curriculum_config import build_curriculum
from rgtrain.problems.evaluation_set import load_evaluation_problems, read_datasets
from rgtrain.problems.mixture import ProblemSource, parse_mixture
from rgtrain.problems.question_file import load_questions
from rgtrain.problems.scoring.scorer import Scorer

PROGRAMME = read_programme()
PARTS = [curriculum, boundary, breadth, algorithms, outside, warm_start, greedy]
MODELS = list(PROGRAMME.models.values())
# Files of easy problems, of which there may be few.
SMALL_SPACES = [curriculum.task_of(name) for name in curriculum.DATASETS]
SMALL_SPACES += [f"{warm_start.TASK}_{model.name}" for model in MODELS]


@pytest.fixture(params=[(part, model) for part in PARTS for model in MODELS], ids=lambda pair: pair[1].name)
def trainings(request):
    part, model = request.param
    return part.trainings(PROGRAMME, model)


def test_names_are_unique(trainings):
    names = [training.name for training in trainings]
    assert len(set(names)) == len(names)


def test_arms_of_a_task_have_equal_samples_seeds_and_problems(trainings):
    samples = defaultdict(set)
    seeds = defaultdict(lambda: defaultdict(set))
    for training in trainings:
        same = ("data.train_batch_size", "actor_rollout_ref.rollout.n", "actor_rollout_ref.rollout.val_kwargs.n")
        files = tuple(training.settings["data.validation_files"])
        steps = training.sft_steps + training.rl_steps
        # A model without training takes no samples, but answers the same problems.
        trained = (steps, *(training.settings.get(key) for key in same[:2])) if steps else None
        samples[training.task].add((files, training.settings.get(same[2])))
        if trained:
            samples[training.task, "trained"].add(trained)
            seeds[training.task][training.arm].add(training.seed)
    assert {name: len(of_task) for name, of_task in samples.items()} == dict.fromkeys(samples, 1)
    for arms in seeds.values():
        assert len(set(map(frozenset, arms.values()))) == 1


def test_mixtures_and_policies_can_be_used():
    """Each only once, because a mixture of 64 datasets takes seconds."""
    found = {}
    for training in (one for part in PARTS for model in MODELS for one in part.trainings(PROGRAMME, model)):
        mixture, policy = (
            training.settings["data.mixture"],
            training.settings.get("data.curriculum", {}).get("policy", {}),
        )
        if len(mixture) < 64 or training.arm == "none":
            found[json.dumps([mixture, policy], sort_keys=True)] = mixture, policy
    for mixture, policy in found.values():
        # The levels of datasets are tested below.
        curriculum_options = {"policy": policy, "datasets": {}}
        build_curriculum(
            parse_mixture(mixture), seed=1, curriculum=curriculum_options, mixture_policy={"name": "fixed"}
        )


@pytest.mark.parametrize("name", [*SMALL_SPACES, BOUNDARY])
def test_the_problems_of_an_evaluation_file_are_distinct(name):
    problems = load_evaluation_problems(PROGRAMME.evaluation_file(name))
    assert len({problem.digest for problem in problems}) == len(problems) >= 90


@pytest.mark.parametrize("name", SMALL_SPACES)
def test_problems_are_left_to_train_on(name):
    path = PROGRAMME.evaluation_file(name)
    held_out = {problem.digest for problem in load_evaluation_problems(path)}
    for dataset in read_datasets(path):
        source = ProblemSource(dataset.spec, seed=200_000_000)
        left = {source[index].digest for index in range(200)} - held_out
        assert len(left) > 80, dataset.name


def test_the_evaluation_file_of_a_curriculum_has_its_levels_evenly(monkeypatch):
    # A process per dataset takes seconds to start, and these datasets are known to return.
    monkeypatch.setattr(ladder, "make_problems", lambda specs: list(map(probe._makes_problems, specs)))
    specs = parse_mixture({name: {"config": curriculum.PARAMS.get(name, {})} for name in curriculum.DATASETS})
    options = {"policy": {}, "datasets": curriculum.DATASETS}
    built = build_curriculum(specs, seed=1, curriculum=options, mixture_policy={"name": "fixed"})
    for name, levels_of in built.ladders.items():
        entries = read_datasets(PROGRAMME.evaluation_file(curriculum.task_of(name)))
        levels = {f"{name}_level_{level}": dict(params) for level, params in enumerate(levels_of.levels)}
        assert {entry.name: dict(entry.params) for entry in entries} == levels
        assert len({entry.size for entry in entries}) == 1
        assert {entry.generator for entry in entries} == {name}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_boundary_has_two_draws_of_the_base_and_every_trained_arm(model):
    found = boundary.trainings(PROGRAMME, model)
    base = [training for training in found if training.arm == "none"]
    assert len({training.seed for training in base}) == 2 and not any(training.rl_steps for training in base)
    assert len(found) - 2 == 2 * len(PROGRAMME.categories) * len(model.seeds)
    assert {training.settings["actor_rollout_ref.rollout.val_kwargs.n"] for training in found} == {256}


def test_the_boundary_has_problems_of_the_trained_datasets_of_every_category():
    for category in PROGRAMME.categories:
        trained = {
            entry.get("generator", name) for name, entry in PROGRAMME.datasets(category, group="trained").items()
        }
        asked = PROGRAMME.datasets(BOUNDARY, group=category)
        assert {entry.get("generator", name) for name, entry in asked.items()} == trained
        assert sum(entry["size"] for entry in asked.values()) >= 20


def test_the_datasets_of_breadth_are_nested_and_none_is_unseen():
    for seed in MODELS[0].seeds:
        found = [training for training in breadth.trainings(PROGRAMME, MODELS[0]) if training.seed == seed]
        mixtures = [set(training.settings["data.mixture"]) for training in found if training.rl_steps]
        assert [len(names) for names in mixtures] == [1, 4, 16, 64]
        assert all(few < many for few, many in itertools.pairwise(mixtures))
        assert not mixtures[-1] & set(PROGRAMME.datasets(breadth.TASK, group="unseen"))


def test_every_algorithm_is_compared():
    choices = {path.stem for path in (CONFIGS / "algorithm").glob("*.yaml")}
    assert {*algorithms.ALGORITHMS, "grpo_no_kl"} == choices


def test_trainings_with_greedy_answers_differ_from_those_with_samples_only_in_the_evaluation():
    model = MODELS[0]
    made = {(training.arm, training.task, training.seed): training for training in greedy.trainings(PROGRAMME, model)}
    assert len(made) == 2 * len(PROGRAMME.categories) * len(model.seeds)
    for arm, sampled in (("accuracy", categories.accuracy), ("format_only", controls.format_only)):
        same = sampled(PROGRAMME, model, "cognition", 2)
        other = made[f"{arm}_greedy", "cognition", 2]
        assert other.settings == same.settings | categories.GREEDILY
        assert (other.config, other.rl_steps) == (same.config, same.rl_steps)


def test_outside_benchmarks_are_answered_by_the_base_and_by_every_category():
    found = outside.trainings(PROGRAMME, MODELS[0])
    assert {training.task for training in found} == {"outside", *(f"outside_{name}" for name in PROGRAMME.categories)}
    assert all(training.evaluated_tasks == ["outside"] for training in found)
    trained = {(training.arm, training.config) for training in found if training.rl_steps}
    assert trained == {("accuracy", "training"), ("format_only", "format_only")}
    assert {training.arm for training in found if not training.rl_steps} == {"none"}


def written_outside_files(folder, monkeypatch, *, math_answers):
    """Write the files of questions from small sources, and return their rows by benchmark."""
    sources = {
        "gsm8k.jsonl": [
            {"question": f"{n}\u2028?", "answer": f"It is <<{n}={n}>>.\n#### {n:,}"} for n in range(1001, 1004)
        ],
        "math.jsonl": [{"problem": f"{name}?", "answer": answer} for name, answer in math_answers.items()],
    }
    for name, lines in sources.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "bbh").mkdir()
    examples = [{"input": f"Which? ({n})", "target": "(B)"} for n in range(100)]
    (folder / "bbh" / "snarks.json").write_text(json.dumps({"examples": examples}))
    monkeypatch.setattr(outside_data, "FOLDER", folder / "outside")
    words = ["--gsm8k", folder / "gsm8k.jsonl", "--math", folder / "math.jsonl", "--bbh", folder / "bbh"]
    monkeypatch.setattr(sys, "argv", ["outside_data.py", *map(str, words)])
    outside_data.main()
    verifiers = {entry["dataset"]: entry["verifier"] for entry in PROGRAMME.datasets("outside").values()}
    return {
        name: load_questions(folder / "outside" / f"{name}.jsonl", verifier=verifier).rows
        for name, verifier in verifiers.items()
    }


def test_the_files_of_outside_benchmarks_have_short_questions_with_comparable_answers(tmp_path, monkeypatch):
    answers = {
        "Half": r"\dfrac{1}{2}",
        "Third": r"-\frac{1}{3}",
        "One": "1.0",
        "Mixed": r"3\frac{3}{4}",
        "Pair": "(1, 2)",
    }
    written = written_outside_files(tmp_path, monkeypatch, math_answers=answers | {"Long" + "x" * 800: "3"})
    assert sorted(row.answer for row in written["gsm8k"]) == ["1,001", "1,002", "1,003"]
    assert {row.question: row.answer for row in written["math"]} == {"Half?": "1/2", "Third?": "-1/3", "One?": "1.0"}
    assert len(written["bbh"]) == 44
    assert {row.metadata["subtask"] for row in written["bbh"]} == {"snarks"}


def test_the_scorer_judges_outside_benchmarks(tmp_path, monkeypatch):
    written_outside_files(tmp_path, monkeypatch, math_answers={"Half": "1/2", "One": "1"})
    verifiers = {entry["dataset"]: entry["verifier"] for entry in PROGRAMME.datasets("outside").values()}
    raw = {
        name: {"path": str(tmp_path / "outside" / f"{name}.jsonl"), "verifier": verifiers[name]}
        for name in ("gsm8k", "bbh")
    }
    with Scorer(num_workers=1) as scorer:
        for spec in parse_mixture(raw):
            entry = ProblemSource(spec, seed=1)[0].entry
            scores = [scorer.score(answer, entry) for answer in (entry["answer"], "(A) or 7", "x" * 5000)]
            assert [score.accuracy for score in scores] == [1, 0, 0], spec.name


@pytest.mark.parametrize(
    ("subtask", "target", "right", "wrong"),
    [
        ("hyperbaton", "(B)", ["B", "(b)", "(B) the second", "option B"], ["(A)", ""]),
        ("boolean_expressions", "True", ["true", "True."], ["False"]),
        ("dyck_languages", "] )", ["] )", "])"], [") ]"]),
        ("multistep_arithmetic_two", "-35", ["-35", "the answer is -35"], ["35"]),
    ],
)
def test_targets_of_big_bench_hard_are_judged_by_their_subtask(subtask, target, right, wrong):
    question = "Complete: [ (" if subtask == "dyck_languages" else "Which?\n(A) the first\n(B) the second"
    question = "Complete: ( [" if subtask == "dyck_languages" else question
    entry = {"question": question, "answer": target, "metadata": {"subtask": subtask}}
    assert [same_target(answer, entry) for answer in right] == [1] * len(right)
    assert [same_target(answer, entry) for answer in wrong] == [0] * len(wrong)


def test_numbers_of_outside_benchmarks_may_be_written_in_several_ways():
    entry = {"answer": "1/2"}
    assert [same_number(answer, entry) for answer in ("0.5", r"\frac{1}{2}", "x = 1/2")] == [1, 1, 1]
    assert [same_number(answer, entry) for answer in ("2", "1/2 or 1/3", "", "0.5" + " " * 1000)] == [0] * 4


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"bbh/snarks.json": None}, "has no JSON files"),
        ({"bbh/snarks.json": '{"canary": ""}'}, "snarks.json has no list 'examples'"),
        ({"gsm8k.jsonl": '{"question": "1 + 1?", "answer": "2"}'}, "gsm8k.jsonl has the answer '2' without '####'"),
        ({"math.jsonl": '{"problem": "1 + 1?", "answer": "(1, 2)"}'}, "math.jsonl has no answer that is a number"),
        ({"math.jsonl": "not JSON"}, "math.jsonl"),
        ({"math.jsonl": '{"problem": "1 + 1?", "solution": "2"}'}, "math.jsonl lacks the key 'answer'"),
    ],
)
def test_outside_data_that_cannot_be_read_is_refused(tmp_path, fault, message):
    files = {
        "gsm8k.jsonl": '{"question": "1 + 1?", "answer": "#### 2"}',
        "math.jsonl": '{"problem": "1 + 1?", "answer": "2"}',
        "bbh/snarks.json": '{"examples": [{"input": "1", "target": "(A)"}]}',
    }
    (tmp_path / "bbh").mkdir()
    for name, text in (files | fault).items():
        if text is not None:
            (tmp_path / name).write_text(text)
    given = ["--gsm8k", tmp_path / "gsm8k.jsonl", "--math", tmp_path / "math.jsonl", "--bbh", tmp_path / "bbh"]
    command = [sys.executable, "evidence/outside_data.py", *map(str, given)]
    ended = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and message in ended.stderr


def test_examples_are_dropped_before_the_end():
    for model in MODELS:
        of_arm = {training.arm: training for training in warm_start.trainings(PROGRAMME, model)}
        settings = of_arm["examples_dropped"].settings
        assert 0 < settings["data.prompt.examples_until_step"] < model.steps
        del of_arm["examples_dropped"]
        assert {training.settings["data.prompt.num_examples"] for training in of_arm.values()} == {0}
