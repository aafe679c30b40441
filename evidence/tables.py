"""Recompute every table and figure of the evidence from evidence/results, without a GPU: python evidence/tables.py.

With `--check`, nothing is written: the command fails if a document or figure differs from the records. A Markdown file
marks the place of a table or figure by two comments, and everything between them is replaced:

    <!-- evidence:intra -->
    <!-- end -->
"""

import argparse
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

# The script works from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evidence.category_tables import (
    answers_in_format,
    control_means,
    controls,
    cross,
    datasets,
    fixed_rules,
    greedy_means,
    intra,
    own_category,
    retention,
    training_health,
)
from evidence.claims import UNSEEN
from evidence.measured import Measured, Part, read_records
from evidence.overview_tables import calibration, cost, deviating, equal_arms, verdict_numbers, verdict_table
from evidence.part_tables import (
    arms_of_part,
    boundary,
    boundary_totals,
    curricula,
    learning_rates,
    levels_and_seeds,
    outside_by_category,
    outside_means,
)
from evidence.result_figures import FIGURES
from evidence.training_plan import EVIDENCE, PARTS, RESULTS, TRAINED, UNTRAINED, read_programme
from rgtrain.errors import ConfigError, exit_on_config_error
from rgtrain.paths import PROJECT_ROOT

DOCUMENTS = (PROJECT_ROOT / "docs" / "evidence.md", EVIDENCE / "TABLES.md")
IMAGES = PROJECT_ROOT / "docs" / "images"
_MARKED = re.compile(r"(<!-- evidence:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Run the command."""
    description = (__doc__ or "").split(":")[0] + "."
    parser = argparse.ArgumentParser(prog="python evidence/tables.py", description=description)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if a file is not up to date")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the records")
    arguments = parser.parse_args()
    with exit_on_config_error():
        measured = read_measured(arguments.results)
        if not measured.records:
            raise ConfigError(f"{arguments.results} has no records; correct --results")
        files = rendered_files(measured)
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    # A figure without records does not exist.
    superfluous = [path for path in IMAGES.glob("evidence_*.svg") if path not in files]
    if arguments.check:
        for path in (*stale, *superfluous):
            print(f"{path.relative_to(PROJECT_ROOT)} differs from the records; run `python evidence/tables.py`")
        sys.exit(bool(stale or superfluous))
    for path in stale:
        path.write_text(files[path], encoding="utf-8")
    for path in superfluous:
        path.unlink()


def read_measured(results: Path = RESULTS) -> Measured:
    """Return the records below a folder with the programme that they belong to."""
    parts: dict[str, Part] = {name: importlib.import_module(f"evidence.parts.{name}").trainings for name in PARTS}
    records = read_records(results)
    programme = read_programme().with_models(record["model"] for record in records)
    return Measured(programme, records, parts)


def rendered_files(measured: Measured) -> dict[Path, str]:
    """Return the text of every document and figure by its path."""
    figures = {name: draw(measured) for name, (draw, _) in FIGURES.items()}
    documents = {
        path: filled(path.read_text(encoding="utf-8"), measured, figures=figures, folder=path.parent)
        for path in DOCUMENTS
    }
    return documents | {image_path(name): svg for name, svg in figures.items() if svg is not None}


def image_path(figure: str) -> Path:
    """Return the path of a figure."""
    return IMAGES / f"evidence_{figure}.svg"


def filled(text: str, measured: Measured, *, figures: dict[str, str | None], folder: Path) -> str:
    """Fill every marked place of a Markdown text with its table or figure.

    Args:
        text: The text.
        measured: The records.
        figures: Each figure by its name, or None if it has no records.
        folder: The folder of the Markdown file, to which links are relative.

    Returns:
        The filled text.

    Raises:
        ValueError: A mark names no table and no figure.
    """

    def fill(place: re.Match[str]) -> str:
        name = place[2]
        if name in TABLES:
            content = TABLES[name](measured)
        elif name in FIGURES:
            up = "" if folder == IMAGES.parent else "../docs/"
            image = f"![{FIGURES[name][1]}]({up}images/{image_path(name).name})"
            content = image if figures[name] is not None else "This figure has no records yet."
        else:
            raise ValueError(f"there is no table or figure {name!r}; choose from {', '.join([*TABLES, *FIGURES])}")
        return f"{place[1]}\n{content}\n\n{place[3]}"

    return _MARKED.sub(fill, text)


TABLES: dict[str, Callable[[Measured], str]] = {
    "verdicts": verdict_table,
    "verdict_numbers": verdict_numbers,
    "intra": intra,
    "controls": controls,
    "control_means": control_means,
    "greedy_means": greedy_means,
    "cross_none": lambda measured: cross(measured, UNTRAINED),
    "cross_format": lambda measured: cross(measured, "format_only"),
    "answers_in_format": answers_in_format,
    "training_health": training_health,
    "datasets": datasets,
    "fixed_rules": fixed_rules,
    "own_category": own_category,
    "outside_means": outside_means,
    "outside": outside_by_category,
    "retention": retention,
    "curricula": curricula,
    "curriculum": lambda measured: arms_of_part(measured, "curriculum"),
    "levels": levels_and_seeds,
    "boundary_totals": boundary_totals,
    "boundary": boundary,
    "breadth": lambda measured: arms_of_part(measured, "breadth", groups=(TRAINED, UNSEEN)),
    "algorithms": lambda measured: arms_of_part(measured, "algorithms", groups=(TRAINED, UNSEEN)),
    "warm_start": lambda measured: arms_of_part(measured, "warm_start"),
    "equal_arms": equal_arms,
    "calibration": calibration,
    "learning_rates": learning_rates,
    "deviating": deviating,
    "cost": cost,
}

if __name__ == "__main__":
    main()
