"""Estimate the duration of a run from measured training steps.

The estimate assumes that time grows with the number of operations, apart from the fixed costs of a decoding step and of
a micro-batch on a GPU. On a GPU, responses are taken to have their full length. Offloading, communication between GPUs
and groups that dynamic sampling replaces are left out. Measured steps are reproduced within a factor of two
(tests/preflight/test_duration.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from statistics import median

from rgtrain.checkpoints.metrics_file import METRICS, read_metrics
from rgtrain.config.run_config import RunConfig
from rgtrain.config.training_settings import TrainingSettings
from rgtrain.machine.devices import num_cpus, usable_gpus
from rgtrain.preflight.plan import plan_of
from rgtrain.preflight.sizes import ModelSize
from rgtrain.tables import duration_text

_DAY_SECONDS = 86400
# Earlier steps of a run include the rest of its start-up.
_MIN_STEPS = 3


@dataclass(frozen=True)
class MeasuredStep:
    """The medians of a measured training step, in seconds.

    Attributes:
        source: The file in benchmarks/results that holds every step.
        num_parameters: The parameters of the model.
        num_prompts: Prompts per step, all in one update.
        group_size: Responses per prompt.
        prompt_tokens: The longest prompt that was allowed, or the mean if the limit was far from it.
        response_tokens: The longest response that was allowed.
        step: The whole step.
        generate: Its generation.
        update: Its update.
        sync: Its transfer of weights to vLLM.
    """

    source: str
    num_parameters: int
    num_prompts: int
    group_size: int
    prompt_tokens: int
    response_tokens: int
    step: float
    generate: float
    update: float
    sync: float

    @property
    def num_tokens(self) -> int:
        """Tokens that an update computes, with each prompt once."""
        return self.num_prompts * (self.prompt_tokens + self.group_size * self.response_tokens)

    @property
    def other(self) -> float:
        """Seconds of the step that belong to none of its three parts."""
        return self.step - self.generate - self.update - self.sync


# SmolLM2-135M on two cores of an Intel Xeon with bf16 instructions.
CPU_STEP = MeasuredStep(
    source="quickstart_cpu/seed_2.json",
    num_parameters=134515008,
    num_prompts=8,
    group_size=8,
    prompt_tokens=384,
    response_tokens=24,
    step=15.1886,
    generate=3.49654,
    update=11.0524,
    sync=0.318202,
)
_CPU_STEP_CORES = 2
# SmolLM2-135M on one H200, with all tokens in one micro-batch. Fixed costs dominate.
SMALL_GPU_STEP = MeasuredStep(
    source="quickstart_gpu/seed_1.json",
    num_parameters=134515008,
    num_prompts=32,
    group_size=8,
    prompt_tokens=384,
    response_tokens=24,
    step=0.671665,
    generate=0.193886,
    update=0.325834,
    sync=0.0343702,
)
# A model of Qwen2.5-1.5B's shape on one H200. Computing dominates, and all responses have full length.
LARGE_GPU_STEP = MeasuredStep(
    source="train_step/large/ours.json",
    num_parameters=1543714304,
    num_prompts=32,
    group_size=8,
    prompt_tokens=274,
    response_tokens=1024,
    step=12.8392,
    generate=5.33245,
    update=7.01741,
    sync=0.189623,
)
# Bytes of the KV cache per token of that model.
_LARGE_KV_BYTES = 28672


@dataclass(frozen=True)
class GpuRates:
    """A GPU's memory in GB, dense bf16 TFLOP/s, memory bandwidth in TB/s and links to others, from its data sheet."""

    memory_gb: float
    tflops: float
    bandwidth_tbs: float
    has_nvlink: bool = False


GPUS = {
    "H200": GpuRates(141, 989, 4.8, has_nvlink=True),
    "H100": GpuRates(80, 989, 3.35, has_nvlink=True),
    "A100": GpuRates(80, 312, 2.0, has_nvlink=True),
    "L40S": GpuRates(48, 362, 0.864),
    "A6000": GpuRates(48, 155, 0.768),
    "A100-40": GpuRates(40, 312, 1.56, has_nvlink=True),
    "4090": GpuRates(24, 165, 1.008),
    "3090": GpuRates(24, 71, 0.936),
    "A10": GpuRates(24, 125, 0.6),
    "L4": GpuRates(24, 121, 0.3),
}
# The GPU to reckon with if only its memory is known.
_BY_MEMORY = ("H200", "A100", "A6000", "A100-40", "A10")
_MEASURED_GPU = GPUS["H200"]


@dataclass(frozen=True)
class Duration:
    """The estimated duration of a run.

    Attributes:
        step_s: Seconds per step.
        validation_s: Seconds of all validations.
        num_steps: The number of steps.
        basis: The measurement behind the estimate.
    """

    step_s: float
    validation_s: float
    num_steps: int
    basis: str

    @property
    def total_s(self) -> float:
        """Seconds of all steps and validations."""
        return self.step_s * self.num_steps + self.validation_s

    def __str__(self) -> str:
        return f"about {duration_text(self.step_s)} per step, {duration_text(self.total_s)} in all ({self.basis})"


def duration_of(config: RunConfig, size: ModelSize | None) -> Duration | str:
    """Estimate the duration of a run.

    Args:
        config: The run's configuration.
        size: The size of its model, if it is known.

    Returns:
        The duration, or a text that says why it is not estimated.
    """
    num_steps = 0 if config.trainer.val_only else plan_of(config).num_steps
    records, _ = read_metrics(config.run_dir / METRICS)
    measured = [float(record["timing_s/step"]) for record in records if record.get("timing_s/step")]
    if len(measured) >= _MIN_STEPS:
        return Duration(median(measured), 0.0, num_steps, f"measured in {len(measured)} steps of this run")
    if config.engine != "fast":
        return f"not estimated, because steps of engine={config.engine} were not measured"
    if size is None:
        return "not estimated, because the model's size is unknown; set model.shape=NAME"
    if config.trainer.device == "cpu":
        return _on_cpu(config, size, num_steps)
    if (name := gpu_kind(config)) is None:
        return "not estimated, because the GPU is unknown; set hardware.gpu_memory_gb=NUMBER"
    return _on_gpu(config, size, num_steps, name)


def duration_warnings(config: RunConfig, size: ModelSize | None) -> list[str]:
    """Return a warning with possible changes if the run is estimated to take more than a day."""
    duration = duration_of(config, size)
    if isinstance(duration, str) or duration.total_s <= _DAY_SECONDS:
        return []
    changes = ["a smaller model (model=)", "shorter responses (data.max_response_length)", "a smaller batch"]
    if config.trainer.device == "cpu":
        changes.insert(0, "a GPU, the experiment quickstart")
    if steps_of_a_day := int(_DAY_SECONDS / duration.step_s):
        changes.append(f"fewer steps (trainer.total_training_steps={steps_of_a_day} takes a day)")
    return [
        f"the run will take about {duration_text(duration.total_s)}; choose {', '.join(changes[:-1])} or {changes[-1]}"
    ]


def _on_cpu(config: RunConfig, size: ModelSize, num_steps: int) -> Duration:
    measured = CPU_STEP
    tokens = config.data.train_batch_size * TrainingSettings.of(config, shares_prompts=size.shares_prompts).group_tokens
    cores = num_cpus()
    work = _num_used_parameters(size) / measured.num_parameters * _CPU_STEP_CORES / cores
    update = measured.update * work * tokens / measured.num_tokens
    generate = measured.generate * work * tokens / measured.num_tokens
    sync = measured.sync * size.total / measured.num_parameters
    step = generate + update * _passes(config) + sync + measured.other
    responses_per_validation = config.data.validation_size * config.rollout.val_kwargs.n
    validation = _num_validations(config, num_steps) * generate * responses_per_validation / _num_sequences(config)
    basis = f"scaled from {measured.num_parameters / 1e9:.2f} billion parameters on {_CPU_STEP_CORES} cores to {cores}"
    return Duration(step, validation, num_steps, basis)


def _on_gpu(config: RunConfig, size: ModelSize, num_steps: int, name: str) -> Duration:
    gpu = GPUS[name]
    generate = _generation(config, size, _num_sequences(config), gpu)
    update = _update(config, size, gpu)
    sync = LARGE_GPU_STEP.sync * size.total / LARGE_GPU_STEP.num_parameters
    step = generate + update * _passes(config) + sync + SMALL_GPU_STEP.other
    responses_per_validation = config.data.validation_size * config.rollout.val_kwargs.n
    validation = _num_validations(config, num_steps) * _generation(config, size, responses_per_validation, gpu)
    measured = f"{LARGE_GPU_STEP.num_parameters / 1e9:.1f} billion parameters on 1 x H200"
    basis = f"scaled from {measured} to {config.trainer.num_gpus} x {name}"
    return Duration(step, validation, num_steps, basis)


def _generation(config: RunConfig, size: ModelSize, num_sequences: int, gpu: GpuRates) -> float:
    """Return seconds until the longest response has all of its tokens."""
    data, parallel = config.data, config.rollout.tensor_model_parallel_size
    measured = LARGE_GPU_STEP
    num_measured = measured.num_prompts * measured.group_size
    per_engine = num_sequences * parallel / config.trainer.num_gpus
    decode = measured.generate / measured.response_tokens * max(1.0, per_engine / num_measured)
    kv_bytes = (
        per_engine * (data.max_prompt_length + data.max_response_length / 2) * size.kv_cache(tensor_parallel=parallel)
    )
    traffic = (2 * size.total / parallel + kv_bytes) / (gpu.bandwidth_tbs * 1e12)
    measured_kv = num_measured * (measured.prompt_tokens + measured.response_tokens / 2) * _LARGE_KV_BYTES
    included = (2 * measured.num_parameters + measured_kv) / (_MEASURED_GPU.bandwidth_tbs * 1e12)
    return data.max_response_length * (decode + max(0.0, traffic - included))


def _update(config: RunConfig, size: ModelSize, gpu: GpuRates) -> float:
    """Return seconds of one pass of updates over a step's batch."""
    settings, data = TrainingSettings.of(config, shares_prompts=size.shares_prompts), config.data
    measured_rate = LARGE_GPU_STEP.num_parameters * LARGE_GPU_STEP.num_tokens / LARGE_GPU_STEP.update
    rate = measured_rate * gpu.tflops / _MEASURED_GPU.tflops
    # Checkpointing repeats the forward pass, a third of all operations. LoRA needs no gradients of the weights.
    share = (4 / 3 if settings.checkpointing else 1.0) - (1 / 3 if settings.lora_rank else 0.0)
    computing = share * _num_used_parameters(size) * settings.gpu_groups * settings.group_tokens / rate
    fixed = settings.num_micro_batches * SMALL_GPU_STEP.update
    return max(computing, fixed) * data.train_batch_size / config.actor.ppo_mini_batch_size


def _passes(config: RunConfig) -> float:
    """Return the passes over a step's batch in units of an update, of which a forward pass is a third."""
    passes = float(config.actor.ppo_epochs)
    forward = 0 if config.algorithm.rollout_correction.bypass_mode else 1
    forward += config.actor.use_kl_loss or config.algorithm.use_kl_in_reward
    if config.critic.enable:
        forward += 1
        passes += config.critic.ppo_epochs
    return passes + forward / 3


def _num_used_parameters(size: ModelSize) -> int:
    """Return the number of parameters that a token is computed with, which is smaller for a mixture of experts."""
    return replace(size, stored_intermediate=None).total


def _num_sequences(config: RunConfig) -> int:
    return config.data.train_batch_size * config.rollout.n


def _num_validations(config: RunConfig, num_steps: int) -> int:
    if config.trainer.val_only:
        return 1
    test_freq = config.trainer.test_freq
    # The last step is always validated.
    return config.trainer.val_before_train + (ceil(num_steps / test_freq) if test_freq > 0 else 0)


def gpu_kind(config: RunConfig) -> str | None:
    """Return the kind of GPU: this machine's smallest if it has enough of them, else one of the configured memory."""
    gpus, memory_gb = usable_gpus(), config.hardware.gpu_memory_gb
    kinds: Sequence[str] = ()
    if config.trainer.n_gpus_per_node <= len(gpus):
        smallest = min(gpus, key=lambda gpu: gpu.memory_gb)
        kinds, memory_gb = _kinds_named(smallest.name), smallest.memory_gb
    if not memory_gb:
        return kinds[0] if kinds else None
    return min(kinds or _BY_MEMORY, key=lambda kind: abs(GPUS[kind].memory_gb - memory_gb))


def _kinds_named(full_name: str) -> Sequence[str]:
    words = full_name.replace("-", " ").split()
    return [name for name in GPUS if name.removesuffix("-40") in words]
