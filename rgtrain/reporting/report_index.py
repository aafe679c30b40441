"""The index page of a folder: the runs and evaluations in it, with links to their reports."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rgtrain.checkpoints.metrics_file import METRICS
from rgtrain.errors import ConfigError
from rgtrain.evaluation.results import ResultsFolder
from rgtrain.files import write_atomically
from rgtrain.reporting.evaluation_reader import read_figures
from rgtrain.reporting.model_names import distinct_names
from rgtrain.reporting.rendering import render
from rgtrain.reporting.run_reader import read_run
from rgtrain.reporting.run_report import run_overview
from rgtrain.tables import percent

INDEX = "index.html"
_MAX_DEPTH = 6
# Folders of a run that hold no other run, and many files.
_SKIPPED = {"checkpoints", "rollouts", "tensorboard", "wandb"}


@dataclass(frozen=True)
class IndexRow:
    """A run or an evaluation.

    Attributes:
        name: Its folder, relative to the index.
        link: The relative address of its report; None if there is no report.
        cells: Its figures; empty if it could not be read or is not finished.
        problem: The reason why there are no figures.
    """

    name: str
    link: str | None
    cells: Sequence[str]
    problem: str = ""


def is_index_folder(folder: Path) -> bool:
    """Return whether a folder is that of runs and evaluations instead of a run."""
    return folder.is_dir() and not (folder / METRICS).is_file() and next(_members(folder), None) is not None


def write_index(folder: Path, *, page: Path) -> None:
    """Write the index of the runs and evaluations in a folder and its subfolders.

    Args:
        folder: The folder. Links in it are not followed.
        page: The HTML file, which is created or replaced.

    Raises:
        ConfigError: The page cannot be written.
    """
    runs, evaluations = [], []
    for member in _members(folder):
        if (member / METRICS).is_file():
            runs.append(_run_row(member, folder, page))
        else:
            evaluations.append(_evaluation_row(member, folder, page))
    content = render(
        "index.html.j2", script="index.js", title=folder.resolve().name, runs=runs, evaluations=evaluations
    )
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(page, content)
    except OSError as error:
        raise ConfigError(f"cannot write {page} ({error.strerror}); choose another file with --output") from error


def _members(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs and evaluations, sorted by their paths."""
    for path, folders, files in os.walk(folder):
        is_too_deep = len(Path(path).relative_to(folder).parts) >= _MAX_DEPTH
        folders[:] = [] if is_too_deep else sorted(name for name in folders if name not in _SKIPPED)
        results = ResultsFolder(Path(path))
        names = {results.summary.name, results.results.name, results.received.name}
        if METRICS in files or ("evaluation.json" in files and names & set(files)):
            yield Path(path)


def _run_row(run: Path, folder: Path, page: Path) -> IndexRow:
    name, link = _name_and_link(run, folder, page)
    try:
        overview = run_overview(read_run(run))
    except ConfigError as error:
        return IndexRow(name, link, [], str(error))
    held_out = [f"{one.dataset} {percent(one.values['now'][1], one.values['now'][2:])}" for one in overview.held_out]
    figures = ("model", "training steps", "mean reward of the last 10 steps")
    return IndexRow(name, link, [*(overview.figures[figure] for figure in figures), "; ".join(held_out)])


def _evaluation_row(results: Path, folder: Path, page: Path) -> IndexRow:
    name, link = _name_and_link(results, folder, page)
    if not ResultsFolder(results).summary.is_file():
        return IndexRow(name, link, [], "not finished; the same evaluation command continues it")
    try:
        summary = read_figures(results)
    except ConfigError as error:
        return IndexRow(name, link, [], str(error))
    [model], overall = distinct_names([summary["model"]["path"]]), summary["overall"]
    right = percent(overall["strict_accuracy"], overall["strict_accuracy_interval"])
    return IndexRow(name, link, [model, summary["name"], str(overall["num_problems"]), right])


def _name_and_link(member: Path, folder: Path, page: Path) -> tuple[str, str | None]:
    name = member.relative_to(folder).as_posix()
    report = member / "report.html"
    name = folder.resolve().name if name == "." else name
    if not report.is_file():
        return name, None
    return name, quote(os.path.relpath(report.absolute(), page.absolute().parent).replace(os.sep, "/"))
