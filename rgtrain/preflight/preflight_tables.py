"""Text tables of the preflight report."""

from collections.abc import Sequence

from rgtrain.config.run_config import RunConfig
from rgtrain.preflight.batches import divisions
from rgtrain.preflight.disk import DiskNeed
from rgtrain.preflight.memory import MemoryEstimate
from rgtrain.preflight.problem_samples import DatasetSample
from rgtrain.tables import text_table


def batches_table(config: RunConfig) -> str:
    """Return the table of sizes that must divide each other, with the nearest values that do."""
    rows = []
    for name, value, divisor_name, divisor in divisions(config):
        below, above = value // divisor * divisor, (value // divisor + 1) * divisor
        nearest = " or ".join(str(n) for n in (below, above) if n)
        rows.append(
            [name, divisor_name, str(value), str(divisor), "ok" if value % divisor == 0 else f"set it to {nearest}"]
        )
    return text_table(["size", "must be a multiple of", "value", "divisor", "result"], rows, num_left=2)


def memory_table(estimated: MemoryEstimate, *, gpu_bytes: float) -> str:
    """Return the table of memory use by part in GB, and of both peaks as shares of a GPU's memory."""
    rows = [[name, _gb(value), ""] for name, value in estimated.parts.items()]
    rows.append(["peak while training", _gb(estimated.training), _share(estimated.training, gpu_bytes)])
    rows.append(["peak while generating", _gb(estimated.generating), _share(estimated.generating, gpu_bytes)])
    return text_table(["part, per GPU", "GB", f"of {gpu_bytes / 1e9:.0f} GB"], rows)


def prompts_table(samples: Sequence[DatasetSample], config: RunConfig) -> str:
    """Return the table of token lengths by dataset."""
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
    lengths = ["median", "p99", "max", f"over {limit}", f"longest answer (limit {response})"]
    return text_table(["dataset", "share", "sampled", *lengths], rows)


def cost_table(samples: Sequence[DatasetSample]) -> str:
    """Return the table of milliseconds by dataset to generate a problem and to score a correct answer."""
    rows = [
        [
            sample.name,
            f"{1e3 * sample.generate_seconds:.2f}",
            "" if sample.score_seconds is None else f"{1e3 * sample.score_seconds:.2f}",
        ]
        for sample in samples
    ]
    return text_table(["dataset", "generate (ms)", "score (ms)"], rows)


def disk_line(need: DiskNeed) -> str:
    """Return one line that compares the space of checkpoints with the free space, if that is known."""
    taken = f"{need.num_kept} checkpoints of {_gb(need.checkpoint)} GB at a time take {_gb(need.total)} GB"
    if need.free is None:
        return f"{taken}; the run is for another machine, so this machine's disk does not count"
    return f"{taken} of {_gb(need.free)} GB free ({'fits' if need.fits else 'does not fit'})"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f}"


def _share(num_bytes: float, of: float) -> str:
    return f"{num_bytes / of:.0%}"
