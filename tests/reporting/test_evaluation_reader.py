"""Unfinished and damaged evaluations are refused, and secrets in old evaluations are masked."""

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.evaluated import COMPARE

from rgtrain.errors import ConfigError
from rgtrain.reporting.comparison import compare
from rgtrain.reporting.comparison_page import comparison_page
from rgtrain.reporting.evaluation_reader import read_evaluation
from rgtrain.reporting.evaluation_report import report


def test_an_unfinished_evaluation_is_refused_with_the_fix(pair, tmp_path):
    (pair[0].folder / "summary.json").unlink()
    done = subprocess.run(
        [sys.executable, COMPARE, pair[0].folder, "none"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not a finished evaluation; the same evaluate_model.py command finishes it" in done.stderr


def paths_in(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path to every value inside a tree of mappings and lists."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from paths_in(child, (*path, key))


def test_damage_to_any_value_of_a_summary_is_reported_or_harmless(pair, monkeypatch):
    # The bootstrap takes most of the time, and reads no summary.
    monkeypatch.setattr("rgtrain.reporting.comparison.difference_interval", lambda sums: (0.0, 0.0))
    folder, good = pair[1].folder, pair[1].summary
    num_refused = 0
    damages = ("gone", None, [], -1, "", {}, float("nan"))
    for number, path in enumerate(paths_in(good)):
        # Together, the values of each kind suffer every kind of damage.
        for damage in ("gone", damages[number % len(damages)]):
            summary = json.loads(json.dumps(good))
            parent = functools.reduce(lambda tree, key: tree[key], path[:-1], summary)
            if damage == "gone":
                del parent[path[-1]]
            else:
                parent[path[-1]] = damage
            (folder / "summary.json").write_text(json.dumps(summary))
            try:
                damaged = read_evaluation(folder)
            except ConfigError as error:
                num_refused += 1
                assert "is damaged" in str(error) and "delete" in str(error)
                continue
            report(damaged)
            try:
                comparison_page([pair[0], damaged], compare([pair[0], damaged]), page=folder / "compared.html")
            except ConfigError as error:
                assert "can't be compared" in str(error)
    assert num_refused > 100


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000])
def test_a_damaged_summary_is_reported_with_the_fix(pair, content):
    (pair[0].folder / "summary.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"summary\.json is damaged .*; delete it, and the same evaluate_model\.py"):
        read_evaluation(pair[0].folder)


def test_results_that_lack_answers_are_refused(pair):
    results = pair[0].folder / "results.jsonl"
    results.write_bytes(b"".join(results.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        ConfigError, match=r"its 5 answers are not the 6 that summary.json counts\); delete summary.json"
    ):
        read_evaluation(pair[0].folder)


def test_a_password_that_an_older_version_wrote_is_not_shown(pair):
    summary = json.loads((pair[0].folder / "summary.json").read_text())
    summary["command"] = "python x.py base_url=http://me:pa55word@host/v1"
    summary["model"]["base_url"] = summary["config"]["base_url"] = "http://me:pa55word@host/v1"
    (pair[0].folder / "summary.json").write_text(json.dumps(summary))
    evaluation = read_evaluation(pair[0].folder)
    compared = [evaluation, pair[1]]
    assert "pa55word" not in report(evaluation) + comparison_page(compared, compare(compared), page=Path("x.html"))
