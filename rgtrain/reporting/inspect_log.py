"""Write a finished evaluation as an `.eval` log of inspect_ai, which its viewer opens.

The format is a zip archive with JSON files: `header.json`, `summaries.json`, `reductions.json` and one file per answer.
It is written without the package, whose dependencies contradict those of training. Tests read it with the package.
Answers are read from results.jsonl one at a time, so that a large evaluation needs little memory.
"""

import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

from rgtrain.errors import ConfigError
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.evaluation.results import ResultsFolder, read_results_json
from rgtrain.files import flush
from rgtrain.problems.entries import load_entry
from rgtrain.provenance import masked_values

LOG_NAME = "inspect.eval"
# The version of the log format.
_LOG_VERSION = 2
_STRICT, _SCORE = "right", "score"
_STOP_REASONS = {"stop": "stop", "length": "max_tokens", "content_filter": "content_filter", "tool_calls": "tool_calls"}
# Without it, the viewer's head shows the scores that have the shortest table.
_HEADLINE = {"scorer": _STRICT, "score": _STRICT, "metric": "accuracy"}
_NOT_KEPT = "(the text is not kept, see the key save_full_results)"
# The viewer's list of answers shows the beginnings of texts.
_MAX_LISTED_CHARACTERS = 1000
# Keys of an evaluation that inspect_ai names alike.
_GENERATION_KEYS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "presence_penalty",
    "frequency_penalty",
)


def write_inspect_log(path: Path) -> Path:
    """Write `inspect.eval` into a results folder, atomically.

    Every answer is a sample: its id is the problem's number and dataset, and its epoch the number of the repeat. It has
    two scores, "right" (C or I) and "score", which includes partial credit. A refused request has an error instead.

    Args:
        path: The results folder of a finished evaluation.

    Returns:
        The log's path.

    Raises:
        ConfigError: The evaluation is not finished, a file of it is damaged, or the log can't be written.
    """
    folder = ResultsFolder(path)
    if not folder.summary.is_file():
        raise ConfigError(f"{path} is not a finished evaluation, so there is no log to write; finish it first")
    fix = "delete it, and the same evaluate_model.py command makes it again from results.jsonl"
    summary = masked_values(read_results_json(folder.summary, fix=fix))
    log = path / LOG_NAME
    temporary = None
    try:
        created = datetime.fromtimestamp(folder.summary.stat().st_mtime, tz=UTC)
        with tempfile.NamedTemporaryFile(prefix=f".{LOG_NAME}-", dir=path, delete=False) as file:
            temporary = Path(file.name)
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                _write_archive(_Archive(archive, created), summary, folder, created)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(log)
        flush(path)
    except OSError as error:
        raise ConfigError(f"cannot write {log} ({error.strerror}); free some space, and repeat the command") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder.summary} is damaged ({type(error).__name__}: {error!s:.100}); {fix}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return log


class _Archive:
    """A zip archive whose files are JSON, all dated by the evaluation, so that the same results give the same log."""

    def __init__(self, archive: zipfile.ZipFile, created: datetime):
        self._archive = archive
        self._date = created.timetuple()[:6]

    def add(self, name: str, value: Any) -> None:
        with self._open(name) as file:
            file.write(_encoded(value))

    def add_list(self, name: str, items: Iterable[Any]) -> None:
        """Add a list whose items are made while it is written."""
        with self._open(name) as file:
            file.write(b"[")
            for number, item in enumerate(items):
                file.write(b"," if number else b"")
                file.write(_encoded(item))
            file.write(b"]")

    def _open(self, name: str) -> IO[bytes]:
        info = zipfile.ZipInfo(name, self._date)
        info.compress_type = zipfile.ZIP_DEFLATED
        return self._archive.open(info, "w", force_zip64=True)


def _encoded(value: Any) -> bytes:
    # A lone surrogate of a model's text would be a JSON escape that strict readers refuse.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace")


def _write_archive(archive: _Archive, summary: Mapping[str, Any], folder: ResultsFolder, created: datetime) -> None:
    names = _dataset_names(summary)
    model = str(summary["model"]["path"])
    prefix = _prompt_prefix(summary)
    num_answers = num_refused = num_tokens = 0
    ids: list[str] = []
    for answer in _answers(folder):
        sample_id = _sample_id(answer)
        if not ids or ids[-1] != sample_id:
            ids.append(sample_id)
        num_answers += 1
        num_refused += bool(answer.refused)
        num_tokens += answer.tokens or 0
        archive.add(f"samples/{sample_id}_epoch_{answer.repeat + 1}.json", _sample(answer, model=model, prefix=prefix))
    archive.add_list("summaries.json", (_listed(answer, model=model) for answer in _answers(folder)))
    archive.add_list("reductions.json", _reductions(folder))
    seconds = sum(summary["seconds"].values())
    spec = _spec(summary, ids, created, folder)
    plan = {"name": "plan", "steps": [{"solver": "generate", "params": {}}], "config": spec["model_generate_config"]}
    archive.add("_journal/start.json", {"version": _LOG_VERSION, "eval": spec, "plan": plan})
    archive.add(
        "header.json",
        {
            "version": _LOG_VERSION,
            "status": "success",
            "eval": spec,
            "plan": plan,
            "results": {
                "total_samples": num_answers,
                "completed_samples": num_answers - num_refused,
                "scores": list(_all_scores(summary, names)),
                "headline": _HEADLINE,
            },
            "stats": {
                "started_at": (created - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
                "completed_at": created.isoformat(timespec="seconds"),
                "model_usage": {model: _usage(num_tokens)},
            },
        },
    )


def _answers(folder: ResultsFolder) -> Iterator[Answer]:
    """Yield the answers of a finished evaluation, which are sorted by problem and repeat."""
    with folder.results.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield Answer.from_line(line)
            except ValueError as error:
                raise ConfigError(
                    f"{folder.results} is damaged in line {number} ({error}); remove that line and the folder's "
                    "summary.json, and the same evaluate_model.py command asks for this answer again"
                ) from error


def _sample_id(answer: Answer) -> str:
    # The id is part of a file's name in the archive.
    return f"{answer.problem:05d}-{re.sub(r'[^A-Za-z0-9_.-]', '_', answer.dataset)}"


def _dataset_names(summary: Mapping[str, Any]) -> list[str]:
    """Return a name for each dataset. One that occurs several times, with other parameters, gets a number."""
    names: list[str] = []
    for dataset in summary["datasets"]:
        name = f"{dataset['category']}/{dataset['dataset']}"
        same = sum(other.split(" #")[0] == name for other in names)
        names.append(f"{name} #{same + 1}" if same else name)
    return names


def _prompt_prefix(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the messages in front of the question, which all prompts share: system prompt and examples."""
    return [_message(one["role"], one["content"]) for one in summary["prompts"]["first_prompt"][:-1]]


def _message(role: str, content: str, **more: Any) -> dict[str, Any]:
    # inspect_ai knows no role "developer".
    return {"role": "system" if role == "developer" else role, "content": content, **more}


def _sample(answer: Answer, *, model: str, prefix: list[dict[str, Any]]) -> dict[str, Any]:
    question = _NOT_KEPT if answer.question is None else answer.question
    completion = _NOT_KEPT if answer.completion is None and not answer.refused else (answer.completion or "")
    reply = _message("assistant", completion, source="generate", model=model)
    output: dict[str, Any] = {"model": model, "choices": [], "completion": ""}
    messages = [*prefix, _message("user", question, source="input")]
    if not answer.refused:
        stop_reason = _STOP_REASONS.get(answer.finish_reason or "", "unknown")
        output = {"model": model, "choices": [{"message": reply, "stop_reason": stop_reason}], "completion": completion}
        messages.append(reply)
    if answer.tokens is not None:
        output["usage"] = _usage(answer.tokens)
    return {
        **_common(answer, model=model),
        "input": question,
        "messages": messages,
        "output": output,
        "store": {},
        "events": [],
        "attachments": {},
        **({"error": _refusal(answer)} if answer.refused else {}),
    }


def _listed(answer: Answer, *, model: str) -> dict[str, Any]:
    """Return the entry of an answer in the viewer's list."""
    return {
        **_common(answer, model=model),
        "input": (_NOT_KEPT if answer.question is None else answer.question)[:_MAX_LISTED_CHARACTERS],
        "completed": True,
        "message_count": 1 if answer.refused else 2,
        **({"error": answer.refused} if answer.refused else {}),
    }


def _common(answer: Answer, *, model: str) -> dict[str, Any]:
    target = load_entry(answer.entry).get("answer") if answer.entry else None
    return {
        "id": _sample_id(answer),
        "epoch": answer.repeat + 1,
        "target": "" if target is None else str(target)[:_MAX_LISTED_CHARACTERS],
        "metadata": {
            "category": answer.category,
            "dataset": answer.dataset,
            "seed": answer.seed,
            "index": answer.index,
            "difficulty": dict(answer.difficulty),
            "fingerprint": answer.fingerprint,
        },
        "scores": {} if answer.refused else _scores(answer),
        "model_usage": {} if answer.tokens is None else {model: _usage(answer.tokens)},
        "uuid": _digest(answer.fingerprint, answer.problem, answer.repeat),
    }


def _scores(answer: Answer) -> dict[str, Any]:
    extracted = None if answer.answer is None else answer.answer[:_MAX_LISTED_CHARACTERS]
    shared: dict[str, Any] = {"answer": extracted}
    if answer.error:
        shared["explanation"] = f"could not be judged: {answer.error[:_MAX_LISTED_CHARACTERS]}"
    elif answer.answer is None:
        shared["explanation"] = "no answer could be extracted"
    return {
        _STRICT: {"value": "C" if answer.is_right else "I", **shared},
        _SCORE: {"value": answer.score, **shared},
    }


def _refusal(answer: Answer) -> dict[str, str]:
    return {"message": answer.refused, "traceback": answer.refused, "traceback_ansi": answer.refused}


def _usage(num_tokens: int) -> dict[str, int]:
    # The length of prompts is not recorded.
    return {"input_tokens": 0, "output_tokens": num_tokens, "total_tokens": num_tokens}


def _reductions(folder: ResultsFolder) -> Iterator[dict[str, Any]]:
    """Yield the mean over the repeats of each problem, for both scores."""
    for scorer in (_STRICT, _SCORE):
        means: list[dict[str, Any]] = []
        values: list[float] = []
        sample_id = None
        for answer in _answers(folder):
            if _sample_id(answer) != sample_id:
                if values:
                    means.append({"value": sum(values) / len(values), "sample_id": sample_id})
                sample_id, values = _sample_id(answer), []
            if not answer.refused:
                values.append(float(answer.is_right) if scorer == _STRICT else answer.score)
        if values:
            means.append({"value": sum(values) / len(values), "sample_id": sample_id})
        yield {"scorer": scorer, "reducer": "mean", "samples": means}


def _all_scores(summary: Mapping[str, Any], names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the figures overall, pass@k and majority@k, and those of each dataset."""
    overall = summary["overall"]
    yield _score(_STRICT, "accuracy", overall["strict_accuracy"], overall["strict_accuracy_error"], overall)
    yield _score(_SCORE, "mean", overall["mean_score"], overall["mean_score_error"], overall)
    for name in ("pass", "majority"):
        for k, estimate in overall[f"{name}_at"].items():
            if k != "1":
                score = _score(_STRICT, "accuracy", estimate["mean"], estimate["error"], overall)
                yield score | {"name": f"{_STRICT} ({name}@{k})"}
    for name, dataset in zip(names, summary["datasets"], strict=True):
        score = _score(_STRICT, "accuracy", dataset["strict_accuracy"], dataset["strict_accuracy_error"], dataset)
        metadata = {"params": dataset["params"], "seed": dataset["seed"], "size": dataset["size"]}
        yield score | {"name": name, "metadata": metadata}


def _score(scorer: str, metric: str, value: float, error: float | None, measures: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {metric: {"name": metric, "value": value, "params": {}}}
    if error is not None:
        # Clustered by problem, unlike inspect_ai's own.
        metrics["stderr"] = {"name": "stderr", "value": error, "params": {"cluster": "problem"}}
    return {
        "name": scorer,
        "scorer": scorer,
        "scored_samples": measures["num_problems"],
        "params": {},
        "metrics": metrics,
    }


def _spec(summary: Mapping[str, Any], ids: list[str], created: datetime, folder: ResultsFolder) -> dict[str, Any]:
    config = summary["config"]
    known = {key: config[key] for key in _GENERATION_KEYS if config.get(key) is not None}
    identity = str(folder.path.resolve())
    return {
        "eval_id": _digest("eval", identity, created.isoformat()),
        "run_id": _digest("run", identity, created.isoformat()),
        "task_id": _digest("task", summary["name"], json.dumps(config, sort_keys=True)),
        "created": created.isoformat(timespec="seconds"),
        "task": summary["name"],
        "task_version": 0,
        "task_args": {key: value for key, value in config.items() if key not in known},
        "dataset": {"name": summary["name"], "samples": len(ids), "sample_ids": ids, "shuffled": False},
        "model": str(summary["model"]["path"]),
        "model_generate_config": known,
        "model_args": {key: value for key, value in summary["model"].items() if key != "path"},
        "config": {"epochs": _num_epochs(summary), "epochs_reducer": ["mean"]},
        "packages": summary["versions"],
        "metadata": {
            "command": summary["command"],
            "commit": summary["commit"],
            "system_prompt": summary["prompts"]["system_prompt"],
            "role": summary["prompts"]["role"],
            "datasets": summary["datasets"],
        },
        "headline_metric": _HEADLINE,
        "scorers": [
            {"name": _STRICT, "options": {}, "metrics": [{"name": "accuracy"}, {"name": "stderr"}]},
            {"name": _SCORE, "options": {}, "metrics": [{"name": "mean"}, {"name": "stderr"}]},
        ],
    }


def _num_epochs(summary: Mapping[str, Any]) -> int:
    num_problems = sum(dataset["size"] for dataset in summary["datasets"])
    return max(1, int(summary["overall"]["num_answers"]) // max(1, num_problems))


def _digest(*parts: object) -> str:
    return hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", "replace"), digest_size=11).hexdigest()
