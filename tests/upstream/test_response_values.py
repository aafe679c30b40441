"""Values of responses are taken out of packed sequences as verl does it, all at once."""

import subprocess
import sys

PROGRAM = """
import torch
from tensordict import TensorDict
import rgtrain.upstream.in_worker
from verl.workers.utils import losses, padding

def nested(lengths):
    return torch.nested.as_nested_tensor([torch.rand(n) for n in lengths], layout=torch.jagged)

prompts, responses = [3, 2, 4], [1, 5, 2]
whole = nested([p + r for p, r in zip(prompts, responses)])
data = TensorDict({"prompts": nested(prompts), "responses": nested(responses), "input_ids": whole}, batch_size=3)
ours, verls = losses.no_padding_2_padding(whole, data), padding.no_padding_2_padding(whole, data)
assert losses.no_padding_2_padding is not padding.no_padding_2_padding
assert torch.equal(ours, verls), (ours, verls)
print(tuple(ours.shape))
"""


def test_they_equal_verls():
    # In a separate process, because the engine replaces a function of verl's.
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout.split("\n")[-2:] == ["(3, 5)", ""], done.stderr
