"""Serve problems and rewards over HTTP to other trainers: python utils/serve_environment.py --help."""

import sys
from pathlib import Path

# The script works from any folder, even if the package is not installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from rgtrain.commands.serve_environment_command import main

if __name__ == "__main__":
    main(program="python utils/serve_environment.py")
