"""Every published figure has its file in benchmarks/results, and the tables show these files."""

import json
import re
import sys
from statistics import median

import pytest

from rgtrain.paths import PROJECT_ROOT

sys.path.insert(0, str(PROJECT_ROOT / "benchmarks"))
import record
import tables

FILES = sorted(record.RESULTS.rglob("*.json"))
ENVELOPE = {"command", "commit", "date", "machine", "versions", "settings", "raw", "derived"}
# The project's folders, and a URL's or a device's path, may stand in a result.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|usr|opt|mnt|data)\b")


@pytest.mark.parametrize("path", tables.FILES, ids=lambda path: path.name)
def test_tables_show_the_result_files(path):
    text = path.read_text(encoding="utf-8")
    assert tables.filled(text) == text, "run `python benchmarks/tables.py`"


def test_every_result_file_is_in_a_table():
    shown = {json.dumps(found) for render in tables.TABLES.values() for found in (render() or ("", []))[1]}
    published = [path for path in FILES if path.name != "prompt_lengths.json" and "work" not in path.parts]
    assert [str(path) for path in published if json.dumps(record.read_record(path)) not in shown] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(record.RESULTS)))
def test_a_result_file_says_how_it_was_measured(path):
    result = record.read_record(path)
    assert set(result) >= ENVELOPE
    assert result["command"].startswith("python benchmarks/")
    assert re.fullmatch(r"[0-9a-f]{40}", result["commit"])
    assert path.stat().st_size <= record.MAX_BYTES
    assert not ABSOLUTE_PATH.search(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.parts[-2] in {"small", "large", "step_scaling"} and path.stem != "prompt_lengths"],
    ids=lambda path: str(path.relative_to(record.RESULTS)),
)
def test_medians_of_steps_follow_from_the_raw_steps(path):
    result = record.read_record(path)
    for name, value in result["derived"]["medians"].items():
        steps = result["raw"]["per_step"][name][result["settings"]["warmup"] :]
        assert median(step for step in steps if step is not None) == pytest.approx(value, rel=1e-4)


def test_a_missing_result_is_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.rendering("memory") == tables.MISSING


def test_a_marked_place_is_filled_and_the_text_around_it_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    text = "before\n<!-- results: memory -->\nold\n<!-- end -->\nafter\n"
    filled = f"before\n<!-- results: memory -->\n\n{tables.MISSING}\n\n<!-- end -->\nafter\n"
    assert tables.filled(text) == filled
    assert tables.filled(filled) == filled


def test_a_record_holds_no_path_of_the_machine(tmp_path):
    raw = {"log": f"{PROJECT_ROOT}/train.log", "words": ["/tmp/models/tiny", "run_dir=/tmp/a/b", "tokens/s", 1 / 3]}
    written = record.write_record(tmp_path / "a.json", raw=raw, derived={})
    assert written["raw"] == {"log": "train.log", "words": ["tiny", "run_dir=b", "tokens/s", 0.333333]}
    assert record.read_record(tmp_path / "a.json") == written


def test_a_record_that_is_too_large_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json would have \d+ bytes; at most 300000 are allowed"):
        record.write_record(tmp_path / "a.json", raw=["x" * record.MAX_BYTES], derived={})
    assert not (tmp_path / "a.json").exists()
