"""The tables of a preflight, as text."""

from collections.abc import Sequence

from rgtrain.config.run_config import RunConfig
from rgtrain.preflight.batches import divisions
from rgtrain.preflight.disk import DiskNeed
from rgtrain.preflight.memory import MemoryEstimate
from rgtrain.preflight.problem_samples import Sample
from rgtrain.tables import text_table


def batches_table(config: RunConfig) -> str:
    """What has to divide what, and the nearest values that would."""
    rows = []
    for name, value, divisor_name, divisor in divisions(config):
        below, above = value // divisor * divisor, (value // divisor + 1) * divisor
        nearest = " or ".join(str(n) for n in (below, above) if n)
        rows.append(
            [name, divisor_name, str(value), str(divisor), "yes" if value % divisor == 0 else f"make it {nearest}"]
        )
    return text_table(["this", "is a multiple of", "this", "that", "?"], rows, num_left=2)


def memory_table(now: MemoryEstimate, *, gpu_bytes: float) -> str:
    """GB by part, and both peaks against what a GPU has."""
    rows = [[name, _gb(value), ""] for name, value in now.parts.items()]
    rows.append(["peak while training", _gb(now.training), _share(now.training, gpu_bytes)])
    rows.append(["peak while generating", _gb(now.generating), _share(now.generating, gpu_bytes)])
    return text_table(["on each GPU", "GB", f"of {gpu_bytes / 1e9:.0f} GB"], rows)


def prompts_table(samples: Sequence[Sample], config: RunConfig) -> str:
    """Token lengths by dataset."""
    limit, response = config.data.max_prompt_length, config.data.max_response_length
    rows = [
        [
            sample.name,
            f"{sample.share:.1%}",
            str(len(sample.prompt_tokens)),
            str(sample.quantile(0.5)),
            str(sample.quantile(0.99)),
            str(max(sample.prompt_tokens)),
            f"{sample.share_over(limit):.0%}",
            "" if sample.longest_oracle is None else str(sample.longest_oracle),
        ]
        for sample in samples
    ]
    header = ["dataset", "share", "sampled", "median", "p99", "max", f"over {limit}", f"longest answer (of {response})"]
    return text_table(header, rows)


def cost_table(samples: Sequence[Sample]) -> str:
    """Milliseconds by dataset to make a problem and to judge a right answer."""
    rows = [
        [
            sample.name,
            f"{1e3 * sample.make_seconds:.2f}",
            "" if sample.judge_seconds is None else f"{1e3 * sample.judge_seconds:.2f}",
        ]
        for sample in samples
    ]
    return text_table(["dataset", "make, ms", "judge, ms"], rows)


def disk_line(need: DiskNeed) -> str:
    """What checkpoints take, against what is free."""
    verdict = "fits" if need.fits else "does NOT fit"
    return (
        f"{need.num_kept} checkpoints of {_gb(need.checkpoint)} GB at a time: {_gb(need.total)} GB of "
        f"{_gb(need.free)} GB free ({verdict})"
    )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f}"


def _share(num_bytes: float, of: float) -> str:
    return f"{num_bytes / of:.0%}"
