"""Compare evaluations of the same problems, each with the first: python evaluation/compare_models.py BASE OTHER [...]

BASE and OTHER are results folders of evaluate_model.py, or the summary.json in them.
"""

import argparse
import sys
from pathlib import Path

# Works from any folder, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from rgtrain.errors import exit_on_config_error
from rgtrain.provenance import mask_secrets
from rgtrain.reporting.comparison import compare
from rgtrain.reporting.comparison_tables import as_html, as_markdown, as_text
from rgtrain.reporting.evaluation_reader import read_evaluation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", type=Path, metavar="RESULTS_FOLDER")
    parser.add_argument("--markdown", type=Path, metavar="FILE.md", help="write the tables there too")
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="write tables and a chart there too")
    arguments = parser.parse_args()
    with exit_on_config_error(transform=mask_secrets):
        comparisons = compare([read_evaluation(path) for path in arguments.evaluations])
        print(as_text(comparisons))
        for path, form in ((arguments.markdown, as_markdown), (arguments.html, as_html)):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(form(comparisons), encoding="utf-8")
                print(f"written: {path}")


if __name__ == "__main__":
    main()
