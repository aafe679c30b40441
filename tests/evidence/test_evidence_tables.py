"""The tables follow from the records: known effects are found, absent ones are not, and missing parts are named."""

import re
import subprocess
import sys

import numpy
import pytest

from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT

sys.path.insert(0, str(PROJECT_ROOT))
from support.evidence_records import synthetic_records

from evidence import category_tables, cells, overview_tables, part_tables, result_figures, right_answers, tables
from evidence.boundary_measures import discoveries
from evidence.claims import CLAIMS, FAILS, HOLDS, OPEN, UNSEEN, of_task, verdict, verdicts, within
from evidence.measured import UNTRAINED, Arm, Measured
from evidence.parts import controls, curriculum
from evidence.svg_charts import Curves, curves_figure
from evidence.training_plan import OUTSIDE, OUTSIDE_ARMS, RL, SFT, Programme
from rgtrain.stats import Contrast

NOTHING = tables.read_measured()
PROGRAMME, PARTS = NOTHING.programme, NOTHING.parts
SMALL = next(iter(PROGRAMME.models.values()))


def with_records(records):
    return Measured(PROGRAMME, records, PARTS)


def transfer(training, dataset):
    """Training on accuracy helps on the own category only, and format only helps by half on trained datasets."""
    if training.task not in PROGRAMME.categories or dataset not in PROGRAMME.datasets(training.task):
        return 0
    is_trained = dataset in PROGRAMME.datasets(training.task, group="trained")
    gains = {"accuracy": (2, 1), "format_only": (1, 0)}
    return gains.get(training.arm, (0, 0))[not is_trained]


@pytest.fixture(scope="module")
def effects():
    return with_records(synthetic_records(NOTHING, parts=["controls"], effect=transfer, models=[SMALL.name]))


@pytest.fixture(scope="module")
def no_effects():
    return with_records(synthetic_records(NOTHING, parts=["controls"], models=[SMALL.name], seed=1))


def outcomes(measured, model=SMALL):
    return {claim.text: judged and judged.verdict for claim, _, judged in verdicts(measured, model)}


def test_known_effects_are_found(effects):
    found = outcomes(effects)
    assert len(found) == len(CLAIMS)
    assert found["Training carries over to unseen datasets of the category"] == HOLDS
    assert found["Within a category, it carries over more than the answer format"] == HOLDS
    assert found["RL teaches more than the format, on trained datasets"] == HOLDS
    assert found["Training carries over to other categories"] != HOLDS
    assert found["Across categories, it carries over more than the answer format"] != HOLDS
    rows = [row for row in category_tables.intra(effects).splitlines() if f"| {SMALL.name} | unseen |" in row]
    assert len(rows) == len(PROGRAMME.categories)
    assert sum("*" in row for row in rows) >= len(rows) - 1


def test_the_estimates_agree_with_the_records(effects):
    [comparison, *_] = within(effects, SMALL, arm="accuracy", before=UNTRAINED, group=UNSEEN)
    shares = [
        numpy.mean([effects.shares(arm, dataset).mean() for dataset in comparison.datasets])
        for arm in (comparison.after, comparison.before)
    ]
    contrast = effects.difference([comparison])
    assert contrast.estimate == pytest.approx(shares[0] - shares[1])
    assert cells.interval_text(contrast) in category_tables.intra(effects)


def test_a_problem_that_is_asked_twice_counts_once():
    evaluation = {"gcd": {"digests": ["a", "b", "a"], "solved": [4, 1, 2], "samples": 4}}
    arm = Arm(SMALL.name, PROGRAMME.categories[0], "accuracy")
    record = {"model": arm.model, "task": arm.task, "arm": arm.name, "seed": 1, "evaluation": evaluation}
    assert with_records([record]).shares(arm, "gcd").tolist() == [[0.75, 0.25]]


def test_a_constant_answer_is_seen_in_the_right_answers():
    answers = right_answers.right_answers()["letter_counting"]
    assert right_answers.most_frequent_share("letter_counting") > 0.8
    always_one = [float(answer == "1") for answer in answers.values()]
    assert right_answers.same_answer_share("letter_counting", list(answers), always_one) == 1
    assert 0.8 < right_answers.same_answer_share("letter_counting", list(answers), [1.0] * len(answers)) < 0.9
    assert right_answers.same_answer_share("letter_counting", list(answers), [0.0] * len(answers)) is None


def test_one_answer_to_all_and_one_per_subtask_solve_their_share(monkeypatch):
    monkeypatch.setattr(right_answers, "right_answers", lambda: {"two": {"1": "A", "2": "A", "3": "B", "4": "C"}})
    monkeypatch.setattr(right_answers, "all_subtasks", lambda: {"two": {"1": "x", "2": "x", "3": "x", "4": "y"}})
    assert right_answers.most_frequent_share("two") == 2 / 4
    assert right_answers.most_frequent_share("two", by_subtask=True) == 3 / 4


def test_answers_of_outside_benchmarks_stay_without_their_files(tmp_path, monkeypatch):
    kept = dict(right_answers.right_answers())
    monkeypatch.setattr(Programme, "missing_question_files", lambda *_: [tmp_path / "math.jsonl"])
    contents = right_answers.contents(PROGRAMME, models=[])
    assert all(contents[right_answers.PATH][name] == kept[name] for name in PROGRAMME.datasets(OUTSIDE))
    assert right_answers.SUBTASKS not in contents
    monkeypatch.setattr(right_answers, "right_answers", dict)
    with pytest.raises(ConfigError, match=r"math\.jsonl is missing; write it by evidence/outside_data\.py"):
        right_answers.contents(PROGRAMME, models=[])


def test_right_answers_are_those_of_the_evaluation_files():
    found = right_answers.right_answers()
    evaluated = (*PROGRAMME.categories, OUTSIDE)
    assert set(found) == {name for task in evaluated for name in PROGRAMME.datasets(task)}
    made = right_answers.answers_of_file(PROGRAMME.evaluation_file("arithmetic"))
    assert {name: found[name] for name in made} == made


def test_problems_that_a_fixed_rule_solves_are_counted_apart():
    path = PROGRAMME.evaluation_file("games_and_graphs")
    by_rule = right_answers.rule_solved()["countdown"]
    assert right_answers.solved_by_rules(path) == {"countdown": by_rule}
    solved = [float(by_rule[digest]) for digest in by_rule]
    record = {
        "model": SMALL.name,
        "task": "games_and_graphs",
        "arm": "accuracy",
        "seed": 1,
        "evaluation": {"countdown": {"digests": list(by_rule), "samples": 1, "solved": solved}},
    }
    arm = Arm(SMALL.name, "games_and_graphs", "accuracy")
    assert category_tables.rule_cells(with_records([record]), arm, "countdown") == ["17 of 31", "100.0", "0.0"]


def test_without_effects_nothing_is_significant(no_effects):
    assert HOLDS not in outcomes(no_effects).values()
    # Holm's correction allows one false star in 20 families.
    assert (
        category_tables.controls(no_effects).count(")*") + category_tables.cross(no_effects, UNTRAINED).count(")*") <= 2
    )


def test_two_groups_of_seeds_of_one_arm_differ_in_at_most_5_percent_of_cases(no_effects):
    arms = [Arm(SMALL.name, task, "accuracy") for task in PROGRAMME.categories]
    datasets = list(PROGRAMME.datasets(PROGRAMME.categories[0]))
    p_values = [p_value for arm in arms for p_value in overview_tables.split_p_values(no_effects, arm, datasets)]
    # 10 splits of 5 seeds into 2 and 3.
    assert len(p_values) == 10 * len(arms)
    assert numpy.mean([p_value < 0.05 for p_value in p_values]) <= 0.08


def test_problems_that_the_base_solves_are_not_lost_by_chance(no_effects):
    found = category_tables.retained(no_effects, SMALL, PROGRAMME.categories[0])
    assert found.contrast.estimate == pytest.approx(found.after - found.again)
    assert abs(found.contrast.estimate) < 0.08 < found.again
    assert abs(found.greedy - found.again) < 0.15


def test_solved_problems_beyond_the_boundary_are_discovered_and_luck_is_not():
    def effect(training, dataset):
        return -6 + (4 if training.arm == "accuracy" else 0)

    records = synthetic_records(
        NOTHING, parts=["boundary"], effect=effect, models=[SMALL.name], num_problems=6, seed_spread=0
    )
    measured, category = with_records(records), PROGRAMME.categories[0]
    found = {arm: discoveries(measured, SMALL, category=category, arm=arm) for arm in part_tables.BOUNDARY_ARMS}
    trained, control = found["accuracy"], found["random_reward"]
    assert (trained.num_unsolved, trained.by_chance) == (control.num_unsolved, control.by_chance)
    assert min(trained.discovered) > 0.1 * trained.num_unsolved
    assert max(control.discovered) <= 1 and control.false <= 1
    assert outcomes(measured)["Training solves problems that the base never solves"] == HOLDS
    assert result_figures.boundary_figure(measured).startswith("<svg")


def test_missing_parts_are_named_with_their_cost():
    empty = with_records([])
    assert set(outcomes(empty).values()) == {None}
    assert "not run" in overview_tables.verdict_table(empty)
    assert re.search(
        rf"{SMALL.name}: (\d+) of \1 trainings not run, about \d+ GPU minutes\.", category_tables.intra(empty)
    )
    for name, (draw, _) in result_figures.FIGURES.items():
        assert draw(empty) is None, name


def test_outside_benchmarks_have_a_table_and_a_verdict():
    def effect(training, dataset):
        return {"accuracy": 3.0, "format_only": 1.5}.get(training.arm, 0.0) * (dataset == "gsm8k")

    records = synthetic_records(NOTHING, parts=["outside"], models=[SMALL.name], effect=effect)
    measured = with_records(records)
    found = outcomes(measured)
    assert found["Training carries over to outside benchmarks"] == HOLDS
    assert found["Outside, it carries over more than the answer format"] == HOLDS
    rows = [
        [cell.strip() for cell in line.split("|")] for line in part_tables.outside_by_category(measured).splitlines()
    ]
    gains = {arm: [row[6:9] for row in rows if row[1:3] == [SMALL.name, arm]] for arm in ("accuracy", "format only")}
    assert [len(of_arm) for of_arm in gains.values()] == [len(PROGRAMME.categories)] * 2
    assert all(gsm8k.endswith("*") for gsm8k, _, _ in gains["accuracy"])
    assert not any(cell.endswith("*") for _, *others in gains["accuracy"] for cell in others)
    means = [line.split("|")[6] for line in part_tables.outside_means(measured).splitlines() if SMALL.name in line]
    without, accuracy, format_only = (float(cell.split()[0]) for cell in means[:3])
    assert without > 0 and accuracy > format_only > 0
    is_lost = (f"outside_{PROGRAMME.categories[0]}", "format_only")
    partial = with_records([each for each in records if (each["task"], each["arm"]) != is_lost])
    assert re.search(r"format only \| 0 to 5 \| [\d.]+ \| [^|]+ \[4 of 5\] \|", part_tables.outside_means(partial))
    assert f"{SMALL.name}: {len(SMALL.seeds)} of" in part_tables.outside_by_category(partial)


def test_gains_of_greedy_answers_are_over_greedy_answers():
    def effect(training, dataset):
        return {"greedy": 1.0, "accuracy_greedy": 3.0, "format_only_greedy": 1.0}.get(training.arm, 0.0)

    measured = with_records(
        synthetic_records(NOTHING, parts=["controls", "greedy"], models=[SMALL.name], effect=effect, seed_spread=0)
    )
    accuracy, format_only = (line.split("|")[4:7] for line in category_tables.greedy_means(measured).splitlines()[2:4])
    assert all(re.match(r" \+\d.* \(\+\d", cell) for cell in accuracy)
    assert all(re.search(r"\(-\d.* to \+\d", cell) for cell in format_only)


def test_training_on_the_own_category_is_compared_with_training_on_others():
    def effect(training, dataset):
        is_own = training.task in PROGRAMME.categories and dataset in PROGRAMME.datasets(training.task)
        return 2.0 if is_own and training.arm == "sft" else 0.0

    measured = with_records(synthetic_records(NOTHING, parts=["controls"], models=[SMALL.name], effect=effect))
    lines = category_tables.own_category(measured).splitlines()
    sft, accuracy = (
        next(line for line in lines if line.startswith(f"| {SMALL.name} | {name} |")) for name in ("SFT", "accuracy")
    )
    assert re.search(r"\| \+\d+\.\d \(\+\d", sft)
    assert re.search(r"\(-\d.* to \+\d", accuracy)


def test_the_figure_of_curricula_leaves_out_levels_without_solved_problems():
    levels = list(PROGRAMME.datasets("curriculum_chain_sum"))

    def effect(training, dataset):
        return 0 if dataset in levels[:2] else -100

    measured = with_records(synthetic_records(NOTHING, parts=["curriculum"], models=[SMALL.name], effect=effect))
    figure = result_figures.curriculum_figure(measured)
    places = re.findall(r'text-anchor="middle"[^>]*>(\d|all)</text>', figure)
    assert places == ["0", "1", "all"]
    # A line joins the two levels of each curriculum, and none leads to the total.
    assert [len(points.split()) for points in re.findall(r'<polyline[^>]* points="([^"]*)"', figure)] == [2] * 4
    # Each curriculum has a ring for every training.
    assert len(re.findall(r'<circle class="s\d" style="fill:none"[^>]* r="2\.2"', figure)) == 4 * len(SMALL.seeds)


def test_rings_are_the_trainings_behind_the_mean_gain():
    measured = with_records(synthetic_records(NOTHING, parts=["curriculum"], models=[SMALL.name], effect=lambda *_: 0))
    for comparison in of_task(measured, SMALL, "curriculum", arm="frontier", before="uniform"):
        gains = result_figures.gains_of_trainings(measured, comparison)
        assert len(gains) == len(SMALL.seeds)
        assert numpy.mean(gains) == pytest.approx(measured.difference([comparison]).estimate)


def test_every_arm_has_a_name_and_every_table_a_place():
    assert {"accuracy", *(arm.__name__ for arm in controls.ARMS)} == set(cells.ARM_NAMES)
    assert set(OUTSIDE_ARMS) <= set(cells.ARM_NAMES)
    assert {*curriculum.POLICIES, curriculum.ADAPTIVE} == set(part_tables.POLICIES)
    texts = "".join(path.read_text(encoding="utf-8") for path in tables.DOCUMENTS)
    marked = re.findall(r"<!-- evidence:(\w+) -->", texts)
    assert sorted(marked) == sorted([*tables.TABLES, *tables.FIGURES])


def test_more_series_than_shapes_are_refused():
    with pytest.raises(ValueError, match="8 series, but 7 colors and shapes"):
        curves_figure([Curves("", [], {})], series=list("abcdefgh"), axis="", description="")


def test_a_folder_without_records_is_refused(tmp_path):
    command = [sys.executable, "evidence/tables.py", "--results", str(tmp_path)]
    ended = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and f"{tmp_path} has no records; correct --results" in ended.stderr


def test_a_partial_table_says_how_many_seeds_and_categories_it_has(effects):
    records = [
        record
        for by_seed in effects.records.values()
        for record in by_seed.values()
        if record["seed"] <= 3 and record["task"] != PROGRAMME.categories[0]
    ]
    partial = with_records(records)
    table = overview_tables.verdict_table(partial)
    assert "** so far: " in table and "[4 of 5, 3 of 5 seeds]" in table
    assert "| 3 of 5 |" in category_tables.intra(partial)
    few = overview_tables.verdict_table(with_records([record for record in records if record["seed"] <= 2]))
    assert "incomplete: " in few and "**" not in few
    assert "not run" in category_tables.intra(partial)


def test_figures_show_every_arm_in_both_color_schemes(effects):
    svg = result_figures.intra_figure(effects)
    for name in cells.ARM_NAMES.values():
        assert f">{name}</text>" in svg
    assert "@media screen and (prefers-color-scheme:dark)" in svg
    assert result_figures.cross_figure(effects).count("<rect") > 2 * len(PROGRAMME.categories) ** 2


def test_trainings_that_answered_different_problems_are_refused(effects):
    records = [record for by_seed in effects.records.values() for record in by_seed.values()]
    dataset = next(iter(PROGRAMME.datasets(PROGRAMME.categories[0])))
    changed = {**records[0], "evaluation": {**records[0]["evaluation"]}}
    changed["evaluation"][dataset] = changed["evaluation"][dataset] | {"digests": ["other"] * 24}
    with pytest.raises(ConfigError, match=f"different problems of {dataset}"):
        category_tables.intra(with_records([changed, *records[1:]]))


@pytest.mark.parametrize(
    ("estimate", "interval", "adjusted_p", "expected"),
    [
        (0.1, (0.05, 0.15), 0.01, HOLDS),
        (0.1, (0.01, 0.19), 0.2, OPEN),
        (0.005, (-0.005, 0.015), 1, FAILS),
        (-0.1, (-0.15, -0.05), 0.01, FAILS),
        (0.0, (-0.05, 0.05), 1, OPEN),
    ],
)
def test_verdicts_follow_the_stated_rule(estimate, interval, adjusted_p, expected):
    assert verdict(Contrast(estimate, 0.1, 9, interval, 0.01, 5, 99), adjusted_p=adjusted_p) == expected


@pytest.mark.parametrize("log_odds", [-30.0, 30.0], ids=["nothing is solved", "everything is solved"])
def test_arms_that_cannot_differ_are_undecided(log_odds):
    records = synthetic_records(NOTHING, parts=["controls"], models=[SMALL.name], center=log_odds)
    assert set(outcomes(with_records(records)).values()) <= {None, OPEN}


def test_tasks_that_no_arm_solves_do_not_narrow_the_interval():
    def only_chain_sum_is_solved(training, dataset):
        return 0 if training.task == "curriculum_chain_sum" else -100

    records = synthetic_records(NOTHING, parts=["curriculum"], models=[SMALL.name], effect=only_chain_sum_is_solved)
    found = {claim.text: found for claim, found, _ in verdicts(with_records(records), SMALL)}[
        "A bandit over levels helps"
    ]
    alone = [record for record in records if record["task"] == "curriculum_chain_sum"]
    expected = {claim.text: found for claim, found, _ in verdicts(with_records(alone), SMALL)}[
        "A bandit over levels helps"
    ]
    assert found.contrast == expected.contrast and (found.num_compared, found.num_planned) == (1, 1)


@pytest.mark.parametrize("kind", [RL, SFT])
def test_every_training_has_the_chosen_rate(kind):
    trials = {trial.name for model in NOTHING.models for trial in PROGRAMME.learning_rate_trials(model, kind)}
    for by_seed in NOTHING.records.values():
        for record in by_seed.values():
            name = f"{record['task']}/{record['arm']}/seed_{record['seed']}"
            if name not in trials and record["config"][f"{kind}_steps"]:
                chosen = PROGRAMME.models[record["model"]].chosen[kind]
                assert record["config"]["learning_rates"][kind] == chosen, name


def test_datasets_with_too_long_answers_count_for_no_claim(effects, monkeypatch):
    category = PROGRAMME.categories[0]
    dataset = next(iter(PROGRAMME.datasets(category, group=UNSEEN)))
    fewest = {SMALL.name: {dataset: SMALL.settings["data.max_response_length"] + 1}}
    monkeypatch.setattr(right_answers, "fewest_tokens", lambda: fewest)
    left = within(effects, SMALL, arm="accuracy", before=UNTRAINED, group=UNSEEN)[0].datasets
    assert left == [name for name in PROGRAMME.datasets(category, group=UNSEEN) if name != dataset]
    assert f"| {dataset} |" in category_tables.datasets(effects)


def test_claims_with_two_seeds_have_no_verdict_and_do_not_count_for_the_others(effects):
    records = [record for by_seed in effects.records.values() for record in by_seed.values()]
    few = with_records([record for record in records if record["arm"] != "random_reward" or record["seed"] <= 2])
    by_text = {claim.text: (found, judged) for claim, found, judged in verdicts(few, SMALL)}
    found, judged = by_text["Right rewards are needed, on trained datasets"]
    assert found.contrast is not None and found.num_seeds == 2 and judged is None
    num_judged = sum(judged is not None for _, judged in by_text.values())
    smallest = min(found.contrast.p_value for found, judged in by_text.values() if judged)
    assert min(judged.adjusted_p for _, judged in by_text.values() if judged) == pytest.approx(num_judged * smallest)


@pytest.mark.parametrize("part", ["warm_start", "boundary"])
def test_a_part_with_all_its_records_is_complete(part):
    measured = with_records(synthetic_records(NOTHING, parts=[part], models=[SMALL.name], num_problems=6, center=-4))
    rows = [
        row for row in overview_tables.verdict_table(measured).splitlines() if f"(#{part.replace('_', '-')})" in row
    ]
    assert rows and all(re.search(r"\| \*\*[a-z ]+\*\*: [^\[|]+ \| not run \|$", row) for row in rows), rows


def test_a_base_that_solves_everything_leaves_too_few_problems():
    measured = with_records(synthetic_records(NOTHING, parts=["boundary"], models=[SMALL.name], center=30))
    assert "too few problems" in overview_tables.verdict_table(measured)


def test_records_of_other_settings_are_named(effects):
    assert overview_tables.deviating(effects) == "All records follow the plan."
    [record, *_] = effects.records[Arm(SMALL.name, PROGRAMME.categories[0], "accuracy")].values()
    changed = with_records([record | {"config": record["config"] | {"rl_steps": 7}}])
    assert f"| 1 | rl_steps is 7 instead of {SMALL.steps} |" in overview_tables.deviating(changed)


def test_the_course_of_trainings_and_every_dataset_are_shown(effects):
    [row] = [
        row for row in category_tables.training_health(effects).splitlines() if f"{SMALL.name} | accuracy |" in row
    ]
    assert "| 2.50 | 0.10 to 0.90 | - |" in row
    assert category_tables.datasets(effects).count(f"| {SMALL.name} |") == sum(
        len(PROGRAMME.datasets(category)) for category in PROGRAMME.categories
    )
    assert f"| {SMALL.name} | SFT | 100.0 | 100.0 |" in category_tables.answers_in_format(effects)
    assert overview_tables.verdict_numbers(effects).count("not run") > 7


def test_an_unknown_mark_is_refused():
    with pytest.raises(ValueError, match="no table or figure 'tabel'"):
        tables.filled("<!-- evidence:tabel -->\n<!-- end -->", NOTHING, figures={}, folder=tables.IMAGES)


def test_the_documents_and_figures_follow_from_the_records():
    command = [sys.executable, "evidence/tables.py", "--check"]
    result = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
