"""Load the problems and the worked examples of outside benchmarks, from the Hugging Face hub or from a folder."""

import functools
import importlib.metadata
import importlib.resources
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rgtrain.errors import ConfigError
from rgtrain.evaluation.benchmark_judging import stated_expression
from rgtrain.evaluation.big_bench_hard import SUBTASKS

Document = Mapping[str, Any]

# The keys of the problems of each benchmark, with the types of their values.
_KEYS: Mapping[str, Mapping[str, type]] = {
    "bbh": {"input": str, "target": str},
    "gsm8k": {"question": str, "answer": str},
    "math": {"problem": str, "solution": str},
    "mmlu_pro": {"question": str, "options": list, "answer": str, "category": str},
}
_EXAMPLE_KEYS = {**_KEYS, "mmlu_pro": {**_KEYS["mmlu_pro"], "cot_content": str}}
# The split of the hub's data set that holds examples.
_EXAMPLE_SPLITS = {"gsm8k": "train", "math": "train", "mmlu_pro": "validation"}
_CALCULATION = re.compile(r"<<[^<>]*+>>")
_CONCLUSION = re.compile(r"\s*+(?:So the|Therefore, the|The|the) answer is\b")


@dataclass(frozen=True)
class BenchmarkExample:
    """A solved problem that precedes a question.

    Attributes:
        document: The problem, in the form of the benchmark's problems.
        reasoning: The steps of the solution, which may be empty.
        answer: The answer, as it stands between the answer tags.
    """

    document: Document
    reasoning: str
    answer: str


@dataclass(frozen=True)
class WorkedExamples:
    """The worked examples of a benchmark.

    Attributes:
        source: Their source, in words.
        by_group: The examples by the group of problems that they precede (see `group_of`).
    """

    source: str
    by_group: Mapping[str, Sequence[BenchmarkExample]]


def group_of(document: Document) -> str:
    """Return the group of a problem within its benchmark, which has its own examples: its subtask or subject, or ""."""
    return str(document.get("subtask", document.get("category", "")))


def load_problems(
    name: str, *, hub: str, configs: Sequence[str | None], data_dir: Path | None, limit: int | None
) -> list[dict[str, Any]]:
    """Load the problems of a benchmark.

    Args:
        name: bbh, gsm8k, math or mmlu_pro.
        hub: The name of the data set on the hub.
        configs: Its configurations, which are joined in this order.
        data_dir: A folder with the data; None for the hub.
        limit: Use only the first so many problems, of Big-Bench Hard those of each subtask; None for all.

    Returns:
        At least one problem. Problems of Big-Bench Hard also have a `subtask` and its `description`.

    Raises:
        ConfigError: A file is missing or a line of it has another form.
    """
    if name == "bbh":
        return _load_bbh(hub, data_dir=data_dir, limit=limit)
    if data_dir:
        return read_lines(data_dir / f"{name}.jsonl", _KEYS[name], advice=_or_hub(name))[:limit]
    return list(itertools.islice(itertools.chain.from_iterable(_hub_rows(hub, one, "test") for one in configs), limit))


def _load_bbh(hub: str, *, data_dir: Path | None, limit: int | None) -> list[dict[str, Any]]:
    problems = []
    for subtask in SUBTASKS:
        rows = _read_bbh(data_dir / "bbh", subtask) if data_dir else list(_hub_rows(hub, subtask, "test"))
        description = _harness_file(subtask)["description"].strip()
        problems += [
            {"subtask": subtask, "description": description, "input": row["input"], "target": row["target"]}
            for row in rows[:limit]
        ]
    return problems


def _read_bbh(folder: Path, subtask: str) -> list[dict[str, Any]]:
    """Read SUBTASK.jsonl, or SUBTASK.json in the form of the data set's own repository."""
    lines, whole = folder / f"{subtask}.jsonl", folder / f"{subtask}.json"
    if lines.is_file() or not whole.is_file():
        return read_lines(lines, _KEYS["bbh"], or_else=whole, advice=_or_hub("bbh"))
    return read_bbh_file(whole)


def _or_hub(reader: str) -> str:
    return f"rg_{reader} needs it; put it there, or leave out --data-dir to load the data from the Hugging Face hub"


def read_bbh_file(path: Path) -> list[dict[str, Any]]:
    """Read the problems of a subtask of Big-Bench Hard.

    Args:
        path: SUBTASK.json of the data set's own repository.

    Returns:
        At least one problem with `input` and `target`.

    Raises:
        ConfigError: The file cannot be read, or has another form.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    rows = content.get("examples") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{path} has no list 'examples'; give the file of the BIG-Bench-Hard repository")
    for number, row in enumerate(rows, start=1):
        _check(row, _KEYS["bbh"], f"example {number} of {path}")
    return rows


def read_lines(
    path: Path, keys: Mapping[str, type], *, advice: str, or_else: Path | None = None
) -> list[dict[str, Any]]:
    """Read a file with one JSON object a line.

    Args:
        path: The file.
        keys: The keys that each object needs, with the types of their values.
        advice: What to do if there is no such file.
        or_else: A file of another form that would do, too.

    Returns:
        At least one object, with these keys only.

    Raises:
        ConfigError: The file is missing, or a line has another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        other = f" (or {or_else.name})" if or_else else ""
        raise ConfigError(f"{path}{other} is missing; {advice}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"line {number} of {path} is no JSON ({error})") from error
        _check(row, keys, f"line {number} of {path}")
        rows.append({key: row[key] for key in keys})
    if not rows:
        raise ConfigError(f"{path} has no problems; give one JSON object a line with {', '.join(keys)}")
    return rows


def _check(row: Any, keys: Mapping[str, type], place: str) -> None:
    if not isinstance(row, dict):
        raise ConfigError(f"{place} is a {type(row).__name__}; give a JSON object with {', '.join(keys)}")
    for key, kind in keys.items():
        if key not in row:
            raise ConfigError(f"{place} lacks the key {key!r}; give a JSON object with {', '.join(keys)}")
        if not isinstance(row[key], kind):
            raise ConfigError(f"{place} has {key} = {row[key]!r:.60}; give a {kind.__name__}")


def _hub_rows(hub: str, config: str | None, split: str) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset

    return load_dataset(hub, config, split=split)


def load_examples(
    name: str, num: int, *, hub: str, configs: Sequence[str | None], data_dir: Path | None
) -> WorkedExamples:
    """Load worked examples, which are the same ones in every call.

    Args:
        name: bbh, gsm8k, math or mmlu_pro.
        num: The number of examples for each group of problems, at least 1.
        hub: The name of the data set on the hub.
        configs: Its configurations.
        data_dir: A folder with NAME_examples.jsonl; None for the hub. Big-Bench Hard always has its own three examples
            for each subtask, which come with lm-evaluation-harness.

    Returns:
        One example more than `num` per group if there is one, for a problem that is an example itself.

    Raises:
        ConfigError: There are fewer examples, or a file is missing or has another form.
    """
    if name == "bbh":
        found = {subtask: _bbh_examples(subtask) for subtask in SUBTASKS}
        source = f"tasks/bbh/cot_fewshot of lm_eval {importlib.metadata.version('lm_eval')}"
        return WorkedExamples(source, _enough(found, num, name))
    if data_dir:
        path = data_dir / f"{name}_examples.jsonl"
        advice = _or_hub(f"{name} with --num-fewshot")
        rows: Iterable[dict[str, Any]] = read_lines(path, _EXAMPLE_KEYS[name], advice=advice)
        source = str(path)
    else:
        split = _EXAMPLE_SPLITS[name]
        parts = [_hub_rows(hub, one, split) for one in configs]
        # The first of every configuration, then the second ones, so that few examples have many subjects.
        rows = (row for turn in itertools.zip_longest(*parts) for row in turn if row is not None)
        source = f"the first of split {split!r} of {hub}"
    found = {}
    for row in rows:
        group = found.setdefault(group_of(row), [])
        if len(group) <= num:
            group.append(_READERS[name](row))
        # Only MMLU-Pro has groups, and its whole split is small.
        elif name != "mmlu_pro":
            break
    return WorkedExamples(source, _enough(found, num, name))


def _enough(
    found: Mapping[str, Sequence[BenchmarkExample]], num: int, name: str
) -> Mapping[str, Sequence[BenchmarkExample]]:
    fewest = min(found, key=lambda group: len(found[group]))
    if len(found[fewest]) < num:
        of_group = f" for {fewest!r}" if fewest else ""
        raise ConfigError(
            f"--num-fewshot is {num}, but rg_{name} has {len(found[fewest])} worked examples{of_group}; "
            f"give at most {len(found[fewest])}"
        )
    return {group: examples[: num + 1] for group, examples in found.items()}


@functools.cache
def _harness_file(subtask: str) -> dict[str, Any]:
    """Return the definition of a subtask in the installed lm-evaluation-harness."""
    file = importlib.resources.files("lm_eval") / "tasks" / "bbh" / "cot_fewshot" / f"{subtask}.yaml"
    definition: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return definition


def _bbh_examples(subtask: str) -> list[BenchmarkExample]:
    examples = []
    for sample in _harness_file(subtask)["fewshot_config"]["samples"]:
        reasoning, answer = _concluded(sample["target"])
        document = {"subtask": subtask, "input": sample["input"], "target": answer}
        examples.append(BenchmarkExample(document, reasoning, answer))
    return examples


def _concluded(solution: str) -> tuple[str, str]:
    """Split a solution that ends with "the answer is ..." into its reasoning and the answer."""
    *_, conclusion = _CONCLUSION.finditer(solution)
    return solution[: conclusion.start()].strip(), solution[conclusion.end() :].strip().removesuffix(".").strip()


def _gsm8k_example(row: dict[str, Any]) -> BenchmarkExample:
    reasoning, _, answer = row["answer"].rpartition("####")
    return BenchmarkExample(row, _CALCULATION.sub("", reasoning).strip(), answer.strip())


def _math_example(row: dict[str, Any]) -> BenchmarkExample:
    return BenchmarkExample(row, row["solution"].strip(), stated_expression(row["solution"]))


def _mmlu_pro_example(row: dict[str, Any]) -> BenchmarkExample:
    reasoning, _ = _concluded(row["cot_content"])
    return BenchmarkExample(
        row, reasoning.removeprefix("A: ").removeprefix("Let's think step by step. "), row["answer"]
    )


_READERS: Mapping[str, Callable[[dict[str, Any]], BenchmarkExample]] = {
    "gsm8k": _gsm8k_example,
    "math": _math_example,
    "mmlu_pro": _mmlu_pro_example,
}
