"""Run benchmarks of lm-evaluation-harness with the same engine and prompt style as our own problems."""

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
from rgtrain.evaluation.evaluation_prompts import LoadedTokenizer, load_tokenizer
from rgtrain.evaluation.vllm_engine import VllmEngine, VllmSettings
from rgtrain.models.context_length import vllm_overrides
from rgtrain.problems.answers import opens_thinking
from rgtrain.problems.prompts import PromptStyle, sample_messages, with_system_role


class EngineModel(LM):
    """Adapts an Engine to the model interface of lm-evaluation-harness. It generates text but has no likelihoods."""

    def __init__(self, engine: Engine, loaded: LoadedTokenizer, *, role: str, max_tokens: int):
        super().__init__()
        self._engine = engine
        self._tokenizer = loaded.renderer.tokenizer
        self._renderer = loaded.renderer
        self._role = role
        self._is_checked = False
        self._sampling = Sampling(max_tokens, temperature=0)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, which the harness uses in its cache keys."""
        return self._tokenizer.name_or_path

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the chat as one text. Raises ConfigError if the chat template drops a part of the first one."""
        messages = with_system_role(chat_history, self._role)
        if add_generation_prompt and not self._is_checked:
            self._renderer.check(messages)
            self._is_checked = True
        return self._renderer.text(messages, add_generation_prompt=add_generation_prompt)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the greedy completion of each request, in the order of the requests.

        A think tag that the prompt has opened stands in front, because tasks see no prompt when they judge.
        """
        # The texts contain the special tokens already, from the chat template.
        texts = [request.args[0] for request in requests]
        ids = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        prompts = [Prompt([], token_ids, 1) for token_ids in ids]
        completions = [""] * len(prompts)
        answered = self._engine.generate(prompts, self._sampling)
        for position, completion in tqdm(answered, total=len(prompts), unit="answer", disable=disable_tqdm):
            completions[position] = ("<think>" if opens_thinking(texts[position]) else "") + completion.text
        return completions

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raise NotImplementedError, because engines return no likelihoods."""
        raise NotImplementedError("tasks that need likelihoods are not supported; use tasks that generate text")

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
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    limit: int | None = None,
    data_dir: Path | None = None,
) -> Mapping[str, Any]:
    """Run tasks of lm-evaluation-harness on a model.

    Args:
        model_path: A model folder, hub name, LoRA adapter or training checkpoint.
        tasks: Names of tasks.
        task_folder: The folder with the YAML files that define the tasks.
        style: The system prompt and its role.
        max_tokens: The maximum length of a completion, in tokens.
        max_model_len: The maximum length of prompt plus completion, in tokens.
        dtype: The floating-point type of the computation.
        chat_template: A template that replaces the model's; None for the model's own.
        chat_template_kwargs: Arguments of the chat template.
        limit: The number of problems to use from each task; None for all.
        data_dir: A folder with the tasks' data as NAME.jsonl; None for the data on the Hugging Face hub.

    Returns:
        The results, as the harness returns them.

    Raises:
        ConfigError: A task or the model is unknown, a task's data cannot be loaded, or the chat template drops a part
            of a prompt.
    """
    manager = _load_tasks(tasks, task_folder=task_folder, data_dir=data_dir)
    with opened_model(model_path) as model:
        loaded = load_tokenizer(
            model.folder,
            model_path=model_path,
            adapter=model.adapter,
            chat_template=chat_template,
            arguments=chat_template_kwargs,
            role_key="--role",
        )
        loaded.renderer.check(sample_messages(style))
        length = min(loaded.context or max_model_len, max_model_len)
        settings = VllmSettings(
            str(model.folder),
            dtype,
            length,
            seed=0,
            adapter=str(model.adapter) if model.adapter else None,
            adapter_rank=model.adapter_rank,
            tokenizer=str(loaded.folder),
            overrides=vllm_overrides(model.folder, max_model_len=length),
        )
        with closing(VllmEngine(settings)) as engine:
            return simple_evaluate(
                EngineModel(engine, loaded, role=style.role, max_tokens=max_tokens),
                tasks=list(tasks),
                limit=limit,
                task_manager=manager,
                system_instruction=style.text(),
                apply_chat_template=True,
            )


def _load_tasks(tasks: Sequence[str], *, task_folder: Path, data_dir: Path | None) -> TaskManager:
    """Load the tasks and their data, so that missing data is reported before the model starts."""
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
