"""The report of `preflight=only` (tables and an exit code), and the brief report of a start."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rgtrain.config.run_config import RunConfig
from rgtrain.config.training_settings import TrainingSettings
from rgtrain.errors import ConfigError
from rgtrain.preflight import preflight_tables
from rgtrain.preflight.checks import collect_errors
from rgtrain.preflight.disk import disk_need
from rgtrain.preflight.duration import duration_of, duration_warnings
from rgtrain.preflight.gpu_checks import gpu_bytes, memory_error
from rgtrain.preflight.machine_checks import runs_here
from rgtrain.preflight.memory import estimate
from rgtrain.preflight.plan import drawn_specs, plan_of, plan_rows
from rgtrain.preflight.problem_samples import DatasetSample, sample_problems, seconds_per_step, token_counter
from rgtrain.preflight.start_summary import summary_rows
from rgtrain.preflight.training_model import TrainingModel, check_model_is_available, find_model
from rgtrain.problems import DatasetSpec
from rgtrain.tables import labelled_lines, printed_table

Say = Callable[[str], None]


def run_preflight(plain: Mapping[str, Any], say: Say = print) -> int:
    """Check a run completely and report plan, memory, prompts, cost, disk space, warnings and errors.

    Args:
        plain: The run's plain configuration.
        say: Receives each section and each message.

    Returns:
        The exit code: 0 if the run can be started, 2 if there are errors.
    """
    warnings: list[str] = []
    try:
        config = RunConfig.of(plain)
        errors, warnings = collect_errors(config)
    except ConfigError as error:
        errors = [str(error)]
    if not errors:
        model = find_model(config)
        try:
            warnings += filter(None, [check_model_is_available(config, is_for_here=runs_here(config))])
        except ConfigError as error:
            errors.append(str(error))
        specs = drawn_specs(config)
        rows = [*plan_rows(config, model, specs), ("time", str(duration_of(config, model.size)))]
        _section(say, "Plan", printed_table(["setting", "value"], rows, num_left=2))
        warnings += duration_warnings(config, model.size)
        _section(say, "Batches", preflight_tables.batches_table(config))
        errors += _report_memory(config, model, say)
        try:
            samples = _report_problems(config, model, specs, say)
        except ConfigError as error:
            samples = []
            errors.append(str(error))
        errors += [line for sample in samples for line in _unusable_dataset_errors(sample, config)]
        warnings += [line for sample in samples for line in _length_warnings(sample, config)]
        errors += _report_disk(config, model, say)
    for warning in dict.fromkeys(warnings):
        say(f"warning: {warning}")
    for line in errors:
        say(f"error: {line}")
    say(f"preflight: {len(errors)} error(s), {len(warnings)} warning(s), nothing was started")
    return 2 if errors else 0


def brief_report(config: RunConfig, places: Sequence[tuple[str, str]] = ()) -> list[str]:
    """Return the lines that a start prints about the run, with warnings if time or memory are not right.

    Args:
        config: The run's configuration.
        places: Labels and commands that show the run, which are aligned with the other lines.

    Returns:
        The lines, with the warnings as the last.
    """
    model = find_model(config)
    rows = summary_rows(config, model)
    warnings = duration_warnings(config, model.size)
    available = gpu_bytes(config)
    is_estimated = config.trainer.device == "cuda" and config.engine == "fast"
    if is_estimated and available is not None and model.size is not None:
        settings = TrainingSettings.of(config, shares_prompts=model.size.shares_prompts)
        estimated = estimate(model.size, settings, gpu_bytes=available)
        needed = f"{estimated.training / 1e9:.1f} GB for training, {estimated.generating / 1e9:.1f} GB for generation"
        rows.append(("GPU memory", f"estimated {needed}, {available / 1e9:.0f} GB available"))
        warnings += filter(None, [memory_error(config)])
    return [*labelled_lines([*rows, *places]), *(f"warning: {warning}" for warning in warnings)]


def _section(say: Say, title: str, text: str) -> None:
    say(f"{title}\n\n{text}\n")


def _report_memory(config: RunConfig, model: TrainingModel, say: Say) -> list[str]:
    """Report the memory estimate and return errors."""
    title = f"Memory (shape from {model.source})"
    available = gpu_bytes(config)
    if config.trainer.device != "cuda":
        _section(say, "Memory", "not estimated for a CPU run")
        return []
    if config.engine != "fast":
        _section(say, "Memory", f"not estimated, because the memory of engine={config.engine} was not measured")
        return []
    if model.size is None or available is None:
        hint = "set hardware.gpu_memory_gb=NUMBER"
        if model.size is None:
            hint = "download its config.json into the hub's cache, or set model.shape=NAME"
        _section(say, title, f"not estimated; {hint}")
        return []
    settings = TrainingSettings.of(config, shares_prompts=model.size.shares_prompts)
    estimated = estimate(model.size, settings, gpu_bytes=available)
    num_sequences = _num_full_sequences(estimated.kv_cache_tokens, config)
    cache = f"vLLM's KV cache holds {estimated.kv_cache_tokens:,} tokens ({num_sequences:.0f} sequences of full length)"
    chosen = ""
    if config.hardware.chosen:
        table = preflight_tables.chosen_table(config, settings, kv_cache_sequences=num_sequences)
        chosen = f"\n\n{table}"
    _section(say, title, f"{preflight_tables.memory_table(estimated, gpu_bytes=available)}\n{cache}{chosen}")
    if excess := memory_error(config):
        return [excess]
    if num_sequences < 1:
        return ["vLLM's KV cache can't hold one full sequence; raise actor_rollout_ref.rollout.gpu_memory_utilization"]
    return []


def _num_full_sequences(num_tokens: int, config: RunConfig) -> float:
    return num_tokens / (config.data.max_prompt_length + config.data.max_response_length)


def _report_problems(
    config: RunConfig, model: TrainingModel, specs: Sequence[DatasetSpec], say: Say
) -> list[DatasetSample]:
    """Report the length of prompts and the cost of data, and return the samples behind these tables."""
    tokens = token_counter(model, config)
    samples = sample_problems(config, tokens, specs)
    _section(say, f"Prompts (tokens of {tokens.name})", preflight_tables.prompts_table(samples, config))
    generate, score = seconds_per_step(samples, config)
    total = f"per step: {generate:.2f} s to generate problems, {score:.2f} s to score correct answers to all of them"
    _section(say, "Cost of data", f"{preflight_tables.cost_table(samples)}\n{total}")
    return samples


def _unusable_dataset_errors(sample: DatasetSample, config: RunConfig) -> list[str]:
    limit = config.data.max_prompt_length
    if sample.share_over(limit) < 1:
        return []
    return [
        f"{sample.name}: all {len(sample.prompt_tokens)} sampled prompts exceed data.max_prompt_length={limit}; "
        f"raise it to {max(sample.prompt_tokens)} or more, or leave the dataset out"
    ]


def _length_warnings(sample: DatasetSample, config: RunConfig) -> list[str]:
    limit, response = config.data.max_prompt_length, config.data.max_response_length
    lines = []
    if 0 < (over := sample.share_over(limit)) < 1:
        lines.append(
            f"{sample.name}: {over:.0%} of the prompts exceed data.max_prompt_length={limit} and will be replaced; "
            f"the longest of {len(sample.prompt_tokens)} has {max(sample.prompt_tokens)} tokens"
        )
    if sample.longest_oracle is not None and sample.longest_oracle > response:
        lines.append(
            f"{sample.name}: the longest correct answer has {sample.longest_oracle} tokens and can't be given within "
            f"data.max_response_length={response}"
        )
    return lines


def _report_disk(config: RunConfig, model: TrainingModel, say: Say) -> list[str]:
    """Report the disk space of checkpoints and return errors."""
    if model.size is None:
        return []
    need = disk_need(config, model.size, TrainingSettings.of(config), num_steps=plan_of(config).num_steps)
    _section(say, "Disk", preflight_tables.disk_line(need))
    if need.free is None or need.fits:
        return []
    return [
        f"{need.total / 1e9:.0f} GB of checkpoints will not fit into {need.free / 1e9:.0f} GB of free space; set "
        "trainer.default_local_dir or run_dir to a folder on another disk, trainer.max_actor_ckpt_to_keep=1, or "
        "trainer.save_freq=-1"
    ]
