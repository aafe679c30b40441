"""A run's folder says what it was made by."""

import json
import subprocess

from rgtrain import provenance
from rgtrain.paths import PROJECT_ROOT


def test_every_start_adds_a_line(tmp_path):
    provenance.record(tmp_path)
    provenance.record(tmp_path)
    first, second = (json.loads(line) for line in (tmp_path / provenance.FILE).read_text().splitlines())
    assert first["commit"] == second["commit"]
    head = subprocess.run(["git", "-C", str(PROJECT_ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert first["commit"] == (head.stdout.strip() or None)
    assert "pytest" in first["command"]
    assert first["packages"]["verl"] == "0.9.1"
    assert {"torch", "reasoning-gym"} <= {name.replace("_", "-") for name in first["packages"]}
