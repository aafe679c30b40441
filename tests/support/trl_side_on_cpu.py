"""Run benchmarks/sides/trl_grpo.py with vLLM's CPU build: `trl_side_on_cpu.py OPTIONS` takes its options."""

import importlib.metadata
import sys

from rgtrain.paths import PROJECT_ROOT
from rgtrain.upstream.cpu_vllm import answering_for_vllm, keeping_weights

SIDES = PROJECT_ROOT / "benchmarks" / "sides"


def main() -> None:
    sys.path.insert(0, str(SIDES))
    import trl_grpo

    # The first process only starts the ranks.
    if trl_grpo.is_rank():
        use_vllm_for_cpus()
    trl_grpo.main()


def use_vllm_for_cpus() -> None:
    importlib.metadata.version = answering_for_vllm(importlib.metadata.version)
    from vllm.model_executor.layers import utils

    utils.dispatch_cpu_unquantized_gemm = keeping_weights(utils.dispatch_cpu_unquantized_gemm)


if __name__ == "__main__":
    main()
