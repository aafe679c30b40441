"""Measure a model on Big-Bench Hard, GSM8K, MATH and MMLU-Pro: python evaluation/run_external.py --help."""

import sys
from pathlib import Path

# The script works from any folder, even if the package is not installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from rgtrain.commands.external_command import main

if __name__ == "__main__":
    main(program="python evaluation/run_external.py")
