"""The prose of the tree follows the rules that can be checked, and the checker finds violations of each."""

import pytest
from support.prose import ROOT, RULES, tracked_files, violations


@pytest.mark.parametrize("path", tracked_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_sentence_breaks_a_rule(path):
    found = [f"line {one.line}: {one.sentence} ({RULES[one.rule][1]})" for one in violations(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("where", "Where there is no GPU, the CPU is used."),
        ("what", "What a run's memory depends on."),
        ("nobody", "Nobody waits for it."),
        ("tell", "The log tells the cause."),
        ("per", "Verl empties the cache three times a step."),
        ("that of", "That of a sweep's run before."),
        ("of its own", "It runs in a process of its own."),
        ("the main job", "The main job trains a model."),
        ("two colons", "The state: a level; the weights: a list of numbers."),
        ("long", " ".join(["word"] * 46) + "."),
    ],
)
def test_a_sentence_that_breaks_a_rule_is_found(rule, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr("support.prose.ROOT", tmp_path)
    path = tmp_path / "page.md"
    path.write_text(f"# A page\n\n{sentence}\n")
    assert rule in {found.rule for found in violations(path)}


@pytest.mark.parametrize(
    "sentence",
    [
        "The run reports where to look.",
        "What is a rollout?",
        "A group has eight completions per prompt.",
        "It installs the CUDA stack if it finds a GPU, otherwise the CPU stack.",
        "Code such as `where` and `what` is not prose.",
    ],
)
def test_plain_sentences_pass(sentence, tmp_path, monkeypatch):
    monkeypatch.setattr("support.prose.ROOT", tmp_path)
    path = tmp_path / "page.md"
    path.write_text(f"{sentence}\n")
    assert not list(violations(path))
