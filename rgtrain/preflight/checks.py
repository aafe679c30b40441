"""What every start checks, in a second or two: the first thing wrong stops it."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rgtrain.errors import ConfigError, choose_from
from rgtrain.paths import PROJECT_ROOT, project_path
from rgtrain.preflight.batches import check_batches, check_critic
from rgtrain.preflight.devices import check_devices
from rgtrain.preflight.model import check_fits_model, find_model
from rgtrain.preflight.run_folder import check_resume, check_run_dir, check_same_run
from rgtrain.problems import parse_mixture, parse_reward
from rgtrain.problems.prompts import parse_prompt
from rgtrain.problems.scoring import check_confinement, parse_scorer
from rgtrain.problems.soundness import check_sound
from rgtrain.vllm_settings import attention_backend

MODES = ("brief", "only")


def check(config: Mapping[str, Any]) -> list[str]:
    """Raise ConfigError for the first thing wrong with the plain configuration of a run; warnings, a line each."""
    warnings: list[str] = []
    for one in [*checks(), check_devices]:
        warnings += one(config) or []
    return warnings


def problems_found(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """All that is wrong, and warnings; whether this machine has the GPUs is not asked."""
    wrong, warnings = [], []
    for one in checks():
        try:
            warnings += one(config) or []
        except ConfigError as error:
            wrong.append(str(error))
    return list(dict.fromkeys(wrong)), warnings


Check = Callable[[Mapping[str, Any]], list[str] | None]


def checks() -> Iterator[Check]:
    """One check after the other, the cheap ones first."""
    yield _check_mode
    yield _check_datasets
    yield lambda config: parse_reward(config["reward"]["parts"]) and None
    yield lambda config: check_confinement(parse_scorer(config["reward"]["scorer"]))
    yield lambda config: parse_prompt(config["data"]["prompt"]) and None
    yield lambda config: check_held_out_files(config["data"]["held_out_files"])
    yield check_batches
    yield check_critic
    yield lambda config: attention_backend() and None
    yield lambda config: check_fits_model(config, find_model(config))
    yield lambda config: check_run_dir(Path(config["run_dir"]))
    yield lambda config: check_same_run(config, Path(config["run_dir"]))
    yield lambda config: check_resume(config["trainer"])


def _check_mode(config: Mapping[str, Any]) -> None:
    if config["preflight"] not in MODES:
        raise ConfigError(f"preflight is {config['preflight']!r}; {choose_from(config['preflight'], MODES)}")


def _check_datasets(config: Mapping[str, Any]) -> list[str]:
    data = config["data"]
    drawn = [spec.name for spec in parse_mixture(data["mixture"]) if spec.weight > 0]
    return check_sound(drawn, allowed=data["allow_unsound_verifiers"])


def check_held_out_files(files: list[str]) -> None:
    """Raise ConfigError unless every file exists."""
    for file in files:
        if not project_path(file).is_file():
            raise ConfigError(f"data.held_out_files names {file}, which is no file in {PROJECT_ROOT}")
