"""Find the model of a run and check that its folder is complete and that the run fits its context and heads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rgtrain.config.composition import verl_tree
from rgtrain.config.leaf_rules import default_of
from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError, choose_from
from rgtrain.models.model_lookup import (
    TOKENIZER_VOCABULARIES,
    ask_hub,
    cached_snapshot,
    is_hub_name,
    missing_parts,
    unavailable,
)
from rgtrain.models.model_shapes import HUB_NAMES, SHAPES
from rgtrain.preflight.sizes import ModelSize

_PATH = "actor_rollout_ref.model.path"
_NEEDED = ("config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class TrainingModel:
    """A model.

    Attributes:
        name: The path or hub name that the run gives.
        folder: Its folder on this machine, or None.
        config: The content of its config.json, from its folder or the hub, if either can be read.
        size: Its size, by `config`, `model.shape` or its name; None if it is unknown.
        source: A description of the source of the size.
    """

    name: str
    folder: Path | None
    config: Mapping[str, Any] | None
    size: ModelSize | None
    source: str


def find_model(config: RunConfig) -> TrainingModel:
    """Return the run's model: its folder, or a hub model in the cache, or its description from the hub.

    Raises:
        ConfigError: Its folder doesn't exist or is incomplete, its code isn't trusted, or `model.shape` is unknown.
    """
    path = config.model.path
    folder = check_model(path) or cached_snapshot(path)
    if folder is not None:
        if not config.model.trust_remote_code:
            _check_custom_code(path, folder)
        content = _read_json(folder / "config.json")
        return TrainingModel(path, folder, content, ModelSize.if_known(content), f"{folder}/config.json")
    shape = config.model_choice.shape or HUB_NAMES.get(path)
    if shape is not None:
        if shape not in SHAPES:
            raise ConfigError(f"model.shape is {shape!r}; {choose_from(shape, SHAPES)}")
        source = f"the known shape {shape}, because the model is not on this machine"
        return TrainingModel(path, None, None, ModelSize.of(SHAPES[shape]), source)
    on_hub = ask_hub(path).config
    size = None if on_hub is None else ModelSize.if_known(on_hub)
    return TrainingModel(path, None, on_hub, size, "an unknown source" if size is None else "config.json on the hub")


def check_model_is_available(config: RunConfig, *, is_for_here: bool) -> str | None:
    """Check that a hub model that is not in the cache can be downloaded. This takes at most a few seconds.

    Args:
        config: The run's configuration.
        is_for_here: Whether the run is for this machine. If not, another machine may reach or be allowed more.

    Returns:
        A warning if this machine cannot download it but another one may; otherwise None.

    Raises:
        ConfigError: It cannot be downloaded.
    """
    path = config.model.path
    if check_model(path) or cached_snapshot(path):
        return None
    answer = ask_hub(path)
    problem = answer.problem
    if problem is None and answer.config is None:
        problem = "it has no readable config.json, so it is no model to train"
    if problem is None:
        return None
    message = unavailable(f"{_PATH}={path}", path, problem)
    if is_for_here or answer.is_final:
        raise ConfigError(message)
    return f"{message}. The run is for another machine, which may be able to"


def check_model(path: str) -> Path | None:
    """Check the model that `path` names.

    Args:
        path: A folder, or a hub name such as Qwen/Qwen2.5-3B-Instruct.

    Returns:
        The folder; None for a hub name.

    Raises:
        ConfigError: `path` is neither, or the folder has no configuration or tokenizer.
    """
    folder = Path(path).expanduser()
    if path == default_of(verl_tree(), _PATH):
        raise ConfigError(
            "no model is chosen; write model=CHOICE, model=FOLDER or model=ORG/NAME, and with LoRA model=[FOLDER,lora]"
        )
    if not folder.exists():
        if is_hub_name(path):
            return None
        raise ConfigError(
            f"{_PATH}={path} does not exist; give a model's folder or its hub name ORG/NAME"
            " (`bash train.sh setup` makes the embedded model)"
        )
    missing = [needed for needed in _NEEDED if not (folder / needed).is_file()] or missing_parts(folder)
    if missing:
        raise ConfigError(f"{_PATH}={path} is not a complete model, because {' and '.join(missing)} is missing; add it")
    if not any((folder / name).is_file() for name in TOKENIZER_VOCABULARIES):
        raise ConfigError(f"{_PATH}={path} has no tokenizer; add {' or '.join(TOKENIZER_VOCABULARIES)}")
    return folder


def _check_custom_code(path: str, folder: Path) -> None:
    """Raise ConfigError if the model or its tokenizer can be loaded only with code from the folder."""
    if not any("auto_map" in _read_json(folder / name) for name in _NEEDED):
        return
    # This import takes seconds, so it is done only for folders with custom code.
    from transformers import AutoConfig, AutoTokenizer

    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # transformers raises exceptions of any type for unexpected files.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{_PATH}={path} can't be loaded without its custom code ({reason:.300}); "
            "if you trust the author, set actor_rollout_ref.model.trust_remote_code=true"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{str(path)!r} is not valid JSON ({error}); restore it or give another model") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{str(path)!r} holds no JSON object; restore it or give another model")
    return content


def check_fits_model(config: RunConfig, model: TrainingModel) -> None:
    """Raise ConfigError if the lengths exceed the model's context, or if its heads can't be split over GPUs."""
    if model.size is None:
        return
    data, rollout = config.data, config.rollout
    prompt, response, max_context = data.max_prompt_length, data.max_response_length, model.size.max_positions
    stated = (model.config or {}).get("max_position_embeddings")
    if config.engine == "verl" and isinstance(stated, int) and max_context is not None:
        # verl's own rollouts don't know of longer contexts by scaled positions.
        max_context = min(max_context, stated)
    if max_context is not None and prompt + response > max_context:
        raise ConfigError(
            f"data.max_prompt_length={prompt} + data.max_response_length={response} = {prompt + response} tokens, but "
            f"{model.name} has a context of {max_context}; lower one of them (the response to at most "
            f"{max(max_context - prompt, 0)})"
        )
    parallel, heads = rollout.tensor_model_parallel_size, model.size.num_heads
    # Key and value heads are replicated if there are fewer than GPUs; otherwise they must divide evenly.
    keys = model.size.num_kv_heads
    if heads % parallel or (keys % parallel and parallel % keys):
        fitting = [n for n in range(1, heads + 1) if heads % n == 0 and (keys % n == 0 or n % keys == 0)]
        raise ConfigError(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size={parallel} does not divide the {heads} attention "
            f"heads of {model.name}; set it to one of {', '.join(map(str, fitting))}"
        )
