"""Render the tables of the published figures from benchmarks/results, and fill them into Markdown files.

python benchmarks/tables.py            # fills benchmarks/RESULTS.md and README.md
python benchmarks/tables.py NAME ...   # prints tables

A Markdown file marks the place of a table by two comments. Everything between them is replaced:

    <!-- results: quickstart_cpu -->
    <!-- end -->

`<!-- results: quickstart_cpu, table only -->` leaves out the lines on command, commit, machine and versions.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple, TypeVar

import quickstart_seeds
import scaling
from record import RESULTS, ROOT, read_record
from train_step import SIDES, all_medians

FILES = (ROOT / "benchmarks" / "RESULTS.md", ROOT / "README.md")
MARKED = re.compile(r"(<!-- results: (\w+)(, table only)? -->\n).*?(<!-- end -->)", re.DOTALL)
# Commands of one table differ only in the part that they measure and in its number of steps.
PART = re.compile(r" --(?:sides|only|sizes|settings|cases|steps|warmup) \S+")
MISSING = "Not measured at this commit yet: there is no result file."
SIDE_NAMES = {
    "ours": "this project",
    "stock_verl": "stock verl",
    "trl_grpo": "TRL",
    "plain_baseline": "plain vLLM + plain torch",
}

T = TypeVar("T")
Record = dict[str, Any]
# The table, and the files that it is made from.
Rendered = tuple[str, list[Record]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *TABLES], metavar="NAME", help="tables to print")
    names = parser.parse_args().names
    for name in names:
        print(f"{rendering(name)}\n")
    for path in () if names else FILES:
        text = path.read_text(encoding="utf-8")
        path.write_text(filled(text), encoding="utf-8")


def filled(text: str) -> str:
    """Fill every marked place in a Markdown text with its table."""

    def fill(place: re.Match[str]) -> str:
        return f"{place[1]}\n{rendering(place[2], table_only=bool(place[3]))}\n\n{place[4]}"

    return MARKED.sub(fill, text)


def rendering(name: str, *, table_only: bool = False) -> str:
    """Return a table with the lines that say how it was measured, or a sentence if there is no result.

    Args:
        name: A key of `TABLES`.
        table_only: Whether to leave out the lines on command, commit, machine and versions.

    Returns:
        Markdown.

    Raises:
        ValueError: There is no table of this name.
    """
    if name not in TABLES:
        raise ValueError(f"there is no table {name!r}; choose from {', '.join(TABLES)}")
    found = TABLES[name]()
    if found is None:
        return MISSING
    table, records = found
    return table if table_only else f"{table}\n\n{origin(records)}"


def origin(records: Sequence[Record]) -> str:
    """Return the commands, commits, dates, machines and versions of result files, one line each."""
    return "\n".join(
        [
            f"- Command: {_commands(records)}",
            f"- Commit {_commits(records)}",
            f"- Machine: {_machines(records)}",
            f"- Versions: {_versions(records)}",
        ]
    )


def origins() -> Rendered | None:
    """Render the origin of all tables as one table with a row per topic, and a line per set of versions."""
    rows: list[list[str]] = []
    stacks: list[dict[str, str]] = []
    records: list[Record] = []
    for topic, name in ORIGINS.items():
        found = TABLES[name]()
        if found is None:
            continue
        files = found[1]
        # Commands differ only in the part that they measure.
        commands = _unique(
            re.sub(r" --(?:sides|only|sizes|settings|cases|steps|warmup) \S+", "", _command(record)) for record in files
        )
        label = chr(ord("A") + _stack(stacks, files))
        listed = ", ".join(f"`{command}`" for command in commands)
        rows.append([topic, listed, _commits(files), _machines(files), label])
        records += files
    table = markdown(["figures", "command", "commit, date", "machine", "versions"], rows)
    notes = "\n".join(
        f"- {chr(ord('A') + number)}: {', '.join(f'{name} {version}' for name, version in stack.items())}"
        for number, stack in enumerate(stacks)
    )
    return (f"{table}\n\n{notes}", records) if rows else None


def _stack(stacks: list[dict[str, str]], files: Sequence[Record]) -> int:
    """Add the versions of result files to the stack that they agree with, or to a new one, and return its number."""
    versions = {name: version for file in files for name, version in file["versions"].items()}
    for number, stack in enumerate(stacks):
        if all(stack.get(name, version) == version for name, version in versions.items()):
            stack.update(versions)
            return number
    stacks.append(versions)
    return len(stacks) - 1


def _command(record: Record) -> str:
    return re.sub(r" --out [^ ]+", "", record["command"])


def _commands(records: Sequence[Record]) -> str:
    return ", ".join(_unique(f"`{_command(record)}`" for record in records))


def _commits(records: Sequence[Record]) -> str:
    commits = _unique(re.sub(r"(?<=[0-9a-f]{10})[0-9a-f]+", "", record["commit"] or "unknown") for record in records)
    return ", ".join([*commits, *_unique(record["date"] for record in records)])


def _machines(records: Sequence[Record]) -> str:
    """Return the machines as a text. Runs side by side have different numbers of cores of one machine."""
    cores: dict[tuple[str, str], list[int]] = defaultdict(list)
    for machine in (record["machine"] for record in records):
        gpu = f"{machine['gpu']}, " if machine["gpu"] else "no GPU, "
        cores[gpu, f"cores of {machine['cpu']}, {machine['memory_gb']} GB"].append(machine["cores"])
    return " and ".join(
        f"{gpu}{' to '.join(map(str, _unique((min(found), max(found)))))} {rest}"
        for (gpu, rest), found in cores.items()
    )


def _versions(records: Sequence[Record]) -> str:
    versions: dict[str, list[str]] = {}
    for record in records:
        for name, version in record["versions"].items():
            versions[name] = _unique([*versions.get(name, []), version])
    return ", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items())


def _unique(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))


def results(folder: str, *names: str) -> list[Record] | None:
    """Return the named result files of a folder, or all of them; None if one is missing or there are none."""
    paths = [RESULTS / folder / f"{name}.json" for name in names] or sorted((RESULTS / folder).glob("*.json"))
    if not paths or not all(path.is_file() for path in paths):
        return None
    return [read_record(path) for path in paths]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits, grouped by thousands."""
    if value is None:
        return ""
    if abs(value) >= 10 ** (digits - 1):
        return f"{float(f'{value:.{digits}g}'):,.0f}"
    return f"{value:.{digits}g}"


def _span(values: Sequence[float], digits: int = 3) -> str:
    middle, low, high = (_number(value, digits) for value in (median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


# The quickstart


def quickstart(device: str) -> Rendered | None:
    folder = RESULTS / f"quickstart_{device}"
    found = quickstart_seeds.read_results(folder)
    return (quickstart_seeds.table(found), found) if found else None


def quickstart_times(device: str) -> Rendered | None:
    found = quickstart_seeds.read_results(RESULTS / f"quickstart_{device}")
    if not found:
        return None
    rows = []
    for record in found:
        derived, evaluation = record["derived"], record["derived"]["evaluation_s"]
        step = derived["median_step_s"], derived["steps_s"]
        rows.append(
            [
                str(record["settings"]["seed"]),
                str(record["settings"]["steps"]),
                *(_number(seconds) for seconds in (*step, evaluation["base"], evaluation["trained"])),
                f"{derived['median_rollout_gap']:.4f}",
            ]
        )
    header = ["seed", "steps", "median step, s", "all steps, s", "evaluation before, s", "after, s", "rollout gap"]
    return markdown(header, rows), found


# Training steps


def train_step(case: str) -> Rendered | None:
    folder = RESULTS / "train_step" / case
    if not (folder / "ours.json").is_file():
        return None
    records = {side: read_record(path) for side in SIDES if (path := folder / f"{side}.json").is_file()}
    medians = all_medians(folder)
    rows = []
    for side, record in records.items():
        values, settings = medians[side], record["settings"]
        measured = record["raw"]["per_step"]["step_s"][settings["warmup"] :]
        share = "" if side == "ours" else f"{medians['ours']['step_s'] / values['step_s']:.2f}"
        names = ("generate_s", "update_s", "sync_weights_s", "new_tokens_per_s", "update_tflops")
        of_matmul = f"{values['of_matmul']:.2f}" if "of_matmul" in values else ""
        first = _number(values.get("first_step_after_s"))
        cells = [_number(values.get(name)) for name in names]
        rows.append([SIDE_NAMES[side], str(len(measured)), _span(measured), *cells, of_matmul, first, share])
    header = [
        *("side", "steps", "step, s", "generate, s", "update, s", "sync, s", "new tokens/s", "update, TFLOP/s"),
        *("of a bf16 product", "first step after, s", "ours / side"),
    ]
    return markdown(header, rows), list(records.values())


def step_scaling() -> Rendered | None:
    records = results("step_scaling")
    if not records:
        return None
    records.sort(key=lambda record: (record["settings"]["max_tokens"], record["settings"]["batch_size"]))
    names = ("step_s", "generate_s", "update_s", "sync_weights_s", "new_tokens_per_s")
    rows = []
    for record in records:
        settings, medians = record["settings"], record["derived"]["medians"]
        responses = settings["batch_size"] * settings["group_size"]
        rows.append([f"{responses:,}", f"{settings['max_tokens']:,}", *(_number(medians[name]) for name in names)])
    header = ["responses", "tokens each", "step, s", "generate, s", "update, s", "sync, s", "new tokens/s"]
    return markdown(header, rows), records


def scaling_by_gpus() -> Rendered | None:
    found = scaling.read_results(RESULTS / "scaling")
    if not found:
        return None
    header = [
        *("case", "step, s", "generate, s", "update, s", "sync, s"),
        *("strong efficiency", "weak efficiency", "tokens/s per GPU"),
    ]
    return markdown(header, [scaling.cells(row) for row in scaling.rows(found)]), list(found.values())


def update_trace() -> Rendered | None:
    records = results("update_trace")
    if not records:
        return None
    rows = [
        [
            record["settings"]["name"],
            *(f"{record['derived'][name]:,.3g}" for name in ("update_s", "gpu_busy_s", "gpu_busy_share")),
            *(f"{record['derived'][name]:,.0f}" for name in ("micro_batches", "kernels_per_micro_batch", "waits")),
        ]
        for record in records
    ]
    header = [
        *("name", "update, s", "GPU busy, s", "share"),
        *("micro-batches", "kernels per micro-batch", "waits for the GPU"),
    ]
    return markdown(header, rows), records


def decode_trace() -> Rendered | None:
    records = results("decode_trace")
    rows = [
        [
            record["settings"]["name"],
            str(step["sequences"]),
            *(f"{step[name]:.2f}" for name in ("step_ms", "gpu_busy_ms")),
            *(f"{_milliseconds(step, names):.2f}" for names in _DECODING_KERNELS.values()),
        ]
        for record in records
        for step in record["raw"]
    ]
    if not rows:
        return None
    header = ["name", "sequences", "step, ms", "GPU busy, ms", *_DECODING_KERNELS]
    return markdown(header, rows), records


# Parts of the names of kernels, by the purpose of the kernels.
_DECODING_KERNELS = {
    "attention, ms": ("flash::",),
    "matrix products, ms": ("nvjet", "cublas"),
    "sampling and log-probabilities, ms": ("gumbel", "log_softmax", "_ranks", "direct_copy", "ArgMax"),
}


def _milliseconds(step: Mapping[str, Any], names: Sequence[str]) -> float:
    """Return the milliseconds of the kernels of a decoding step that have one of these names."""
    return sum(ms for kernel, _, ms in step["most"] if any(name in kernel for name in names))


def memory() -> Rendered | None:
    records = results("memory")
    if not records:
        return None
    records.sort(key=lambda record: (record["settings"]["shape"] != "smollm2-135m", record["settings"]["lora"]))
    rows = []
    for record in records:
        for phase in ("training", "generating", "whole step"):
            values = record["derived"][phase]
            off = f"{100 * (values['estimated'] / values['measured'] - 1):+.0f} %"
            gigabytes = [f"{values[name] / 1e9:.2f}" for name in ("measured", "estimated")]
            rows.append([record["settings"]["name"], phase, *gigabytes, off])
    return markdown(["setting", "phase", "measured, GB", "estimated, GB", "difference"], rows), records


def scheduling() -> Rendered | None:
    records = results("scheduling", "scheduling")
    if not records:
        return None
    names = {"AsyncScheduler": "vLLM's scheduler", "DecodingScheduler": "this project's scheduler"}
    rows = [[names[name], _span(values)] for name, values in records[0]["raw"]["us_per_token"].items()]
    return markdown(["scheduler", "microseconds per token, median (range)"], rows), records


def trainer_overhead() -> Rendered | None:
    records = results("trainer_overhead")
    if not records:
        return None
    records.sort(key=lambda record: record["settings"]["samples"])
    parts = [record["derived"]["seconds"] for record in records]
    names = _unique(name for of_size in parts for name in of_size)
    rows = [[name, *(f"{of_size[name]:.3f}" for of_size in parts)] for name in names]
    sizes = [f"{record['settings']['samples']:,} samples" for record in records]
    return markdown(["part of a step, median s", *sizes], rows), records


def report_page() -> Rendered | None:
    records = results("report_page", "long_run")
    if not records:
        return None
    raw = records[0]["raw"]
    header = ["written within, s", "size, MB", "shown after, s"]
    return markdown(header, [[_span(raw[name]) for name in ("write_s", "size_mb", "shown_s")]]), records


# Curricula


def curriculum_simulation() -> Rendered | None:
    records = results("curriculum_simulation", "simulation")
    if not records:
        return None
    means = records[0]["derived"]["means"]
    names = list(next(iter(means.values())))
    rows = []
    for slope, of_slope in means.items():
        ratios = [("frontier", "threshold"), ("frontier", "uniform"), ("oracle", "threshold")]
        shares = [f"{of_slope[one] / of_slope[other]:.2f}" for one, other in ratios]
        rows.append([slope, *(f"{of_slope[name]:,.0f}" for name in names), *shares])
    header = ["slope", *names, "frontier / threshold", "frontier / uniform", "oracle / threshold"]
    return markdown(header, rows), records


def curriculum_training() -> Rendered | None:
    records = results("curriculum_training", "curves")
    if not records:
        return None
    accuracy = records[0]["derived"]["accuracy"]
    rows = [
        [name, *(f"{100 * mean:.1f} ± {100 * error:.1f}" for mean, error in of_policy.values())]
        for name, of_policy in accuracy.items()
    ]
    return markdown(["policy", *next(iter(accuracy.values()))], rows), records


# Scoring


def scoring_hostile() -> Rendered | None:
    records = results("scoring", "hostile", "hostile_sound", "hostile_core")
    if not records:
        return None
    found = [record["derived"] for record in records]
    rows = [
        ["datasets", *(str(derived["datasets"]) for derived in found)],
        ["answers", *(f"{derived['answers']:,}" for derived in found)],
        ["escaped: file, connection, signal, process, secret", *(str(derived["escapes"]) for derived in found)],
        ["exceptions raised by the scorer", *(str(derived["raised"]) for derived in found)],
        *([kind, *(f"{derived['outcomes'][kind]:,}" for derived in found)] for kind in found[0]["outcomes"]),
        [
            f"later than {records[0]['settings']['late_s']:g} s by the clock",
            *(str(derived["late"]) for derived in found),
        ],
        ["the latest", *(f"{derived['slowest_s']:.1f} s" for derived in found)],
        ["resident memory of the parent before and after", *map(_before_and_after, found)],
        ["answers that gave themselves a score", *(str(derived["forged"]) for derived in found)],
        ["duration of the benchmark", *(f"{derived['seconds']:.0f} s" for derived in found)],
    ]
    return markdown(["hostile answers", "Reasoning Gym", "sound/NAME", "reasoning-core"], rows), records


def _before_and_after(derived: Mapping[str, float]) -> str:
    return f"{derived['memory_before_mb']:.0f} MB, {derived['memory_after_mb']:.0f} MB"


def scoring_poison() -> Rendered | None:
    records = results("scoring", "poison")
    if not records:
        return None
    names = ("datasets", "answers_per_dataset", "judged_again", "changed")
    header = ["datasets that execute answers", "hostile answers per dataset", "honest answers judged again", "changed"]
    return markdown(header, [[f"{records[0]['derived'][name]:,}" for name in names]]), records


def scoring_speed() -> Rendered | None:
    records = results("scoring", "speed")
    if not records:
        return None
    rows = []
    for mixture, of_mixture in records[0]["raw"].items():
        confined = median(of_mixture["seconds"]["confined"])
        for way, seconds in of_mixture["seconds"].items():
            answers = of_mixture["answers"]
            spans = _span([1000 * value for value in seconds]), f"{answers / median(seconds):,.0f}"
            rows.append([mixture, str(answers), way, *spans, f"{confined / median(seconds):.2f}"])
    header = ["mixture", "answers", "way", "batch, ms, median (range)", "answers/s", "confined / this"]
    return markdown(header, rows), records


def scoring_delay() -> Rendered | None:
    records = results("scoring", "delay", "start")
    if not records:
        return None
    delay, start = records
    rows = [
        ["512 answers in one batch", *(_number(delay["derived"][name]["batch_ms"]) for name in ("without", "with"))],
        [
            "the last of the 512, handed in one by one",
            *(_number(delay["derived"][name]["last_other_ms"]) for name in ("without", "with")),
        ],
        ["start of a pool of two workers", _number(1000 * start["derived"]["median_s"]), ""],
    ]
    return markdown(["median ms", "without an endless answer", "with one"], rows), records


# Checkpoints


def checkpoints() -> Rendered | None:
    records = results("checkpoints")
    if not records:
        return None
    records.sort(key=lambda record: record["settings"]["checkpoint_bytes"])
    names = {
        "cp": "`cp`",
        "ours": "this project, fp32",
        "ours_bf16": "this project, bf16",
        "verl": "verl.model_merger (bf16)",
        "plain": "load everything, concatenate, save",
    }
    rows = []
    for record in records:
        medians = record["derived"]["medians"]
        size = f"{record['settings']['size']} ({record['settings']['checkpoint_bytes'] / 1e9:.2f} GB)"
        for side, values in medians.items():
            measured = [cost["seconds"] for cost in record["raw"][side]]
            share = f"{values['seconds'] / medians['cp']['seconds']:.2f}"
            cells = [_span(measured), _number(values["seconds_on_disk"]), share, f"{values['peak_gb']:.2f}"]
            rows.append([size, names[side], *cells])
    header = ["checkpoint", "side", "seconds, median (range)", "until on the disk, s", "of cp's", "peak, GB"]
    return markdown(header, rows), records


def malformed_checkpoints() -> Rendered | None:
    records = results("malformed_checkpoints", "cases")
    if not records:
        return None
    derived = records[0]["derived"]
    header = ["cases", *derived["verdicts"], "highest peak, MB", "slowest, s", "all, s"]
    numbers = [derived["cases"], *derived["verdicts"].values()]
    ends = [f"{derived['peak_mb']:.0f}", f"{derived['slowest_s']:.1f}", f"{derived['seconds']:.0f}"]
    return markdown(header, [[*map(str, numbers), *ends]]), records


# Evaluation


def evaluation_speed(device: str) -> Rendered | None:
    records = results(f"evaluation_{device}", "speed")
    if not records:
        return None
    [record] = records
    rows = [[name, _span(values)] for name, values in record["raw"]["answers_per_s"].items()]
    for name, title in (
        ("of_plain_generate", "evaluation / plain generate"),
        ("of_one_at_a_time", "evaluation / one at a time"),
    ):
        middle, low, high = record["derived"][name]
        rows.append([title, f"{middle:.2f} ({low:.2f} to {high:.2f})"])
    return markdown(["side", "answers/s, median (range)"], rows), records


def evaluation_start() -> Rendered | None:
    records = results("evaluation_gpu", "start")
    if not records:
        return None
    rows = [[name, _span(values)] for name, values in records[0]["raw"]["seconds"].items()]
    rows.append(["evaluation beyond vLLM", _number(records[0]["derived"]["beyond_vllm_s"])])
    return markdown(["side", "seconds to the first answer, median (range)"], rows), records


def evaluation_endpoint() -> Rendered | None:
    paths = sorted(RESULTS.glob("evaluation_*/endpoint.json"))
    if not paths:
        return None
    record = read_record(paths[0])
    raw, derived = record["raw"], record["derived"]
    requests = raw["failed_requests"] + raw["answered_requests"]
    numbers = [requests, raw["failed_requests"], derived["answers"], derived["lost"], derived["doubled"]]
    header = ["requests", "failed requests", "answers", "lost", "doubled"]
    return markdown(header, [[f"{number:,}" for number in numbers]]), [record]


def evaluation_kills() -> Rendered | None:
    paths = sorted(RESULTS.glob("evaluation_*/kills.json"))
    if not paths:
        return None
    record = read_record(paths[0])
    names = ("kills", "answers", "lost", "doubled", "changed")
    return markdown(["SIGKILLs", *names[1:]], [[f"{record['derived'][name]:,}" for name in names]]), [record]


# Runs under faults and on busy machines


def chaos() -> Rendered | None:
    records = results("chaos", "faults")
    if not records:
        return None
    outcomes = ("survived", "resumed", "lost")
    counts = records[0]["derived"]["faults"] | {"all": records[0]["derived"]["all"]}
    rows = [[fault, *(str(of_fault.get(outcome, 0)) for outcome in outcomes)] for fault, of_fault in counts.items()]
    return markdown(["fault", *outcomes], rows), records


def busy_machine() -> Rendered | None:
    records = results("busy_machine", "busy_machine")
    if not records:
        return None
    rows = [
        [row["settings"], str(row["loops"]), _number(row["first_step_after_s"]), _number(row["median_step_s"])]
        for row in records[0]["derived"]["rows"]
    ]
    return markdown(["settings", "busy loops", "first step after, s", "s per step, median"], rows), records


# Goals


class Goal(NamedTuple):
    """A goal of the project, and the values that a result file gives for it."""

    topic: str
    goal: str
    values: list[float]
    limit: float
    at_most: bool = True

    def row(self) -> list[str]:
        met = [value <= self.limit if self.at_most else value >= self.limit for value in self.values]
        verdict = "met" if all(met) else "missed" if not any(met) else f"met in {sum(met)} of {len(met)} settings"
        values = _unique([f"{min(self.values):.2f}", f"{max(self.values):.2f}"])
        return [self.topic, self.goal, " to ".join(values), verdict]


def goals() -> Rendered | None:
    found: list[Goal] = []
    records: list[Record] = []
    collectors = (
        *(_step_goals, _scaling_goals, _trainer_goals, _curriculum_goals, _scoring_goals),
        *(_memory_goals, _export_goals, _evaluation_goals),
    )
    for collect in collectors:
        of_topic, files = collect()
        found += of_topic
        records += files
    return (markdown(["topic", "goal", "value", "outcome"], [goal.row() for goal in found]), records) if found else None


def _step_goals() -> tuple[list[Goal], list[Record]]:
    found: list[Goal] = []
    records: list[Record] = []
    limits = {
        "small": {"trl_grpo": (2 / 3, "two thirds of TRL's"), "plain_baseline": (2, "twice the plain baseline's")},
        "small_verl": {"stock_verl": (0.1, "a tenth of stock verl's")},
        "large": {"trl_grpo": (0.75, "three quarters of TRL's")},
    }
    for case, sides in limits.items():
        folder = RESULTS / "train_step" / case
        if not (folder / "ours.json").is_file():
            continue
        medians, topic = all_medians(folder), f"training step, {case.partition('_')[0]} model"
        ours = medians["ours"]
        for side, (limit, words) in sides.items():
            if side in medians:
                found.append(Goal(topic, f"step at most {words}", [ours["step_s"] / medians[side]["step_s"]], limit))
        if "plain_baseline" in medians:
            share = ours["new_tokens_per_s"] / medians["plain_baseline"]["new_tokens_per_s"]
            found.append(Goal(topic, "generation at least 0.9 of `vllm.LLM.generate`", [share], 0.9, at_most=False))
        if case == "large" and "of_matmul" in ours:
            words = "update at least 0.45 of a bf16 product's rate"
            found.append(Goal(topic, words, [ours["of_matmul"]], 0.45, at_most=False))
        if case == "small":
            found.append(Goal(topic, "end of the first step within 90 s", [ours["first_step_after_s"]], 90))
        records += [read_record(path) for path in sorted(folder.glob("*.json"))]
    return found, records


def _scaling_goals() -> tuple[list[Goal], list[Record]]:
    found = scaling.read_results(RESULTS / "scaling")
    rows = scaling.rows(found)
    goals: list[Goal] = []
    for kind, limits in {"strong": {2: 0.92, 4: 0.82, 8: 0.65}, "weak": {2: 0.97, 4: 0.96, 8: 0.95}}.items():
        for number, limit in limits.items():
            name = f"1.5b_{number}gpu_{64 if kind == 'strong' else 64 * number}"
            if shares := [row[kind] for row in rows if row["case"].name == name and kind in row]:
                words = f"{kind} scaling of 1.5B on {number} GPUs at least {limit}"
                goals.append(Goal("several GPUs", words, shares, limit, at_most=False))
    synced = [
        row["sync_weights_s"] for row in rows if row["case"].model == "1.5b" and row["case"].kind in ("equal", "tailed")
    ]
    if synced:
        goals.append(Goal("several GPUs", "weight sync of 1.5B within 0.15 s on any number", synced, 0.15))
    if updates := [row["update_s"] for row in rows if row["case"].name == "1.5b_1gpu_64"]:
        goals.append(Goal("several GPUs", "update of 1.5B within 10.5 s", updates, 10.5))
    for name, words, limit in (("3b_4gpu_32", "3B on 4", 6.5), ("7b_4gpu_32", "7B on 4", 10.5)):
        if steps := [row["step_s"] for row in rows if row["case"].name == name]:
            words = f"step of {words} GPUs, 32 prompts, within {limit} s"
            goals.append(Goal("several GPUs", words, steps, limit))
    for name, base, words, limit in (
        ("3b_4gpu_32", "3b_4gpu_32_stock_verl", "step of 3B on 4 GPUs at most a tenth of stock verl's", 0.1),
        ("1.5b_4gpu_64", "1.5b_4gpu_64_trl", "step of 1.5B on 4 GPUs at most three quarters of TRL's", 0.75),
        ("1.5b_2gpu_64_lora", "1.5b_2gpu_64", "LoRA on 2 GPUs at most 0.7 of full training", 0.7),
        ("1.5b_4gpu_64_tailed", "1.5b_4gpu_64", "lengths with a tail at most 1.3 times equal ones", 1.3),
    ):
        if shares := _shares_of_step(rows, name, base):
            goals.append(Goal("several GPUs", words, shares, limit))
    return goals, list(found.values())


def _shares_of_step(rows: Sequence[Mapping[str, Any]], name: str, base: str) -> list[float]:
    """Return the time of a case's step by that of another case, for each machine that measured both."""
    seconds = {(row["case"].name, row["variant"]): row["step_s"] for row in rows}
    return [
        step / seconds[base, variant]
        for (case, variant), step in seconds.items()
        if case == name and (base, variant) in seconds
    ]


def _trainer_goals() -> tuple[list[Goal], list[Record]]:
    records = results("trainer_overhead", "4096_samples") or []
    seconds = [record["derived"]["seconds"]["the trainer's own time"] for record in records]
    words = "trainer's own time with 4,096 samples within 0.3 s"
    return [Goal("several GPUs", words, seconds, 0.3)] if seconds else [], records


def _curriculum_goals() -> tuple[list[Goal], list[Record]]:
    records = results("curriculum_simulation", "simulation")
    if not records:
        return [], []
    means = records[0]["derived"]["means"].values()
    return [
        Goal(
            "simulated curricula",
            f"frontier needs at most {limit:g} of {policy}'s answers",
            [of_slope["frontier"] / of_slope[policy] for of_slope in means],
            limit,
        )
        for policy, limit in (("threshold", 0.8), ("uniform", 0.5))
    ], records


def _scoring_goals() -> tuple[list[Goal], list[Record]]:
    records = results("scoring", "speed")
    if not records:
        return [], []
    seconds = records[0]["raw"]["usual"]["seconds"]
    share = median(seconds["confined"]) / median(seconds["in this process, as a reward"])
    return [Goal("scoring", "confined at most 1.5 times a loop with a reward's bookkeeping", [share], 1.5)], records


def _memory_goals() -> tuple[list[Goal], list[Record]]:
    records = results("memory")
    if not records:
        return [], []
    phases = [record["derived"][phase] for record in records for phase in ("training", "generating", "whole step")]
    shares = [abs(phase["estimated"] / phase["measured"] - 1) for phase in phases]
    return [Goal("memory", "estimates within 0.15 of the measured peaks", shares, 0.15)], records


def _export_goals() -> tuple[list[Goal], list[Record]]:
    records = results("checkpoints")
    if not records:
        return [], []
    largest = max(records, key=lambda record: record["settings"]["checkpoint_bytes"])
    medians, topic = largest["derived"]["medians"], f"exports, {largest['settings']['size']}"
    memory_share = medians["ours"]["peak_gb"] / medians["verl"]["peak_gb"]
    time_share = medians["ours_bf16"]["seconds"] / medians["verl"]["seconds"]
    return [
        Goal(topic, "peak memory at most a quarter of verl's", [memory_share], 0.25),
        Goal(topic, "peak memory at most 3 GB", [medians["ours"]["peak_gb"]], 3),
        Goal(topic, "bf16 export no slower than verl's", [time_share], 1),
        Goal(topic, "fp32 export at most 2.5 times `cp`", [medians["ours"]["seconds"] / medians["cp"]["seconds"]], 2.5),
    ], records


def _evaluation_goals() -> tuple[list[Goal], list[Record]]:
    found: list[Goal] = []
    records = results("evaluation_gpu", "speed") or []
    for record in records:
        plain, single = record["derived"]["of_plain_generate"][0], record["derived"]["of_one_at_a_time"][0]
        found.append(Goal("evaluation", "at least 0.9 of plain generation's rate", [plain], 0.9, at_most=False))
        found.append(Goal("evaluation", "at least 30 times single prompts' rate", [single], 30, at_most=False))
    return found, records


# The tables whose origin is listed, by topic.
ORIGINS = {
    "quickstart, CPU": "quickstart_cpu",
    "quickstart, GPU": "quickstart_gpu",
    "training step, 135M": "train_step_small",
    "training step, 135M, beside stock verl": "train_step_small_verl",
    "training step, 1.5B": "train_step_large",
    "several GPUs": "scaling",
    "trace of an update": "update_trace",
    "trace of decoding": "decode_trace",
    "Python per token": "scheduling",
    "trainer's own time": "trainer_overhead",
    "GPU memory": "memory",
    "simulated curricula": "curriculum_simulation",
    "hostile answers": "scoring_hostile",
    "poisoned state": "scoring_poison",
    "speed of scoring": "scoring_speed",
    "an endless answer": "scoring_delay",
    "exports": "checkpoints",
    "malformed checkpoints": "malformed_checkpoints",
    "a failing endpoint": "evaluation_endpoint",
    "report of a long run": "report_page",
}
TABLES: dict[str, Callable[[], Rendered | None]] = {
    "goals": goals,
    "origins": origins,
    "quickstart_cpu": lambda: quickstart("cpu"),
    "quickstart_gpu": lambda: quickstart("gpu"),
    "quickstart_cpu_times": lambda: quickstart_times("cpu"),
    "quickstart_gpu_times": lambda: quickstart_times("gpu"),
    "train_step_small": lambda: train_step("small"),
    "train_step_small_verl": lambda: train_step("small_verl"),
    "train_step_large": lambda: train_step("large"),
    "step_scaling": step_scaling,
    "scaling": scaling_by_gpus,
    "update_trace": update_trace,
    "decode_trace": decode_trace,
    "memory": memory,
    "scheduling": scheduling,
    "trainer_overhead": trainer_overhead,
    "report_page": report_page,
    "curriculum_simulation": curriculum_simulation,
    "curriculum_training": curriculum_training,
    "scoring_hostile": scoring_hostile,
    "scoring_poison": scoring_poison,
    "scoring_speed": scoring_speed,
    "scoring_delay": scoring_delay,
    "checkpoints": checkpoints,
    "malformed_checkpoints": malformed_checkpoints,
    "evaluation_speed_gpu": lambda: evaluation_speed("gpu"),
    "evaluation_speed_cpu": lambda: evaluation_speed("cpu"),
    "evaluation_start": evaluation_start,
    "evaluation_endpoint": evaluation_endpoint,
    "evaluation_kills": evaluation_kills,
    "chaos": chaos,
    "busy_machine": busy_machine,
}

if __name__ == "__main__":
    main()
