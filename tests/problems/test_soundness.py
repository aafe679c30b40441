import dataclasses
import re

import pytest
from support.registered_datasets import REASONING_GYM
from support.unsound_datasets import PAYING

from rgtrain.errors import ConfigError
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems.audit import read_audit
from rgtrain.problems.soundness import AUDIT_FOLDER, UNSOUND, check_sound, committed_audit, is_unsound


def changed(name, **values):
    """Return the committed audit with different findings about one dataset."""
    audit = committed_audit()
    found = dataclasses.replace(audit.datasets[name], **values)
    return dataclasses.replace(audit, datasets={**audit.datasets, name: found})


def test_the_committed_audit_covers_every_dataset_of_the_pinned_version():
    audit = read_audit(AUDIT_FOLDER)
    assert sorted(audit.datasets) == REASONING_GYM
    pinned = re.search(r"^reasoning-gym==(\S+)", (PROJECT_ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    assert audit.versions["reasoning_gym"] == pinned
    assert audit.command == "python utils/audit_datasets.py"


def test_the_committed_audit_measured_enough_items_of_every_dataset():
    for name, found in committed_audit().datasets.items():
        assert found.making_error is None, name
        assert found.num_items >= found.num_made_again >= 4, name
        assert found.num_constants >= 20, name


@pytest.mark.parametrize("name", PAYING)
def test_a_dataset_that_pays_for_a_constant_answer_is_refused_with_the_answer_and_a_fix(name):
    found = committed_audit().datasets[name]
    assert found.best_constant_score >= UNSOUND
    with pytest.raises(ConfigError) as refusal:
        check_sound(["chain_sum", name], allowed=["gcd"])
    message = str(refusal.value)
    assert f"dataset {name!r} pays without a solution: the constant answer {found.best_constant!r:.30}" in message
    assert f"earns {found.best_constant_score:.2f} on average" in message
    assert message.endswith(f"data.allow_unsound_verifiers=[{name}]")
    assert "chain_sum" not in message


def test_all_refused_datasets_are_reported_together():
    with pytest.raises(ConfigError, match=r"data.allow_unsound_verifiers=\[coin_flip,puzzle24\]$"):
        check_sound(["coin_flip", "chain_sum", "puzzle24", "game_of_life"], allowed=["game_of_life"])


def test_an_allowed_dataset_gives_a_warning():
    [warning] = check_sound(["chain_sum", "puzzle24"], allowed=["puzzle24"])
    assert warning.startswith("dataset 'puzzle24': the constant answer ")
    assert "earns 1.00 on average (it is right on 0% of the problems)" in warning


def test_a_long_constant_is_shortened():
    with pytest.raises(ConfigError, match=r"answer '.{35}\.\.\.' earns 0.9") as refusal:
        check_sound(["game_of_life"], allowed=[])
    assert len(str(refusal.value)) < 350


@pytest.mark.parametrize("name", ["coin_flipp", "", "composites"])
def test_an_unknown_allowed_dataset_is_refused(name):
    with pytest.raises(ConfigError, match=f"data.allow_unsound_verifiers has unknown dataset '{name}'"):
        check_sound(["chain_sum"], allowed=[name])


def test_a_sound_dataset_gives_no_warning():
    assert check_sound(["chain_sum", "spell_backward", "needle_haystack"], allowed=[]) == []


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ({"num_oracles_right": 0}, r"(\d+) of \1 right answers don't score 1"),
        ({"num_oracles": 0, "num_oracles_right": 0}, r"(\d+) of \1 problems have no known answer"),
        ({"num_junk_paid": 3}, "3 of [0-9]+ problems pay 0.5 or more for junk"),
        ({"errors": {"timeout": 2}, "hostile_errors": {"timeout": 1}}, r"fails or hangs on .*\(timeout 3\)"),
        ({"num_other_under_same_hash_seed": 4}, "4 of [0-9]+ problems differ in another process"),
        ({"making_error": "KeyError: 5"}, "its generator failed after [0-9]+ problems: KeyError: 5"),
        ({"seconds_to_make_p99": 1.26}, "1 in 100 of its problems takes 1.3 s or more to make"),
        ({"seconds_to_score_p99": 2.0}, "1 in 100 of its problems takes 2.0 s or more to judge"),
        ({"best_constant_score": 0.3}, "the constant answer .* earns 0.30 on average"),
    ],
)
def test_a_minor_problem_gives_a_warning_with_the_reason(values, warning):
    [line] = check_sound(["chain_sum"], allowed=[], audit=changed("chain_sum", **values))
    assert re.fullmatch(f"dataset 'chain_sum': .*{warning}.*", line)


def test_items_that_differ_only_with_another_hash_seed_are_no_problem():
    audit = changed("chain_sum", num_other_under_other_hash_seed=5)
    assert check_sound(["chain_sum"], allowed=[], audit=audit) == []


def test_a_constant_answer_that_earns_one_half_is_unsound():
    assert is_unsound(changed("gcd", best_constant_score=0.5).datasets["gcd"])
    assert not is_unsound(changed("gcd", best_constant_score=0.499).datasets["gcd"])


def test_a_dataset_without_an_audit_gives_a_warning():
    [warning] = check_sound(["composite"], allowed=[])
    assert warning.startswith("dataset 'composite' was not audited")


def test_another_version_of_reasoning_gym_gives_a_warning():
    audit = dataclasses.replace(committed_audit(), versions={"reasoning_gym": "0.0.1"})
    [warning] = check_sound(["chain_sum"], allowed=[], audit=audit)
    assert warning.startswith("the datasets were audited with Reasoning Gym 0.0.1, but ")


def test_at_least_150_datasets_are_audited_and_each_pays_for_right_answers():
    audited = committed_audit().datasets
    assert len(audited) >= 150
    for name, found in audited.items():
        assert found.num_oracles_right == found.num_oracles, name
        # codeio's programs may read the clock.
        assert found.num_other_under_same_hash_seed == 0 or name == "codeio", name


def test_the_audit_of_the_corrected_datasets_names_its_command():
    for name, prefix in (("sound", "sound/"), ("reasoning_core", "core/")):
        audit = read_audit(AUDIT_FOLDER / name)
        assert audit.command.endswith(f" --out rgtrain/problems/audit/data/{name}")
        assert all(dataset.startswith(prefix) for dataset in audit.datasets)
