"""Measure the microseconds of Python that vLLM's scheduler and this project's scheduler take per token of a rollout.

python benchmarks/scheduling.py --model models/SmolLM2-135M-Instruct

Both schedule 512 requests in groups of eight with 64 tokens each, in turn, without a model. --model is a folder whose
configuration vLLM accepts.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

from record import RESULTS, write_record

from rgtrain.paths import PROJECT_ROOT
from rgtrain.tables import text_table

NUM_REQUESTS, LENGTH = 512, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="a Hugging Face model folder")
    parser.add_argument("--repeats", type=int, default=7, help="rollouts per scheduler")
    parser.add_argument("--out", type=Path, default=RESULTS / "scheduling", help="the folder for the result")
    arguments = parser.parse_args()
    sys.path.insert(0, str(PROJECT_ROOT / "tests"))
    from support.simulated_rollout import Setting, SimulatedRollout
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from rgtrain.training.rollout.decoding_scheduler import DecodingScheduler

    setting = Setting(num_requests=NUM_REQUESTS, max_tokens=LENGTH, ignore_eos=True)
    microseconds: dict[type, list[float]] = {AsyncScheduler: [], DecodingScheduler: []}
    for _ in range(arguments.repeats):
        for scheduler, measured in microseconds.items():
            rollout = SimulatedRollout(scheduler, arguments.model, setting)
            rollout.run()
            measured.append(rollout.seconds / (NUM_REQUESTS * LENGTH) * 1e6)
    medians = {scheduler.__name__: median(measured) for scheduler, measured in microseconds.items()}
    write_record(
        arguments.out / "scheduling.json",
        settings={"requests": NUM_REQUESTS, "tokens": LENGTH, "repeats": arguments.repeats},
        raw={"us_per_token": {scheduler.__name__: measured for scheduler, measured in microseconds.items()}},
        derived={"us_per_token": medians},
    )
    print(text_table(["scheduler", "us_per_token"], [[name, f"{value:.1f}"] for name, value in medians.items()]))


if __name__ == "__main__":
    main()
