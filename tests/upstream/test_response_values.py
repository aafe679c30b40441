"""Values of responses are padded for all sequences at once, with the same result as verl's function."""

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
ours, original = losses.no_padding_2_padding(whole, data), padding.no_padding_2_padding(whole, data)
assert losses.no_padding_2_padding is not padding.no_padding_2_padding
assert torch.equal(ours, original), (ours, original)
print(tuple(ours.shape))
"""


def test_response_values_equal_those_of_verl():
    # In a separate process, because importing the worker replaces a function of verl.
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout.split("\n")[-2:] == ["(3, 5)", ""], done.stderr
