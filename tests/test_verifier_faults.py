"""The examples of docs/verifier-faults.md give the output that they show."""

import doctest
import importlib.util
import re
import sys

import pytest

from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems.soundness import committed_audit, is_unsound

TEXT = (PROJECT_ROOT / "docs" / "verifier-faults.md").read_text(encoding="utf-8")
CORE = "## reasoning-core\n"
DECISIONS = re.compile(r"^\| (\w+) \| ([\d.]+) \| (.+?) \| (.+) \|$", re.MULTILINE)


def run(name: str, text: str) -> None:
    """Run all examples. Another output means that upstream has fixed a fault, or that the text is wrong."""
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    example = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, name, name, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(example)
    assert len(blocks) > 2
    assert runner.failures == 0


def test_every_fault_of_reasoning_gym_is_reproduced():
    run("Reasoning Gym", TEXT.partition(CORE)[0])


@pytest.mark.skipif(not importlib.util.find_spec("reasoning_core"), reason="reasoning-core is not installed")
def test_every_fault_of_reasoning_core_is_reproduced(monkeypatch):
    # Keep it from downloading the tokenizer.
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    run("reasoning-core", TEXT.partition("## Decisions")[0] + TEXT.partition(CORE)[2])


def test_every_dataset_that_earns_one_half_for_a_constant_has_a_decision():
    audited = committed_audit().datasets
    rows = {name: rest for name, *rest in DECISIONS.findall(TEXT)}
    paying = {name for name, found in audited.items() if found.best_constant_score >= 0.5 and "/" not in name}
    assert set(rows) == paying
    for name, (earns, right, decision) in rows.items():
        found = audited[name]
        assert earns == f"{found.best_constant_score:.2f}", name
        share = found.best_constant_share_right
        assert right == ("unknown" if share is None else f"{share:.0%}".replace("%", " %")), name
        assert (f"sound/{name}" in audited) == (f"`sound/{name}`" in decision), name
        assert is_unsound(found) != decision.startswith("accepted"), name
