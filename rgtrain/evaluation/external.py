"""Run benchmarks of lm-evaluation-harness with the same engine and prompt style as our own problems."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from rgtrain.errors import ConfigError, choose_from
from rgtrain.evaluation.benchmark_data import BenchmarkExample, group_of, load_examples
from rgtrain.evaluation.engine_interface import Engine, Prompt, Sampling
from rgtrain.evaluation.evaluation_model import opened_model
from rgtrain.evaluation.evaluation_prompts import LoadedTokenizer, load_tokenizer
from rgtrain.evaluation.vllm_engine import VllmEngine, VllmSettings
from rgtrain.models.context_length import vllm_overrides
from rgtrain.problems.answers import opens_thinking
from rgtrain.problems.prompts import PromptStyle, sample_messages, with_system_role


class BenchmarkTask(ConfigurableTask):
    """A benchmark whose worked examples are earlier turns of the chat and belong to the problem's own group.

    The harness itself takes the same examples for all problems of a task. It takes them from the problems to be solved
    if no other split is named, and counts an example that can't be found as none.

    Attributes:
        examples: A description of the examples as plain JSON values, with their number, their source, a hash of their
            text, and whether they show their reasoning.
    """

    def __init__(self, config: Mapping[str, Any]):
        config = {key: value for key, value in config.items() if key != "class"}
        super().__init__(config=config)
        metadata, data = config["metadata"], config["dataset_kwargs"]
        num = metadata["num_fewshot"]
        # The harness prints and records this number.
        self.set_config(key="num_fewshot", value=num)
        self._turns: dict[str, list[tuple[BenchmarkExample, list[dict[str, str]]]]] = {}
        self.examples: dict[str, Any] = {"num_examples": num}
        if not num:
            return
        with_reasoning = metadata["chain_of_thought"]
        configs = data.get("config")
        found = load_examples(
            data["name"],
            num,
            hub=data["path"],
            configs=[configs] if configs is None or isinstance(configs, str) else configs,
            data_dir=Path(metadata["data_dir"]) if metadata.get("data_dir") else None,
        )
        if without := {group_of(doc) for doc in self.eval_docs} - found.by_group.keys():
            raise ConfigError(
                f"rg_{data['name']} has no worked examples for {min(without)!r} in {found.source}; "
                "add some or leave out --num-fewshot"
            )
        for group, examples in found.by_group.items():
            self._turns[group] = [(example, self._turn(example, with_reasoning)) for example in examples]
        shown = {group: [turn for _, turn in turns[:num]] for group, turns in sorted(self._turns.items())}
        self.examples |= {
            "chain_of_thought": with_reasoning,
            "source": found.source,
            "sha256": hashlib.sha256(json.dumps(shown).encode()).hexdigest(),
        }

    def _turn(self, example: BenchmarkExample, with_reasoning: bool) -> list[dict[str, str]]:
        answer = f"<answer>{example.answer}</answer>"
        if with_reasoning and example.reasoning:
            # Without think tags: chat templates of reasoning models remove thinking from earlier turns.
            answer = f"{example.reasoning}\n{answer}"
        return [
            {"role": "user", "content": self.doc_to_text(example.document)},
            {"role": "assistant", "content": answer},
        ]

    def fewshot_docs(self) -> None:
        """Return None, because the examples come from `load_examples`."""

    def fewshot_context(
        self,
        doc: Mapping[str, Any],
        num_fewshot: int,
        system_instruction: str | None = None,
        *,
        chat_template: Callable[[list[dict[str, str]]], str],
        **_: Any,
    ) -> str:
        """Return the prompt of a problem: system prompt, worked examples as earlier turns, and the question.

        Args:
            doc: The problem.
            num_fewshot: The number of examples.
            system_instruction: The system prompt.
            chat_template: Renders chat messages.
        """
        description = self.resolve_field(doc, self.config.description)
        system = "\n\n".join(part for part in (system_instruction, description) if part)
        messages = [{"role": "system", "content": system}] if system else []
        question = self.doc_to_text(doc)
        turns = [turn for _, turn in self._turns.get(group_of(doc), ()) if turn[0]["content"] != question]
        messages += [message for turn in turns[:num_fewshot] for message in turn]
        return chat_template([*messages, {"role": "user", "content": question}])


class EngineModel(LM):
    """Adapts an Engine to the model interface of lm-evaluation-harness. It generates text but has no likelihoods.

    Args:
        start: Starts the engine.
        loaded: The tokenizer with the chat template.
        role: The role of the system prompt.
        max_tokens: The maximum length of a completion, in tokens.
        max_model_len: The maximum length of prompt plus completion, in tokens; None if it is not checked.
    """

    def __init__(
        self,
        start: Callable[[], Engine],
        loaded: LoadedTokenizer,
        *,
        role: str,
        max_tokens: int,
        max_model_len: int | None = None,
    ):
        super().__init__()
        self._start = start
        self._tokenizer = loaded.renderer.tokenizer
        self._renderer = loaded.renderer
        self._role = role
        # The texts in front of the questions for which the chat template was checked.
        self._checked: set[str] = set()
        self._max_model_len = max_model_len
        self._sampling = Sampling(max_tokens, temperature=0)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, which the harness uses in its cache keys."""
        return self._tokenizer.name_or_path

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the chat as one text. Raises ConfigError if the chat template drops a part of it.

        The first chat with the same system prompt and worked examples is checked.
        """
        messages = with_system_role(chat_history, self._role)
        before_question = json.dumps(chat_history[:-1])
        if add_generation_prompt and before_question not in self._checked:
            self._renderer.check(messages)
            self._checked.add(before_question)
        return self._renderer.text(messages, add_generation_prompt=add_generation_prompt)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the greedy completion of each request, in the order of the requests.

        A think tag that the prompt has opened stands in front, because tasks see no prompt when they judge.

        Raises:
            ConfigError: A prompt leaves too little room for a completion. The engine is not started.
        """
        # The texts contain the special tokens already, from the chat template.
        texts = [request.args[0] for request in requests]
        ids = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        longest, room = max(map(len, ids)), self._sampling.max_tokens
        if self._max_model_len is not None and longest + room > self._max_model_len:
            raise ConfigError(
                f"a prompt of {longest} tokens and --max-tokens {room} exceed the context of {self._max_model_len} "
                "tokens; give a lower --max-tokens or --num-fewshot, or a higher --max-model-len if the model allows it"
            )
        prompts = [Prompt([], token_ids, 1) for token_ids in ids]
        completions = [""] * len(prompts)
        answered = self._start().generate(prompts, self._sampling)
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
    num_fewshot: int | None = None,
    chain_of_thought: bool = True,
) -> dict[str, Any]:
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
        limit: The number of problems to use from each task, of Big-Bench Hard from each subtask; None for all.
        data_dir: A folder with the tasks' data (see load_problems); None for the data on the Hugging Face hub.
        num_fewshot: The number of worked examples in front of each question; None for each task's own number.
        chain_of_thought: Whether worked examples show their reasoning.

    Returns:
        The results, as the harness returns them. By task, `examples` describes the worked examples.

    Raises:
        ConfigError: A task or the model is unknown, a task's data cannot be loaded, or the chat template drops a part
            of a prompt.
    """
    metadata = {
        "data_dir": str(data_dir) if data_dir else None,
        "limit": limit,
        "chain_of_thought": chain_of_thought,
        **({} if num_fewshot is None else {"num_fewshot": num_fewshot}),
    }
    loaded_tasks = load_tasks(tasks, task_folder=task_folder, metadata=metadata)
    if not chain_of_thought and not any(task.examples["num_examples"] for task in loaded_tasks):
        raise ConfigError("--no-cot changes worked examples, but there are none; leave it out or give --num-fewshot")
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
        with ExitStack() as opened:
            # The engine starts once all prompts are rendered and checked.
            harness_model = EngineModel(
                lambda: opened.enter_context(closing(VllmEngine(settings))),
                loaded,
                role=style.role,
                max_tokens=max_tokens,
                max_model_len=length,
            )
            results = simple_evaluate(
                harness_model,
                tasks=loaded_tasks,
                system_instruction=style.text(),
                apply_chat_template=True,
                fewshot_as_multiturn=True,
            )
    return {**results, "examples": {task.task_name: task.examples for task in loaded_tasks}, "limit": limit}


def load_tasks(tasks: Sequence[str], *, task_folder: Path, metadata: Mapping[str, Any]) -> list[BenchmarkTask]:
    """Load tasks and their data, before the model starts.

    Args:
        tasks: Names of tasks.
        task_folder: The folder with the YAML files that define the tasks.
        metadata: `data_dir`, `limit`, `chain_of_thought`, and `num_fewshot` if it replaces the tasks' own numbers (see
            `run_benchmarks`).

    Returns:
        The tasks.

    Raises:
        ConfigError: A task is unknown, or its data cannot be loaded.
    """
    manager = TaskManager(include_path=str(task_folder), include_defaults=False, metadata=dict(metadata))
    loaded = []
    for task in tasks:
        if task not in manager.all_tasks:
            raise ConfigError(f"unknown task {task!r}; {choose_from(task, manager.all_tasks)}")
        try:
            loaded += manager.load([task])["tasks"].values()
        except ConfigError:
            raise
        except (OSError, ValueError, DatasetsError) as error:
            raise ConfigError(
                f"cannot load the data of task {task!r} ({' '.join(str(error).split())[:300]}); "
                "give the data in a folder with --data-dir if this machine has no network"
            ) from error
    return loaded
