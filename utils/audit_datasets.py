"""Measure whether Reasoning Gym's datasets are fit to train on: python utils/audit_datasets.py --help."""

import sys
from pathlib import Path

# The script works from any folder, even if the package is not installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from rgtrain.commands.audit_command import main

if __name__ == "__main__":
    main(program="python utils/audit_datasets.py")
