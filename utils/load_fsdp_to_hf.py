#!/usr/bin/env python3
"""Convert a sharded training checkpoint to a Hugging Face model folder: python utils/load_fsdp_to_hf.py --help."""

import sys
from pathlib import Path

# The script works from any folder, even if the package is not installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from rgtrain.commands.export_command import main

if __name__ == "__main__":
    main(program="python utils/load_fsdp_to_hf.py")
