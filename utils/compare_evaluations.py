"""Print the accuracy before and after training from the summaries of two evaluations of the same problems.

python utils/compare_evaluations.py BASE_SUMMARY.json TRAINED_SUMMARY.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

# Works from any folder, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from rgtrain.errors import ConfigError, input_errors_told
from rgtrain.reporting.compare import comparison_table


def read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        summary["config"], summary["datasets"], summary["overall"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path} is no summary.json of evaluate_model.py: {error!r}") from error
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, metavar="BASE_SUMMARY.json")
    parser.add_argument("trained", type=Path, metavar="TRAINED_SUMMARY.json")
    arguments = parser.parse_args()
    with input_errors_told():
        print(comparison_table(read_summary(arguments.base), read_summary(arguments.trained)))


if __name__ == "__main__":
    main()
