"""Make a randomly initialised model of a known model's shape: python utils/make_random_model.py --help."""

import sys
from pathlib import Path

# The script works from any folder, even if the package is not installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from rgtrain.commands.random_model_command import main

if __name__ == "__main__":
    main(program="python utils/make_random_model.py")
