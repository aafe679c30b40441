"""What an evaluation file says, checked before anything heavy starts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rgtrain.errors import ConfigError, choose_from
from rgtrain.evaluation.config_rules import KEYS, REQUIRED, RULES
from rgtrain.evaluation.endpoint_settings import EndpointSettings, parse_endpoint
from rgtrain.evaluation.evaluation_model import ENDPOINT, find_model, short_name
from rgtrain.machine.devices import compute_dtype, num_gpus
from rgtrain.problems.evaluation_set import EvaluationDataset, parse_categories, read_evaluation_file
from rgtrain.problems.prompts import PromptStyle
from rgtrain.problems.scoring import check_confinement, parse_scorer


@dataclass(frozen=True)
class EvaluationConfig:
    """One evaluation: which model answers which problems, how they are put to it, and what is kept.

    model_path: a Hugging Face folder, a hub name such as Qwen/Qwen2.5-3B-Instruct, the folder of a LoRA adapter or of a
        sharded training checkpoint, or openai://NAME for a model behind an OpenAI-compatible endpoint.
    base_model: what a LoRA adapter is put over; None for the model that it names itself.
    base_url, endpoint: where the endpoint is, such as http://localhost:8000/v1, and see EndpointSettings.
    max_tokens: the longest completion. temperature: 0 is greedy.
    eval_repeats: answers a problem. seed: of the sampling.
    developer_prompt, developer_role, num_examples, examples_seed: see PromptStyle, which training uses as well.
    dtype: of the computation; bfloat16, as published, where the machine has instructions for it.
    tensor_parallel_size: GPUs that share one copy of the model. data_parallel_size: copies that share the problems;
        None for as many as there are GPUs for.
    max_model_len: a limit on prompt plus completion below the model's own; None for the model's own.
    output_dir: the results come into a folder of their own in it.
    save_full_results: keep question and completion of every answer. save_metadata: and the whole entry of its problem.
    scorer: see Scorer.
    """

    model_path: str
    max_tokens: int
    temperature: float
    output_dir: Path
    datasets: tuple[EvaluationDataset, ...]
    name: str
    top_p: float = 1.0
    dtype: str = field(default_factory=compute_dtype)
    developer_prompt: str | None = "DeepSeekZero"
    developer_role: str = "system"
    num_examples: int = 0
    examples_seed: int = 0
    eval_repeats: int = 1
    seed: int = 0
    max_model_len: int | None = None
    base_model: str | None = None
    base_url: str | None = None
    endpoint: Mapping[str, Any] = field(default_factory=dict)
    tensor_parallel_size: int = 1
    data_parallel_size: int | None = None
    save_metadata: bool = True
    save_full_results: bool = True
    scorer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """Completions to generate for each problem: one if greedy, as all repeats would be the same text."""
        return 1 if self.temperature == 0 else self.eval_repeats

    @property
    def prompt_style(self) -> PromptStyle:
        return PromptStyle(self.developer_prompt, self.developer_role, self.num_examples, self.examples_seed)

    @property
    def results_folder(self) -> Path:
        """Where the results go."""
        return self.output_dir / f"{self.name}_{short_name(self.model_path)}"

    @property
    def endpoint_settings(self) -> EndpointSettings | None:
        """The endpoint that the model is behind, if it is behind one."""
        if not self.model_path.startswith(ENDPOINT):
            return None
        return parse_endpoint(self.endpoint, base_url=self.base_url, model=self.model_path.removeprefix(ENDPOINT))

    @property
    def num_copies(self) -> int:
        """Copies of the model to run: those asked for, or as many as the GPUs hold; 1 on a CPU."""
        return self.data_parallel_size or max(1, num_gpus() // self.tensor_parallel_size)


def load_config(
    path: Path, *, overrides: Mapping[str, Any] | None = None, category: str | None = None
) -> EvaluationConfig:
    """The checked evaluation of the YAML file `path`, with `overrides` in place of its own top-level values.

    `category` keeps only the datasets of that category. Raises ConfigError on anything that can't be used.
    """
    raw = read_evaluation_file(path) | dict(overrides or {})
    for key in raw:
        if key not in KEYS:
            raise ConfigError(f"unknown key {key!r} in the evaluation's configuration; {choose_from(key, KEYS)}")
    for key in REQUIRED:
        if raw.get(key) is None:
            raise ConfigError(f"{key} is missing: add '{key}: ...' to {path} or {key}=... to the command")
    datasets = _of_category(parse_categories(raw.pop("categories")), category)
    for key, value in raw.items():
        allowed, words = RULES[key]
        if not allowed(value):
            raise ConfigError(f"{key} is {value!r}; give {words}")
    raw["model_path"] = find_model(raw["model_path"])
    raw["output_dir"] = Path(raw["output_dir"])
    check_confinement(parse_scorer(raw.get("scorer", {})))
    name = "_".join(re.sub(r"[^\w.-]", "_", part) for part in (Path(path).stem, category) if part)
    config = EvaluationConfig(**raw, datasets=tuple(datasets), name=name)
    config.prompt_style  # noqa: B018  (refuses unknown prompts and roles)
    check_devices(config)
    return config


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Values by key from words such as `max_tokens=64`; values are read as YAML. Raises ConfigError on other words."""
    overrides = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ConfigError(f"cannot use the argument {word!r}; write key=value, such as max_tokens=64")
        try:
            overrides[key] = yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError) as error:
            raise ConfigError(
                f"the value in {word[:200]!r} is not valid YAML: {' '.join(str(error).split())}"
            ) from error
    return overrides


def _of_category(datasets: list[EvaluationDataset], category: str | None) -> list[EvaluationDataset]:
    names = {dataset.category for dataset in datasets}
    if category is not None and category not in names:
        raise ConfigError(f"unknown category {category!r}; {choose_from(category, names)}")
    return [dataset for dataset in datasets if category in (None, dataset.category)]


def check_devices(config: EvaluationConfig) -> None:
    """Raise ConfigError where the endpoint's or the GPUs' settings don't go together, or there are too few GPUs."""
    if config.endpoint_settings is None:
        for key in ("base_url", "endpoint"):
            if getattr(config, key):
                raise ConfigError(f"{key} is for model_path: {ENDPOINT}NAME, not {config.model_path!r}; leave it out")
    present, wanted = num_gpus(), config.tensor_parallel_size * config.num_copies
    if config.tensor_parallel_size > 1 and present == 0:
        raise ConfigError(f"tensor_parallel_size is {config.tensor_parallel_size}, but there is no GPU; leave it out")
    if present and wanted > present:
        raise ConfigError(
            f"tensor_parallel_size {config.tensor_parallel_size} times data_parallel_size {config.num_copies} needs "
            f"{wanted} GPUs, but there are {present}; lower one"
        )
