"""Progress lines are written whole and carry the run's mark."""

import subprocess
import sys

from rgtrain.training.lifecycle.console import MARK_VARIABLE, announce

# Two threads of one process. One prints as Ray's log monitor does.
PROGRAM = """
import sys, threading
from rgtrain.training.lifecycle.console import announce

def print_text():
    for _ in range(20000):
        print("text of a worker")

sys.setswitchinterval(1e-6)
printing = threading.Thread(target=print_text)
printing.start()
while printing.is_alive():
    announce("step 1/2")
printing.join()
"""


def test_a_line_is_never_interrupted_by_another_thread():
    done = subprocess.run([sys.executable, "-u", "-c", PROGRAM], capture_output=True, text=True, check=True)
    marked = [line for line in done.stdout.splitlines() if "[rgtrain]" in line]
    assert len(marked) > 10
    assert [line for line in marked if not line.endswith("step 1/2")] == []


def test_a_line_carries_the_mark_of_its_run(monkeypatch, capsys):
    monkeypatch.setenv(MARK_VARIABLE, "[rgtrain 12ab] ")
    announce("step 1/2")
    assert capsys.readouterr().out == "[rgtrain 12ab] step 1/2\n"
