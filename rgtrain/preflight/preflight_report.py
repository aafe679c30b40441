"""`preflight=only`: everything that can be known of a run, as tables and an exit code; and its short form."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rgtrain.config.run_config import RunConfig
from rgtrain.config.training_settings import TrainingSettings
from rgtrain.errors import ConfigError
from rgtrain.preflight import preflight_tables
from rgtrain.preflight.advice import advice
from rgtrain.preflight.checks import problems_found
from rgtrain.preflight.disk import disk_need
from rgtrain.preflight.gpu_checks import gpu_bytes
from rgtrain.preflight.memory import estimate
from rgtrain.preflight.plan import drawn_specs, plan_of, plan_rows
from rgtrain.preflight.problem_samples import Sample, model_tokens, sample_problems, seconds_a_step
from rgtrain.preflight.training_model import TrainingModel, find_model
from rgtrain.problems import DatasetSpec
from rgtrain.tables import text_table

Say = Callable[[str], None]


def run_preflight(plain: Mapping[str, Any], say: Say = print) -> int:
    """Say all that was found of a run's plain configuration; 0 where it can be started as it is, else 2."""
    warnings: list[str] = []
    try:
        config = RunConfig.of(plain)
        wrong, warnings = problems_found(config)
    except ConfigError as error:
        wrong = [str(error)]
    if not wrong:
        model = find_model(config)
        specs = drawn_specs(config)
        _section(say, "What will run", text_table(["what", ""], plan_rows(config, model, specs), num_left=2))
        _section(say, "Batches", preflight_tables.batches_table(config))
        wrong += _say_memory(config, model, say)
        try:
            samples = _say_problems(config, model, specs, say)
        except ConfigError as error:
            samples = []
            wrong.append(str(error))
        wrong += [line for sample in samples for line in _impossible(sample, config)]
        warnings += [line for sample in samples for line in _too_long(sample, config)]
        wrong += _say_disk(config, model, say)
    for warning in dict.fromkeys(warnings):
        say(f"warning: {warning}")
    for line in wrong:
        say(f"error: {line}")
    say(f"preflight: {len(wrong)} error(s), {len(warnings)} warning(s); nothing was started")
    return 2 if wrong else 0


def brief(config: RunConfig) -> list[str]:
    """What a start says of its plan and its memory, a line each; memory it may lack is a warning there."""
    model, plan = find_model(config), plan_of(config)
    lines = [f"{plan.num_steps} steps of {plan.num_completions} completions; {model.name}"]
    available = gpu_bytes(config)
    if available is None or model.size is None or config.trainer.device != "cuda":
        return lines
    settings = TrainingSettings.of(config)
    now = estimate(model.size, settings, gpu_bytes=available)
    lines.append(
        f"memory a GPU, reckoned: {now.training / 1e9:.1f} GB to train, {now.generating / 1e9:.1f} GB to generate, "
        f"of {available / 1e9:.0f} GB"
    )
    if now.peak > available:
        lines.append(f"warning: that will not fit: {'; '.join(advice(model.size, settings, gpu_bytes=available))}")
    return lines


def _section(say: Say, title: str, text: str) -> None:
    say(f"{title}\n\n{text}\n")


def _say_memory(config: RunConfig, model: TrainingModel, say: Say) -> list[str]:
    """What is wrong with it."""
    title = f"Memory (shape from {model.source})"
    available = gpu_bytes(config)
    if config.trainer.device != "cuda":
        _section(say, "Memory", "not reckoned on a machine without a GPU")
        return []
    if model.size is None or available is None:
        missing = "model.shape=NAME" if model.size is None else "hardware.gpu_memory_gb=NUMBER"
        _section(say, title, f"not reckoned: set {missing}")
        return []
    settings = TrainingSettings.of(config)
    now = estimate(model.size, settings, gpu_bytes=available)
    num_sequences = _sequences(now.kv_cache_tokens, config)
    cache = f"vLLM's cache holds {now.kv_cache_tokens:,} tokens, {num_sequences:.0f} sequences of full length at a time"
    _section(say, title, f"{preflight_tables.memory_table(now, gpu_bytes=available)}\n{cache}")
    if now.peak > available:
        return [f"memory will not suffice: {'; then '.join(advice(model.size, settings, gpu_bytes=available))}"]
    if num_sequences < 1:
        return ["vLLM's cache will not hold one sequence: raise actor_rollout_ref.rollout.gpu_memory_utilization"]
    return []


def _sequences(num_tokens: int, config: RunConfig) -> float:
    return num_tokens / (config.data.max_prompt_length + config.data.max_response_length)


def _say_problems(config: RunConfig, model: TrainingModel, specs: Sequence[DatasetSpec], say: Say) -> list[Sample]:
    """The samples that the tables are about."""
    tokens = model_tokens(model, config)
    samples = sample_problems(config, tokens, specs)
    _section(say, f"Prompts (tokens of {tokens.name})", preflight_tables.prompts_table(samples, config))
    make, judge = seconds_a_step(samples, config)
    total = f"a step: {make:.2f} s to make its problems, {judge:.2f} s to judge right answers to all of them"
    _section(say, "Cost of data", f"{preflight_tables.cost_table(samples)}\n{total}")
    return samples


def _impossible(sample: Sample, config: RunConfig) -> list[str]:
    limit = config.data.max_prompt_length
    if sample.share_over(limit) < 1:
        return []
    return [
        f"{sample.name}: all of {len(sample.prompt_tokens)} prompts exceed data.max_prompt_length={limit}: "
        f"raise it to {max(sample.prompt_tokens)} or more, or leave the dataset out"
    ]


def _too_long(sample: Sample, config: RunConfig) -> list[str]:
    limit, response = config.data.max_prompt_length, config.data.max_response_length
    lines = []
    if 0 < (over := sample.share_over(limit)) < 1:
        lines.append(
            f"{sample.name}: {over:.0%} of its prompts exceed data.max_prompt_length={limit} and are replaced; "
            f"the longest of {len(sample.prompt_tokens)} has {max(sample.prompt_tokens)} tokens"
        )
    if sample.longest_oracle is not None and sample.longest_oracle > response:
        lines.append(
            f"{sample.name}: its longest right answer has {sample.longest_oracle} tokens, over "
            f"data.max_response_length={response}: it can't be given"
        )
    return lines


def _say_disk(config: RunConfig, model: TrainingModel, say: Say) -> list[str]:
    """What is wrong with it."""
    if model.size is None:
        return []
    need = disk_need(config, model.size, TrainingSettings.of(config), num_steps=plan_of(config).num_steps)
    _section(say, "Disk", preflight_tables.disk_line(need))
    if need.fits:
        return []
    return [
        f"{need.total / 1e9:.0f} GB of checkpoints will not fit into {need.free / 1e9:.0f} GB: set run_dir to another "
        "disk, trainer.max_actor_ckpt_to_keep=1, or trainer.save_freq=-1"
    ]
