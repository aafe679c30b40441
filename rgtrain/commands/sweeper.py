"""Run the jobs of a sweep (`--multirun`) one after another, each in a separate process.

Ray, vLLM and torch cannot be started a second time with other settings in one process.
"""

import hashlib
import itertools
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from rgtrain.commands.first_use import require_vllm, unpack_if_missing
from rgtrain.config.composition import checked_config
from rgtrain.config.hydra_errors import COMPOSITION_ERRORS, explain
from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.errors import ConfigError, exit_on_config_error
from rgtrain.jobs.signals import EXIT_INTERRUPTED, EXIT_REQUEUE, CommandRunner, exit_code_of
from rgtrain.jobs.terminal import say
from rgtrain.machine.orphan_cleanup import clean_up_after_this_process
from rgtrain.machine.own_commands import own_command
from rgtrain.paths import CONFIGS
from rgtrain.provenance import mask_secrets, masked_command, masked_words
from rgtrain.reporting.sweep_table import FAILED, FINISHED, STOPPED, SweepJob, as_text, write_tables

# Jobs with the same value of one of these would write into each other's files. Later ones derive from earlier ones.
_OWN_VALUES = (
    "trainer.experiment_name",
    "run_dir",
    "trainer.default_local_dir",
    "trainer.rollout_data_dir",
    "trainer.validation_data_dir",
)
# A job gets these two always, because they may depend on Hydra's names of the whole command line.
_ALWAYS_GIVEN = _OWN_VALUES[:2]
_SWEEP_OPTIONS = re.compile(r"hydra[./](?:mode|sweep|sweeper|launcher)\b")
_MAX_NAME_LENGTH = 100


class SweepRunner(Callback):
    """A callback of Hydra that runs a sweep in place of Hydra's sweeper, which runs all jobs in one process."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Run every combination of the swept values and exit.

        The exit code is 0 if all jobs finished, 1 if a job failed, 2 if a configuration is wrong, and 75 or 130 if a
        signal stopped the sweep.

        Args:
            config: The configuration that all jobs share, with the node `hydra`.
        """
        try:
            with exit_on_config_error(transform=mask_secrets), CommandRunner().listening() as runner:
                exit_code = _run_sweep(config, runner)
        except Exception:
            # Hydra would only warn of an error in a callback, and then run the sweep itself.
            traceback.print_exc()
            exit_code = 1
        sys.exit(exit_code)


class _Job:
    """A job of the sweep.

    Args:
        overrides: Its words of the command line.
        values: The values that differ between the jobs, by key.
        config: Its configuration, with the node `hydra`.
    """

    def __init__(self, overrides: list[str], values: dict[str, str], config: DictConfig):
        self.overrides = overrides
        self.values = values
        self.config = config
        self.name = ""
        self.own_values: dict[str, str] = {}

    @property
    def label(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.values.items()) or "the only one"

    @property
    def is_preflight(self) -> bool:
        return self.select("preflight") == "only"

    def select(self, key: str) -> Any:
        # Hydra's own values are looked up in the configuration that was set last.
        HydraConfig.instance().set_config(self.config)
        return OmegaConf.select(self.config, key)

    def set(self, key: str, value: str) -> None:
        OmegaConf.update(self.config, key, value, force_add=True)
        self.own_values[key] = value

    def checked(self) -> RunConfig:
        """Return the configuration of the training after the checks that need no other package."""
        # Preflight takes a second to import, and Hydra imports this module also for a run that is no sweep.
        from rgtrain.preflight.open_settings import complete_config
        from rgtrain.problems.plugins import import_plugins

        HydraConfig.instance().set_config(self.config)
        training = OmegaConf.masked_copy(self.config, [str(key) for key in self.config if key != "hydra"])
        checked = checked_config(training.copy())
        import_plugins(checked.plugins)
        checked = complete_config(training, checked)
        return RunConfig.of(plain_config(checked))

    def command(self) -> list[str]:
        hydra = self.config.hydra
        words = ["--config-name", str(hydra.job.config_name)]
        for source in hydra.runtime.config_sources:
            path = f"pkg://{source.path}" if source.schema == "pkg" else source.path
            if source.provider == "main" and path != str(CONFIGS):
                words += ["--config-path", path]
            elif source.provider == "command-line":
                words += ["--config-dir", path]
        words += [word for word in hydra.overrides.hydra if not _SWEEP_OPTIONS.match(word.lstrip("+~"))]
        own = [f"{key}={_quoted(value)}" for key, value in self.own_values.items()]
        return own_command("train", *words, "hydra.mode=RUN", f"hydra.job.num={hydra.job.num}", *self.overrides, *own)


def _run_sweep(shared: DictConfig, runner: CommandRunner) -> int:
    require_vllm()
    # An experiment file may sweep too: `hydra: {sweeper: {params: {seed: "1,2,3"}}}`.
    params = shared.hydra.sweeper.get("params") or {}
    jobs = _jobs(shared, [*(f"{key}={value}" for key, value in params.items()), *shared.hydra.overrides.task])
    if all(job.is_preflight for job in jobs):
        return _run_preflights(jobs, runner)
    _check(jobs, runner)
    return _run_trainings(jobs, runner)


def _jobs(shared: DictConfig, overrides: list[str]) -> list[_Job]:
    """Compose the configuration of every job, and give each job its own folders and tracker name.

    Args:
        shared: The configuration that all jobs share.
        overrides: The words of the command line and of the experiment file that set values.

    Returns:
        The jobs in the order in which they run. The last of several swept keys varies fastest.

    Raises:
        ConfigError: The sweep cannot be expanded, or a job's configuration cannot be composed.
    """
    loader = GlobalHydra.instance().config_loader()
    try:
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
    except COMPOSITION_ERRORS as error:
        raise ConfigError(explain(error, overrides, is_sweep=True)) from error
    combinations = _combinations(parsed)
    if len(set(map(tuple, combinations))) < len(combinations):
        raise ConfigError(f"the sweep {' '.join(overrides)} has a job twice; give each value once")
    say(f"checking the jobs of the sweep ({len(combinations)})")
    jobs = []
    for number, (words, values) in enumerate(zip(combinations, _varied_values(combinations), strict=True)):
        try:
            config = loader.load_sweep_config(shared, words)
        except COMPOSITION_ERRORS as error:
            label = " ".join(f"{key}={value}" for key, value in values.items())
            raise ConfigError(f"the job {label}: {explain(error, words)}") from error
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.job.id = config.hydra.job.num = number
        jobs.append(_Job(words, values, config))
    _name_jobs(jobs)
    for key in _OWN_VALUES:
        _separate(jobs, key)
    return jobs


def _combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """Return the words of each job. If a key is given twice, the last one counts."""
    choices: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [str(override.input_line)]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise ConfigError(f"{override.input_line} has no list of values; give values, choice(...) or range(...)")
    return [list(words) for words in itertools.product(*choices.values())]


def _varied_values(combinations: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Return the values that differ between the jobs, by the shortest ends of their keys that are unique."""
    varied = [position for position, words in enumerate(zip(*combinations, strict=True)) if len(set(words)) > 1]
    keys = [combinations[0][position].partition("=")[0].lstrip("+~") for position in varied]
    names = [_shortest_end(key, keys) for key in keys]
    jobs = [masked_words([words[position] for position in varied]) for words in combinations]
    return [dict(zip(names, (word.partition("=")[2] for word in words), strict=True)) for words in jobs]


def _shortest_end(key: str, keys: Sequence[str]) -> str:
    parts = key.split(".")
    ends = (".".join(parts[start:]) for start in reversed(range(len(parts))))
    return next((end for end in ends if sum(f".{one}".endswith(f".{end}") for one in keys) == 1), key)


def _name_jobs(jobs: Sequence[_Job]) -> None:
    """Name each job after its values in letters that need no quotes in a shell or in Hydra."""
    for job in jobs:
        job.name = "__".join(f"{_plain(key)}_{_plain(value)}" for key, value in job.values.items())
    num_named = Counter(job.name for job in jobs)
    for job in jobs:
        if num_named[job.name] > 1 or len(job.name) > _MAX_NAME_LENGTH:
            digest = hashlib.sha256("\0".join(job.overrides).encode()).hexdigest()[:8]
            job.name = f"{job.name[:_MAX_NAME_LENGTH]}-{digest}"


def _plain(text: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_.-]+", "-", text).strip("-.")


def _separate(jobs: Sequence[_Job], key: str) -> None:
    """Append the job's name to a value that several jobs share, and resolve the values that every job is given."""
    values = [job.select(key) for job in jobs]
    is_shared = len(set(values)) < len(jobs)
    for job, value in zip(jobs, values, strict=True):
        if value is not None and is_shared:
            job.set(key, f"{value}/{job.name}")
        elif value is not None and key in _ALWAYS_GIVEN:
            job.set(key, str(value))


def _quoted(value: str) -> str:
    """Return a value as a word of Hydra."""
    return value if re.fullmatch(r"[\w./-]+", value) else QuotedString(value, Quote.single).with_quotes()


def _check(jobs: Sequence[_Job], runner: CommandRunner) -> None:
    """Check every job as its start does, and raise ConfigError if one cannot start."""
    from rgtrain import preflight  # imported here for the same reason as in `_Job.checked`

    labels: dict[str, list[str]] = {}
    for job in jobs:
        if runner.stopped_by is not None:
            return
        try:
            config = job.checked()
            unpack_if_missing(config.model.path)
            preflight.check(config)
        except ConfigError as error:
            labels.setdefault(str(error), []).append(job.label)
    if labels:
        errors = (f"{', '.join(of)}: {error}" if len(of) < len(jobs) else error for error, of in labels.items())
        count = f"{sum(map(len, labels.values()))} of {len(jobs)} jobs"
        raise ConfigError(f"{count} cannot start, so none was started; {'; '.join(errors)}")


def _run_preflights(jobs: Sequence[_Job], runner: CommandRunner) -> int:
    wrong = []
    for number, job in enumerate(jobs, start=1):
        if runner.stopped_by is None:
            say(f"\n== job {number} of {len(jobs)}: {job.label}\n")
            if runner.run(job.command()):
                wrong.append(job.label)
    if runner.stopped_by is not None:
        return exit_code_of(runner.stopped_by)
    say(f"\n== preflight: {len(wrong)} of {len(jobs)} jobs cannot start{''.join(f'; {label}' for label in wrong)}")
    return 2 if wrong else 0


def _run_trainings(jobs: Sequence[_Job], runner: CommandRunner) -> int:
    clean_up_after_this_process()
    results = [SweepJob(job.name, job.values, Path(job.select("run_dir"))) for job in jobs]
    folder = _common_folder([result.run_dir.absolute() for result in results])
    command = masked_command([sys.executable, *sys.argv])
    for number, (job, result) in enumerate(zip(jobs, results, strict=True), start=1):
        if runner.stopped_by is not None:
            break
        say(f"\n== job {number} of {len(jobs)}: {job.label}, in {result.run_dir}")
        result.exit_code = runner.run(job.command())
        is_stopped = runner.stopped_by is not None or result.exit_code in (EXIT_REQUEUE, EXIT_INTERRUPTED)
        result.state = FINISHED if result.exit_code == 0 else STOPPED if is_stopped else FAILED
        result.read()
        try:
            write_tables(folder, results, command=command)
        except OSError as error:
            say(f"warning: the sweep's table cannot be written into {folder} ({error.strerror})")
        if result.state == FAILED:
            say(f"== job {number} of {len(jobs)} failed with exit code {result.exit_code}: {job.label}")
        if result.state == STOPPED:
            break
    states = Counter(result.state for result in results)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    say(f"\n{as_text(results)}\n\n{counts}; table: {folder}/sweep.md")
    stop_codes = [result.exit_code for result in results if result.state == STOPPED]
    if runner.stopped_by is not None:
        stop_codes = [exit_code_of(runner.stopped_by)]
    if stop_codes:
        say("the sweep was stopped; the same command continues it")
        return stop_codes[0] or EXIT_REQUEUE
    return 1 if states[FAILED] else 0


def _common_folder(run_dirs: Sequence[Path]) -> Path:
    """Return the innermost folder that holds all of them, or the first one's parent if that is the root."""
    folder = Path(os.path.commonpath(run_dirs))
    return folder if folder != Path(folder.anchor) else run_dirs[0].parent
