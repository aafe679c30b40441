"""The configuration of an evaluation: every key of an evaluation file, checked before anything heavy starts."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rgtrain.config.prompt_values import FILE_PREFIX, FUNCTION_PREFIX, read_examples_file, read_prompt_file
from rgtrain.config.value_rules import FLAG, MAPPING, TEXT, Rule, either, number, one_of, or_null, whole_number
from rgtrain.errors import ConfigError, choose_from
from rgtrain.evaluation.declared_keys import Scope, declare, describe, keys_of
from rgtrain.evaluation.endpoint_settings import EndpointSettings, parse_endpoint
from rgtrain.evaluation.engine_interface import Sampling
from rgtrain.evaluation.evaluation_model import ENDPOINT, find_model, short_name
from rgtrain.machine.devices import compute_dtype, num_gpus
from rgtrain.models.chat_templates import read_chat_template
from rgtrain.paths import PROJECT_ROOT, SHIPPED

if TYPE_CHECKING:
    # At run time, the functions import them: --help needs only the keys, and Reasoning Gym takes a second to import.
    from rgtrain.problems.evaluation_set import EvaluationDataset
    from rgtrain.problems.prompts import PromptStyle


def _is_plain_mapping(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    try:
        return json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError, RecursionError):
        return False


def _read_template_kwargs(value: Mapping[str, Any]) -> Mapping[str, Any] | None:
    from rgtrain.problems.prompt_rendering import check_template_arguments

    check_template_arguments(value, key="chat_template_kwargs")
    # An empty mapping means the same as none.
    return value or None


def _is_file_or_list(value: Any) -> bool:
    return isinstance(value, str | list | tuple)


def _read_examples(value: Any) -> tuple[Mapping[str, Any], ...] | None:
    from rgtrain.problems.prompts import parse_examples

    examples = parse_examples(read_examples_file(value, key="examples"))
    # An empty list means the same as none.
    return tuple(dataclasses.asdict(example) for example in examples) or None


def _read_dtype(value: str) -> str:
    return compute_dtype() if value == "auto" else value


_DTYPE = replace(one_of("auto", "bfloat16", "float16", "float32"), read=_read_dtype)


def _read_categories(raw: Any) -> "tuple[EvaluationDataset, ...]":
    from rgtrain.problems.evaluation_set import parse_categories

    return tuple(parse_categories(raw))


def _are_names(value: Any) -> bool:
    return TEXT.allows(value) or (isinstance(value, list | tuple) and all(map(TEXT.allows, value)))


def _read_names(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


_COUNT = whole_number(1)
_PENALTY = number(lambda value: -2 <= value <= 2, "a number from -2 to 2")


def _unless_neutral(neutral: float, rule: Rule) -> Rule:
    """Return a rule that also allows null, and reads the neutral value as null, so that both mean one evaluation."""
    nulled = or_null(rule, "no effect")
    return replace(nulled, read=lambda value: None if value == neutral else value)


def _is_stop(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list | tuple) and all(isinstance(text, str) and _keeps_tags(text) for text in texts)


def _keeps_tags(stop: str) -> bool:
    """Return whether `stop`, which engines cut off, can't cut off a part of an answer's tags."""
    if not stop:
        return False
    for tag in ("<answer>", "</answer>"):
        if stop in tag or tag in stop:
            return False
        if any(stop.endswith(tag[:length]) or stop.startswith(tag[-length:]) for length in range(1, len(tag))):
            return False
    return True


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """One evaluation: the model, the problems, the prompts, the sampling, and the results that are kept.

    Declared fields are the keys of an evaluation file, of `key=value` on the command line, and of --help. To add a key,
    it is enough to add a field.

    Attributes:
        name: The file's name without its suffix, followed by the category if only one is evaluated.
        prompt_notes: Which prompt settings come from the run that trained the model, and which differ from it.
    """

    name: str
    model_path: str = field(
        metadata=declare(
            "the model: a folder in Hugging Face format, a hub name such as Qwen/Qwen2.5-3B-Instruct, the folder of a "
            "LoRA adapter or of a sharded training checkpoint, "
            f"or {ENDPOINT}NAME for a model behind an OpenAI-compatible endpoint",
            Rule(TEXT.words, TEXT.allows, find_model),
            scope=Scope.COMMAND,
        )
    )
    base_model: str | None = field(
        default=None,
        metadata=declare(
            "the base model of a LoRA adapter",
            or_null(TEXT, "the one that the adapter names"),
            scope=Scope.COMMAND,
        ),
    )
    base_url: str | None = field(
        default=None,
        metadata=declare(
            "the address of the endpoint, such as http://localhost:8000/v1",
            or_null(TEXT, "a model on this machine"),
            scope=Scope.EVALUATION,
        ),
    )
    endpoint: Mapping[str, Any] = field(
        default_factory=dict, metadata=declare("settings of the endpoint, see below", MAPPING, scope=Scope.COMMAND)
    )
    plugins: tuple[str, ...] = field(
        default=(),
        metadata=declare(
            "packages to import first, whose Reasoning Gym datasets `categories` may name",
            Rule("a list of packages, such as [my_tasks]", _are_names, _read_names),
            # The datasets are part of the evaluation. The packages that register them do not matter.
            scope=Scope.COMMAND,
        ),
    )
    datasets: "tuple[EvaluationDataset, ...]" = field(
        metadata=declare(
            "the problems",
            Rule(
                "a list such as `[{category: words, datasets: [{dataset: spell_backward, size: 100, seed: 42, "
                "params: {min_word_len: 3}}]}]`",
                read=_read_categories,
            ),
            name="categories",
        )
    )
    size: int | Mapping[str, int] | None = field(
        default=None,
        metadata=declare(
            "problems of each dataset in place of the sizes in `categories`, or a mapping such as {chain_sum: 20} for "
            "some datasets",
            or_null(either(_COUNT, Rule("a mapping of sizes by dataset", MAPPING.allows)), "the sizes in `categories`"),
            # The datasets have these sizes. The source of a size does not matter.
            scope=Scope.COMMAND,
        ),
    )
    limit: int | None = field(
        default=None,
        metadata=declare(
            "evaluate only the first problems of each dataset, up to this number; a later command may raise it and "
            "keeps the answers",
            or_null(_COUNT, "all problems"),
        ),
    )
    developer_prompt: str | None = field(
        default="DeepSeekZero",
        metadata=declare(
            "the system prompt: a name from Reasoning Gym's SYSTEM_PROMPTS, literal text, file://PATH, or a function "
            "as pkg://package.module.name",
            Rule(
                "a prompt's name or text, or null for none",
                lambda value: value is None or isinstance(value, str),
                lambda value: read_prompt_file(value, key="developer_prompt"),
            ),
        ),
    )
    developer_role: str = field(
        default="system",
        metadata=declare("the role of the system prompt: system, developer, or user to put it into the question", TEXT),
    )
    num_examples: int = field(
        default=0,
        metadata=declare("worked examples of the same dataset that precede each question", whole_number(0)),
    )
    examples_seed: int = field(default=0, metadata=declare("the seed for drawing the worked examples", whole_number(0)))
    examples: tuple[Mapping[str, Any], ...] | None = field(
        default=None,
        metadata=declare(
            "your own worked examples, which precede each question, as a JSONL file or a list of mappings with "
            "question, answer and, if you want, thinking",
            or_null(Rule("a JSONL file or a list of mappings", _is_file_or_list, _read_examples), "none"),
        ),
    )
    chat_template_kwargs: Mapping[str, Any] | None = field(
        default=None,
        metadata=declare(
            "arguments of the model's chat template, such as enable_thinking; they are sent to an endpoint too",
            or_null(Rule("a mapping of plain values", _is_plain_mapping, _read_template_kwargs), "none"),
        ),
    )
    chat_template: str | None = field(
        default=None,
        metadata=declare(
            "a chat template in place of the model's: a file, the text of a Jinja template, or the name of one of the "
            "model's templates",
            or_null(Rule(TEXT.words, TEXT.allows, read_chat_template), "the model's own"),
        ),
    )
    max_tokens: int = field(metadata=declare("the maximum length of a completion, in tokens", whole_number(1)))
    temperature: float = field(
        metadata=declare(
            "the sampling temperature",
            # vLLM raises values between 0 and 0.01 to 0.01, and refuses values above 2, as most endpoints do.
            number(lambda value: value == 0 or 0.01 <= value <= 2, "0 (greedy), or a number from 0.01 to 2"),
        )
    )
    top_p: float = field(
        default=1.0,
        metadata=declare(
            "nucleus sampling: sample only from the most likely tokens, up to this total probability",
            number(lambda value: 0 < value <= 1, "a number above 0 and up to 1"),
        ),
    )
    top_k: int | None = field(
        default=None,
        metadata=declare(
            "sample only from this many of the most likely tokens",
            Rule(
                "a whole number from 1 up, or null or -1 for all tokens",
                lambda value: value in (None, -1) or _COUNT.allows(value),
                lambda value: None if value == -1 else value,
            ),
        ),
    )
    min_p: float | None = field(
        default=None,
        metadata=declare(
            "sample only tokens with at least this share of the most likely token's probability",
            _unless_neutral(0, number(lambda value: 0 <= value <= 1, "a number from 0 to 1")),
        ),
    )
    repetition_penalty: float | None = field(
        default=None,
        metadata=declare(
            "a penalty on tokens that the prompt or the completion contains; above 1 makes them less likely",
            _unless_neutral(1, number(lambda value: 0 < value <= 10, "a number above 0 and up to 10")),
        ),
    )
    presence_penalty: float | None = field(
        default=None,
        metadata=declare("a penalty on tokens that the completion contains", _unless_neutral(0, _PENALTY)),
    )
    frequency_penalty: float | None = field(
        default=None,
        metadata=declare("a penalty on each occurrence of a token in the completion", _unless_neutral(0, _PENALTY)),
    )
    stop: tuple[str, ...] | None = field(
        default=None,
        metadata=declare(
            "texts that end a completion and are not part of it",
            or_null(
                Rule(
                    "a text, or a list of texts, none of which overlaps with <answer> or </answer>",
                    _is_stop,
                    lambda value: (value,) if isinstance(value, str) else tuple(value) or None,
                ),
                "none",
            ),
        ),
    )
    eval_repeats: int = field(
        default=1, metadata=declare("answers per problem; always 1 at temperature 0", whole_number(1))
    )
    seed: int = field(default=0, metadata=declare("the sampling seed", whole_number(0)))
    dtype: str = field(
        default_factory=compute_dtype,
        metadata=declare(
            "the floating-point type of the computation; auto is bfloat16 if the machine has instructions for it, "
            "otherwise float16 on a GPU and float32 on a CPU",
            _DTYPE,
            scope=Scope.EVALUATION,
        ),
    )
    max_model_len: int | None = field(
        default=None,
        metadata=declare(
            "the maximum length of prompt plus completion, in tokens",
            or_null(whole_number(1), "the model's own limit"),
            scope=Scope.COMMAND,
        ),
    )
    tensor_parallel_size: int = field(
        default=1, metadata=declare("GPUs that share one copy of the model", whole_number(1), scope=Scope.COMMAND)
    )
    data_parallel_size: int | None = field(
        default=None,
        metadata=declare(
            "copies of the model that share the problems",
            or_null(whole_number(1), "as many as the GPUs hold"),
            scope=Scope.COMMAND,
        ),
    )
    scorer: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=declare("limits of scoring, as in training's reward.scorer", MAPPING, scope=Scope.EVALUATION),
    )
    output_dir: Path = field(
        metadata=declare(
            "the parent folder of the results folders, one for each evaluation; relative to the current folder, but in "
            "a file of the project to the project's root",
            Rule(
                "a folder",
                lambda value: isinstance(value, str | Path) and bool(str(value).strip()),
                lambda value: Path(value).expanduser(),
            ),
            scope=Scope.COMMAND,
        )
    )
    save_full_results: bool = field(
        default=True,
        metadata=declare("keep the question and completion of every answer", FLAG, scope=Scope.EVALUATION),
    )
    save_metadata: bool = field(
        default=True, metadata=declare("keep the whole entry of every answer's problem", FLAG, scope=Scope.EVALUATION)
    )

    prompt_notes: tuple[str, ...] = ()

    @property
    def num_samples(self) -> int:
        """Completions to generate per problem: 1 at temperature 0, because all repeats would be the same text."""
        return 1 if self.temperature == 0 else self.eval_repeats

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters."""
        return Sampling(
            self.max_tokens,
            self.temperature,
            self.top_p,
            self.top_k,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            stop=self.stop or (),
        )

    @property
    def prompt_style(self) -> "PromptStyle":
        """The system prompt, its role, and the worked examples."""
        from rgtrain.problems.prompts import PromptStyle, parse_examples

        return PromptStyle(
            self.developer_prompt,
            self.developer_role,
            self.num_examples,
            self.examples_seed,
            parse_examples(self.examples),
        )

    @property
    def results_folder(self) -> Path:
        """The folder of this evaluation's results."""
        return self.output_dir / f"{self.name}_{short_name(self.model_path)}"

    @property
    def endpoint_settings(self) -> EndpointSettings | None:
        """The settings of the model's endpoint; None for a model on this machine."""
        if not self.model_path.startswith(ENDPOINT):
            return None
        settings = parse_endpoint(self.endpoint, base_url=self.base_url, model=self.model_path.removeprefix(ENDPOINT))
        return replace(settings, chat_template_kwargs=self.chat_template_kwargs or {})

    @property
    def num_copies(self) -> int:
        """The number of copies of the model to run: `data_parallel_size`, or as many as the GPUs hold (1 on a CPU)."""
        return self.data_parallel_size or max(1, num_gpus() // self.tensor_parallel_size)


KEYS = keys_of(EvaluationConfig)


def check_keys(raw: Mapping[str, Any], *, path: Path) -> None:
    """Check the names and the types of an evaluation's values. Unlike `load_config`, this needs no model.

    Args:
        raw: The values of the evaluation file, with those of the command in place.
        path: The file, for messages.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type.
    """
    for name in raw:
        if name not in KEYS:
            raise ConfigError(f"unknown key {name!r} in the evaluation's configuration; {choose_from(name, KEYS)}")
    for name, key in KEYS.items():
        if key.is_required and raw.get(name) is None:
            raise ConfigError(f"{name} is missing: add '{name}: ...' to {path} or {name}=... to the command")
        if name in raw:
            key.check(raw[name])


def load_config(
    path: Path, *, overrides: Mapping[str, Any] | None = None, category: str | None = None
) -> EvaluationConfig:
    """Read an evaluation file and check every value in it.

    Args:
        path: The YAML file.
        overrides: Top-level values that replace those of the file.
        category: The only category to evaluate; None for all.

    Returns:
        The evaluation.

    Raises:
        ConfigError: The file or a value cannot be used.
    """
    from rgtrain.problems.evaluation_set import read_evaluation_file, resized
    from rgtrain.problems.plugins import import_plugins
    from rgtrain.problems.scoring import check_confinement, parse_scorer

    raw = read_evaluation_file(path) | dict(overrides or {})
    check_keys(raw, path=path)
    given = [(key, raw[name]) for name, key in KEYS.items() if name in raw]
    # The other keys are read afterwards, because `categories` may name datasets of plugins.
    import_plugins(_read_names(raw.get("plugins", ())))
    values = {key.field.name: key.rule.read(value) for key, value in given}
    values |= prompt_keys(values["model_path"], raw)
    if "output_dir" not in (overrides or {}):
        values["output_dir"] = _output_of_file(path, values["output_dir"])
    values["datasets"] = tuple(resized(_filter_category(values["datasets"], category), values.get("size")))
    config = EvaluationConfig(
        **values, name="_".join(re.sub(r"[^\w.-]", "_", part) for part in (Path(path).stem, category) if part)
    )
    check_confinement(parse_scorer(config.scorer))
    config.prompt_style  # noqa: B018  (raises ConfigError on unknown prompts and roles)
    check_devices(config)
    return config


def _output_of_file(file: Path, output_dir: Path) -> Path:
    """Return the output folder that a file names, so that the project's files write into folders that git ignores."""
    is_ours = file.resolve().is_relative_to(SHIPPED.resolve())
    # In the root, a relative path is shown as the user knows it.
    return PROJECT_ROOT / output_dir if is_ours and Path.cwd() != PROJECT_ROOT else output_dir


_PROMPT_KEYS = (
    "developer_prompt",
    "developer_role",
    "num_examples",
    "examples_seed",
    "chat_template_kwargs",
    "chat_template",
    "examples",
)


def prompt_keys(model_path: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that shape the prompts: those given, else those of the run that trained the model.

    Args:
        model_path: The model, as returned by `find_model`.
        given: The keys of the evaluation file and the command line.

    Returns:
        The value of each key, and as `prompt_notes` which values come from the run, and which differ from it.

    Raises:
        ConfigError: A value is not allowed, or the record of the run is damaged.
    """
    # --help works in a Python without any package, and this one reads YAML.
    from rgtrain.checkpoints.trained_prompt import read_trained_prompt

    values: dict[str, Any] = {}
    for name in _PROMPT_KEYS:
        KEYS[name].check(given.get(name, KEYS[name].default))
        values[name] = KEYS[name].rule.read(given.get(name, KEYS[name].default))
    trained = None if model_path.startswith(ENDPOINT) else read_trained_prompt(Path(model_path))
    if trained is None:
        return values | {"prompt_notes": ()}
    of_run = dict(zip(_PROMPT_KEYS, dataclasses.astuple(trained), strict=True))
    taken, differing = [], []
    for name in _PROMPT_KEYS:
        KEYS[name].check(of_run[name], prefix="in training, ")
        value = _recorded(name, of_run[name], is_given=name in given)
        if name not in given and value != values[name]:
            taken.append(f"{name} {_shown(value)}")
            values[name] = value
        elif value != values[name] and (name != "examples_seed" or values["num_examples"]):
            differing.append(f"{name} is {_shown(values[name])}, but the model was trained with {_shown(value)}")
    notes = [f"prompts as in training: {', '.join(taken)}"] if taken else []
    return values | {"prompt_notes": (*notes, *(f"warning: {note}" for note in differing))}


def _recorded(name: str, value: Any, *, is_given: bool) -> Any:
    """Read the value of a key in the record of a training.

    A record may have come with a downloaded model, so no file is read and no function is called because it says so.

    Returns:
        The value; the name of a file as it is, if the user gives another value.

    Raises:
        ConfigError: The record names a function or a file, and the user gives no other value.
    """
    text = value if isinstance(value, str) else ""
    names_file = text.startswith(FILE_PREFIX) if name == "developer_prompt" else name == "examples" and bool(text)
    if names_file and not is_given:
        raise ConfigError(f"the record of training has {name} {text!r} in place of its content; give {name} here")
    if name == "developer_prompt" and text.startswith(FUNCTION_PREFIX) and not is_given:
        raise ConfigError(
            f"the model was trained with the prompt function {text!r}; if you trust it, give developer_prompt={text}, "
            "or give another developer_prompt"
        )
    return value if names_file else KEYS[name].rule.read(value)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Parse command-line words such as `max_tokens=64`.

    Args:
        words: The words. The part after the first `=` is read as YAML.

    Returns:
        The values by key.

    Raises:
        ConfigError: A word has no `=`, or its value is not valid YAML.
    """
    import yaml

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


def help_text() -> str:
    """Return the part of --help that describes every key of an evaluation file."""
    return (
        "keys of an evaluation file and of key=value:\n"
        f"{describe(EvaluationConfig)}\n\n"
        "keys of the mapping `endpoint`:\n"
        f"{describe(EndpointSettings)}\n"
    )


def _filter_category(
    datasets: "tuple[EvaluationDataset, ...]", category: str | None
) -> "tuple[EvaluationDataset, ...]":
    names = {dataset.category for dataset in datasets}
    if category is not None and category not in names:
        raise ConfigError(f"unknown category {category!r}; {choose_from(category, names)}")
    return tuple(dataset for dataset in datasets if category in (None, dataset.category))


def check_devices(config: EvaluationConfig) -> None:
    """Check the settings of the endpoint and of the GPUs.

    Args:
        config: The evaluation.

    Raises:
        ConfigError: A setting is for an endpoint and the model is not behind one, or there are too few GPUs.
    """
    if config.endpoint_settings is None:
        for key in ("base_url", "endpoint"):
            if getattr(config, key):
                raise ConfigError(
                    f"{key} is only for models behind an endpoint ({ENDPOINT}NAME), but model_path is "
                    f"{config.model_path!r}; leave it out"
                )
    elif config.chat_template is not None or "chat_template" in (config.chat_template_kwargs or {}):
        raise ConfigError(
            "chat_template is only for models on this machine, because an endpoint renders prompts itself; leave it "
            "out and start the server with this template (for vLLM, `--chat-template FILE`)"
        )
    present, wanted = num_gpus(), config.tensor_parallel_size * config.num_copies
    if config.tensor_parallel_size > 1 and present == 0:
        raise ConfigError(f"tensor_parallel_size is {config.tensor_parallel_size}, but there is no GPU; leave it out")
    if present and wanted > present:
        raise ConfigError(
            f"tensor_parallel_size {config.tensor_parallel_size} times data_parallel_size {config.num_copies} needs "
            f"{wanted} GPUs, but there are {present}; lower one of them"
        )
