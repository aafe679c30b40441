"""The engine that runs vLLM in the process of the evaluation."""

import subprocess
import sys

import pytest

from rgtrain.paths import PROJECT_ROOT

# The variable `client` keeps vLLM's engine alive. Versions with a finalizer would otherwise shut it down by themselves.
PROGRAM = """
import sys
import torch
from rgtrain.evaluation.engine_interface import Prompt, Sampling
from rgtrain.evaluation.vllm_engine import NumberedPrompt, VllmEngine, VllmSettings

engine = VllmEngine(VllmSettings(sys.argv[1], "float32", 64, seed=0))
client = engine.llm.llm_engine.engine_core


def text_of(*values, **parameters):
    [(position, completion)] = engine.generate([Prompt([], [1, 2, 3], 1)], Sampling(*values, **parameters))
    return completion.text


greedy = text_of(12, 0)
print(len(greedy) > 4, torch.distributed.is_initialized())
print(text_of(12, 1.0, top_k=1) == text_of(12, 1.0, min_p=1.0) == greedy)
print(greedy.startswith(text_of(12, 0, stop=("no such text", greedy[2:4])) + greedy[2:4]))
print([text_of(12, 0, **{name: 2.0}) != greedy for name in sys.argv[2:]])


# Gives a second prompt while the first one is being decoded.
class Late:
    def __init__(self):
        self.running, self.portions = [], [[5], [], [], [6]]

    def take(self, num_running):
        self.running.append(num_running)
        if not self.portions:
            return None
        return [NumberedPrompt(position, Prompt([], [1, 2, 3], 2), 3) for position in self.portions.pop(0)]


late = Late()
fed = list(engine.generate_fed(late, Sampling(12, 1.0, top_k=1)))
print([position for position, _ in fed], {answer.text for _, answer in fed} == {greedy}, late.running)
print(engine.max_num_seqs > 1)
engine.close()
print(torch.distributed.is_initialized())
"""


PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


# Compiling the kernels of penalties takes ten seconds.
@pytest.mark.parametrize("penalties", [(), pytest.param(PENALTIES, marks=pytest.mark.slow)])
def test_the_engine_applies_every_sampling_parameter_and_its_end_destroys_its_process_group(tiny_model, penalties):
    # Otherwise torch warns about the process group at the end of an evaluation on a GPU.
    command = [sys.executable, "-c", PROGRAM, tiny_model, *penalties]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    fed = "[5, 5, 6, 6] True [0, 2, 2, 2, 4]"
    expected = ["True True", "True", "True", str([True] * len(penalties)), fed, "True", "False"]
    assert done.stdout.splitlines() == expected, done.stderr
