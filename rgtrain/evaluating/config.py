"""What an evaluation file says, checked before anything heavy starts."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rgtrain.devices import compute_dtype
from rgtrain.errors import ConfigError, choose_from
from rgtrain.paths import PROJECT_ROOT
from rgtrain.problems.evaluation_set import EvaluationDataset, parse_categories, read_evaluation_file
from rgtrain.problems.prompts import PromptStyle
from rgtrain.problems.scoring import check_confinement, parse_scorer

DTYPES = ("auto", "bfloat16", "float16", "float32")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass(frozen=True)
class EvaluationConfig:
    """One evaluation: which model answers which problems, how they are put to it, and what is kept.

    model_path: a Hugging Face folder, or a hub name such as Qwen/Qwen2.5-3B-Instruct.
    max_tokens: the longest completion. temperature: 0 is greedy.
    eval_repeats: answers a problem. seed: of the sampling.
    developer_prompt, developer_role, num_examples, examples_seed: see PromptStyle, which training uses as well.
    dtype: of the computation; bfloat16, as published, where the machine has instructions for it.
    max_model_len: a limit on prompt plus completion below the model's own; None for the model's own.
    output_dir: the results come into a folder of their own in it.
    save_full_results: keep every answer in results.jsonl. save_metadata: with the whole entry of its problem.
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
    save_metadata: bool = False
    save_full_results: bool = False
    scorer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """Completions to generate for each problem: one if greedy, as all repeats would be the same text."""
        return 1 if self.temperature == 0 else self.eval_repeats

    @property
    def prompt_style(self) -> PromptStyle:
        return PromptStyle(self.developer_prompt, self.developer_role, self.num_examples, self.examples_seed)

    @property
    def model_name(self) -> str:
        return Path(self.model_path).name


def load_config(
    path: Path, *, overrides: Mapping[str, Any] | None = None, category: str | None = None
) -> EvaluationConfig:
    """The checked evaluation of the YAML file `path`, with `overrides` in place of its own top-level values.

    `category` keeps only the datasets of that category. Raises ConfigError on anything that can't be used.
    """
    raw = read_evaluation_file(path) | dict(overrides or {})
    for key in raw:
        if key not in _KEYS:
            raise ConfigError(f"unknown key {key!r} in the evaluation's configuration; {choose_from(key, _KEYS)}")
    for key in _REQUIRED:
        if raw.get(key) is None:
            raise ConfigError(f"{key} is missing: add '{key}: ...' to {path} or {key}=... to the command")
    datasets = _of_category(parse_categories(raw.pop("categories")), category)
    for key, value in raw.items():
        allowed, words = _RULES[key]
        if not allowed(value):
            raise ConfigError(f"{key} is {value!r}; give {words}")
    raw["model_path"] = _find_model(raw["model_path"])
    raw["output_dir"] = Path(raw["output_dir"])
    check_confinement(parse_scorer(raw.get("scorer", {})))
    name = "_".join(re.sub(r"[^\w.-]", "_", part) for part in (Path(path).stem, category) if part)
    config = EvaluationConfig(**raw, datasets=tuple(datasets), name=name)
    config.prompt_style  # noqa: B018  (refuses unknown prompts and roles)
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
        except yaml.YAMLError as error:
            raise ConfigError(f"the value in {word!r} is not valid YAML: {' '.join(str(error).split())}") from error
    return overrides


def _of_category(datasets: list[EvaluationDataset], category: str | None) -> list[EvaluationDataset]:
    names = {dataset.category for dataset in datasets}
    if category is not None and category not in names:
        raise ConfigError(f"unknown category {category!r}; {choose_from(category, names)}")
    return [dataset for dataset in datasets if category in (None, dataset.category)]


def _find_model(given: str) -> str:
    """The folder that `given` names, from here or from the repository, else `given` as a hub name."""
    for folder in (Path(given).expanduser(), PROJECT_ROOT / given):
        if folder.is_dir():
            _check_model_folder(folder)
            return str(folder.resolve())
    # A path that starts in a folder of ours is a missing model, not a hub name.
    starts_here = any((base / Path(given).parts[0]).is_dir() for base in (Path.cwd(), PROJECT_ROOT))
    if not _HUB_NAME.fullmatch(given) or starts_here:
        raise ConfigError(
            f"model_path {given!r} does not exist; give a model folder in Hugging Face form, or a hub name such as "
            "Qwen/Qwen2.5-3B-Instruct (`bash train.sh setup` prepares models/SmolLM2-135M-Instruct)"
        )
    return given


def _check_model_folder(folder: Path) -> None:
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        missing.append("a tokenizer (tokenizer.json)")
    if not any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", "*.bin")):
        missing.append("weights (*.safetensors)")
    if missing:
        raise ConfigError(
            f"model_path {str(folder)!r} is no model folder: it lacks {' and '.join(missing)}; "
            "export a training checkpoint with utils/load_fsdp_to_hf.py first"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any, *, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _whole(low: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: _is_whole(value, low=low), f"a whole number from {low} up"


_FLAG = (lambda value: isinstance(value, bool), "true or false")
_TEXT = (lambda value: isinstance(value, str) and bool(value.strip()), "a text")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_path": _TEXT,
    "max_tokens": _whole(1),
    # vLLM raises values between 0 and 0.01 to 0.01.
    "temperature": (lambda value: _is_number(value) and (value == 0 or value >= 0.01), "0 (greedy) or 0.01 and up"),
    "top_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and up to 1"),
    "dtype": (lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "developer_prompt": (lambda value: value is None or isinstance(value, str), "a prompt's name or text, or null"),
    "developer_role": _TEXT,
    "num_examples": _whole(0),
    "examples_seed": _whole(0),
    "eval_repeats": _whole(1),
    "seed": _whole(0),
    "max_model_len": (lambda value: value is None or _is_whole(value, low=1), "a whole number from 1 up, or null"),
    "output_dir": (lambda value: isinstance(value, str | Path) and bool(str(value).strip()), "a folder"),
    "save_metadata": _FLAG,
    "save_full_results": _FLAG,
    "scorer": (lambda value: isinstance(value, Mapping), "a mapping: {timeout_s: 5}"),
}
_KEYS = {*_RULES, "categories"}
_REQUIRED = ("model_path", "max_tokens", "temperature", "output_dir", "categories")
