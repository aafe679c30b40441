"""The examples of docs/verifier-faults.md give the output that they show."""

import importlib.util
import re
import subprocess
import sys

import pytest

from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems.soundness import committed_audit, is_unsound

TEXT = (PROJECT_ROOT / "docs" / "verifier-faults.md").read_text(encoding="utf-8")
CORE = "## reasoning-core\n"
# Without tiktoken, reasoning-core cannot download a tokenizer.
RUN = """
import doctest, sys
sys.modules["tiktoken"] = None
example = doctest.DocTestParser().get_doctest(sys.argv[1], {}, "faults", None, 0)
runner = doctest.DocTestRunner()
runner.run(example)
print(f"{runner.failures} failures", end="")
"""
DECISIONS = re.compile(r"^\| (\w+) \| ([\d.]+) \| (.+?) \| (.+) \|$", re.MULTILINE)


def run(text: str) -> str:
    """Run all examples in a new process, which other tests have not changed, and return the differences.

    A difference means that upstream has fixed a fault, or that the text is wrong.
    """
    blocks = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 2
    command = [sys.executable, "-W", "ignore", "-c", RUN, "\n".join(blocks)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200).stdout


def test_every_fault_of_reasoning_gym_is_reproduced():
    assert run(TEXT.partition(CORE)[0]) == "0 failures"


@pytest.mark.skipif(not importlib.util.find_spec("reasoning_core"), reason="reasoning-core is not installed")
def test_every_fault_of_reasoning_core_is_reproduced():
    assert run(TEXT.partition("## Decisions")[0] + TEXT.partition(CORE)[2]) == "0 failures"


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
