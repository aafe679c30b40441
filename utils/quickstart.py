"""The main job: train the embedded model, export it, evaluate it before and after, print a table.

python utils/quickstart.py [--run-dir DIR] [key=value ...]     (the words are train_grpo.py's, such as seed=2)
"""

import argparse
import sys
from pathlib import Path

from rgtrain.errors import exit_on_config_error
from rgtrain.machine.orphan_cleanup import clean_up_after_this_process
from rgtrain.paths import PROJECT_ROOT
from rgtrain.quickstart import StepFailed, run, say

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=PROJECT_ROOT / "runs" / "quickstart")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    clean_up_after_this_process()
    try:
        with exit_on_config_error():
            say(f"\n{run(run_dir=arguments.run_dir, overrides=arguments.overrides)}")
    except StepFailed as error:
        say(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
