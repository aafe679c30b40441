"""The engine that runs vLLM in the process of the evaluation."""

import subprocess
import sys

from rgtrain.paths import PROJECT_ROOT

# The variable `client` keeps vLLM's engine alive. Versions with a finalizer would otherwise shut it down by themselves.
PROGRAM = """
import sys
import torch
from rgtrain.evaluation.engine_interface import Prompt, Sampling
from rgtrain.evaluation.vllm_engine import VllmEngine, VllmSettings

engine = VllmEngine(VllmSettings(sys.argv[1], "float32", 64, seed=0))
client = engine.llm.llm_engine.engine_core
[(position, completion)] = engine.generate([Prompt([], [1, 2, 3], 1)], Sampling(4, 0))
print(completion.num_tokens > 0, torch.distributed.is_initialized())
engine.close()
print(torch.distributed.is_initialized())
"""


def test_closing_the_engine_destroys_its_process_group(tiny_model):
    # Otherwise torch warns about it at the end of an evaluation on a GPU.
    command = [sys.executable, "-c", PROGRAM, tiny_model]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["True True", "False"], done.stderr
