"""The folder of one evaluation's results: complete or absent, never half-written or mixed."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError
from rgtrain.evaluating.config import EvaluationConfig
from rgtrain.evaluating.measures import JudgedAnswer
from rgtrain.evaluating.summary import config_as_json, summarise
from rgtrain.problems.entries import dump_entry


class ResultsFolder:
    """`output_dir/<evaluation>_<model>` with summary.json and, if wanted, results.jsonl with every answer."""

    def __init__(self, config: EvaluationConfig):
        self._config = config
        self.path = config.output_dir / f"{config.name}_{config.model_name}"
        self._summary = self.path / "summary.json"
        self._results = self.path / "results.jsonl"

    def prepare(self) -> None:
        """Raise ConfigError unless results can be written here, and none of another evaluation are replaced."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise ConfigError(
                f"cannot write results into {self.path}: {error.strerror}; give another output_dir"
            ) from error
        self._check_same_evaluation()

    def write(
        self, answers: Sequence[JudgedAnswer], *, command: Sequence[str], seconds: Mapping[str, float]
    ) -> dict[str, Any]:
        """Replace what is here by the results of `answers`; the summary comes last, so where it is, all is.

        Returns the summary.
        """
        summary = summarise(self._config, answers, command=command, seconds=seconds)
        self._summary.unlink(missing_ok=True)
        self._results.unlink(missing_ok=True)
        if self._config.save_full_results:
            _write_whole(self._results, self._records(answers))
        _write_whole(self._summary, [json.dumps(summary, indent=2, ensure_ascii=False)])
        return summary

    def _check_same_evaluation(self) -> None:
        if not self._summary.is_file():
            return
        there = json.loads(self._summary.read_text(encoding="utf-8"))["config"]
        wanted = json.loads(json.dumps(config_as_json(self._config)))
        changed = sorted(key for key in wanted.keys() | there.keys() if wanted.get(key) != there.get(key))
        if changed:
            raise ConfigError(
                f"{self.path} holds the results of another evaluation, with other {', '.join(changed)}; "
                "give another output_dir or delete that folder"
            )

    def _records(self, answers: Iterable[JudgedAnswer]) -> Iterator[str]:
        for answer in answers:
            record = {
                "category": answer.dataset.category,
                "dataset": answer.dataset.name,
                "seed": answer.problem.seed,
                "index": answer.problem.index,
                "repeat": answer.repeat,
                "question": answer.problem.question,
                "completion": answer.completion.text,
                "answer": answer.answer,
                "score": answer.score.accuracy,
                "error": answer.score.error,
                "tokens": answer.completion.num_tokens,
                "finish_reason": answer.completion.finish_reason,
            }
            if self._config.save_metadata:
                record["entry"] = dump_entry(dict(answer.problem.entry))
            yield json.dumps(record, ensure_ascii=False)


def _write_whole(path: Path, lines: Iterable[str]) -> None:
    """Write `lines` under a temporary name and rename it, so that `path` never holds a part of them."""
    # Lone surrogates, which a question may hold, become the escapes that JSON has for them.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's 0600 would keep colleagues from reading results.
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
