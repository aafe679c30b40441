"""Run the command line as `python -m rgtrain`, or as `python PATH/rgtrain/__main__.py` from any folder."""

import sys
from pathlib import Path

# Python puts the folder of a program first on its path. There, the package's own modules would hide others.
if Path(sys.path[0]) == Path(__file__).parent:
    sys.path[0] = str(Path(__file__).parents[1])

from rgtrain.commands.command_line import main

if __name__ == "__main__":
    main()
