"""Benchmarks of lm-evaluation-harness, answered by the same engine and prompts as our own problems."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from rgtrain.errors import ConfigError, choose_from
from rgtrain.evaluation.engine_interface import Engine, Prompt, Sampling
from rgtrain.evaluation.evaluation_model import opened_model
from rgtrain.evaluation.evaluation_prompts import load_tokenizer
from rgtrain.evaluation.vllm_engine import VllmEngine, VllmSettings
from rgtrain.problems.prompts import PromptStyle


class EngineModel(LM):
    """An Engine as lm-evaluation-harness wants a model: it generates, and knows no probabilities of given texts."""

    def __init__(self, engine: Engine, tokenizer: Any, *, max_tokens: int):
        super().__init__()
        self._engine = engine
        self._tokenizer = tokenizer
        self._sampling = Sampling(max_tokens, temperature=0)

    @property
    def tokenizer_name(self) -> str:
        """Part of the harness's cache keys."""
        return self._tokenizer.name_or_path

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as one text."""
        return self._tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The greedy completion of each request's text, in the requests' order."""
        # The chat template has written the special tokens already.
        texts = [request.args[0] for request in requests]
        ids = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        prompts = [Prompt([], token_ids, 1) for token_ids in ids]
        completions = [""] * len(prompts)
        answered = self._engine.generate(prompts, self._sampling)
        for position, completion in tqdm(answered, total=len(prompts), unit="answer", disable=disable_tqdm):
            completions[position] = completion.text
        return completions

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not for tasks that ask for probabilities."""
        raise NotImplementedError("this model only generates")

    loglikelihood_rolling = loglikelihood


def run_benchmarks(
    model_path: str,
    *,
    tasks: Sequence[str],
    task_folder: Path,
    style: PromptStyle,
    max_tokens: int,
    max_model_len: int,
    dtype: str,
    limit: int | None = None,
    data_dir: Path | None = None,
) -> Mapping[str, Any]:
    """The harness's results of `tasks`, defined by the YAML files in `task_folder`.

    limit: only so many problems of each task. data_dir: holds the tasks' data as NAME.jsonl; the hub's unless given.
    Raises ConfigError for an unknown task or model, or where a task's data can't be had.
    """
    manager = _manager(tasks, task_folder=task_folder, data_dir=data_dir)
    with opened_model(model_path) as model:
        tokenizer, context = load_tokenizer(model.folder)
        adapter = str(model.adapter) if model.adapter else None
        settings = VllmSettings(
            str(model.folder),
            dtype,
            min(context, max_model_len),
            seed=0,
            adapter=adapter,
            adapter_rank=model.adapter_rank,
        )
        with closing(VllmEngine(settings)) as engine:
            return simple_evaluate(
                EngineModel(engine, tokenizer, max_tokens=max_tokens),
                tasks=list(tasks),
                limit=limit,
                task_manager=manager,
                system_instruction=style.text(),
                apply_chat_template=True,
            )


def _manager(tasks: Sequence[str], *, task_folder: Path, data_dir: Path | None) -> TaskManager:
    """The harness's tasks, with their data loaded once: what can't be had is told before the model is started."""
    metadata = {"data_dir": str(data_dir)} if data_dir else None
    manager = TaskManager(include_path=str(task_folder), include_defaults=False, metadata=metadata)
    for task in tasks:
        if task not in manager.all_tasks:
            raise ConfigError(f"unknown task {task!r}; {choose_from(task, manager.all_tasks)}")
        try:
            manager.load([task])
        except (OSError, ValueError, DatasetsError) as error:
            raise ConfigError(f"cannot load the data of task {task!r}: {' '.join(str(error).split())[:300]}") from error
    return manager
