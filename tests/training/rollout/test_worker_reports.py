"""A worker reports each decoding step, micro-batch and bucket of weights as soon as it is finished."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rgtrain.machine.devices import num_gpus
from rgtrain.training.rollout import vllm_rollout
from rgtrain.training.rollout.groups import Group, PartKey, PartRequest
from rgtrain.training.rollout.vllm_rollout import VllmRollout, _Call, _Completion, _PendingGroup
from rgtrain.training.update import weight_sync

# Runs verl's loop over micro-batches on a model with one parameter, and prints each report with the gradient so far.
PROGRAM = """
from contextlib import nullcontext
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
import rgtrain.training.update.engine as engine
import rgtrain.upstream.in_worker

def engine_of_one_number(base):
    class Engine(base):
        ulysses_sequence_parallel_size = 1
        _is_lora = False
        weight = torch.ones(1, requires_grad=True)

        def __init__(self): pass
        def get_data_parallel_group(self): return None
        def get_data_parallel_size(self): return 1
        def _gradient_sync_context(self, *, is_last_micro_batch): return nullcontext()

        def forward_step(self, micro_batch, loss_function, forward_only):
            loss = (self.weight * micro_batch["loss_mask"].values().sum()).sum()
            return loss, {"loss": loss.detach(), "metrics": {}}
    return Engine()

class Trainer:
    def moved(self, stage, done, total):
        print(stage, done, total, [] if Engine.weight.grad is None else Engine.weight.grad.tolist())

engine.TRAINER = Trainer()
engine.torch.distributed.all_reduce = lambda *_, **__: None
for base in (engine.CriticEngine, engine.SharedPromptEngine):
    Engine = engine_of_one_number(base)
    mask = torch.nested.as_nested_tensor([torch.ones(2) for _ in range(3)], layout=torch.jagged)
    data = TensorDict({"loss_mask": mask, "input_ids": mask}, batch_size=3)
    tu.assign_non_tensor(data, use_dynamic_bsz=False, micro_batch_size_per_gpu=1)
    Engine.forward_backward_batch(data, None)
"""


@pytest.mark.skipif(num_gpus() > 0, reason="the CUDA stack is installed")
def test_a_micro_batch_is_reported_after_its_backward_pass():
    # In a separate process, because importing the worker replaces functions of verl.
    environment = os.environ | {"VERL_USE_EXTERNAL_MODULES": "rgtrain.upstream.on_cpu", "VERL_PLATFORM": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    once = ["micro-batch 1 3 [2.0]", "micro-batch 2 3 [4.0]", "micro-batch 3 3 [6.0]"]
    assert [line for line in done.stdout.splitlines() if line.startswith("micro-batch")] == once * 2, done.stderr


class Reports(list):
    """Records progress reports in place of the link to the trainer."""

    def moved(self, stage: str, done: int, total: int | None = None) -> None:
        self.append((stage, done, total))


def output(name: str, *, finished: bool) -> SimpleNamespace:
    log_probs = SimpleNamespace(logprobs=np.zeros((1, 1), dtype=np.float32))
    return SimpleNamespace(request_id=name, new_token_ids=[1], new_logprobs=log_probs, finished=finished)


def test_a_decoding_step_is_reported_if_it_gave_a_token(monkeypatch):
    reports = Reports()
    monkeypatch.setattr(vllm_rollout, "TRAINER", reports)
    steps = iter(
        [
            # The first part of a long prompt gives no token.
            [],
            [output("u0/0", finished=False), output("u0/1", finished=True)],
            [output("u0/0", finished=True)],
        ]
    )
    groups, completions = [], []

    def finished(whole, single):
        groups.extend(whole)
        completions.extend(single)

    call = _Call([PartRequest(PartKey("u0", 4), 2, [7])], {}, seed=0, finished=finished, num_unfinished=1)
    group = _PendingGroup(PartKey("u0", 4), call, num_unfinished=2)
    group.completions = [_Completion(group), _Completion(group)]
    rollout = SimpleNamespace(
        _core=SimpleNamespace(get_output=lambda: SimpleNamespace(outputs=next(steps))),
        _completions={f"u0/{number}": one for number, one in enumerate(group.completions)},
        _num_steps=0,
        _num_finished=0,
        _num_submitted=2,
        _group=lambda group: Group(group.key.uid, [one.tokens for one in group.completions], [], 0),
    )
    for _ in range(3):
        VllmRollout._step(rollout)
    assert [group.responses for group in groups] == [[[1, 1], [1]]]
    # Another message reports the last completion.
    assert completions == [("u0", 4)]
    assert reports == [("completion", 1, 2), ("completion", 2, 2)]


def test_a_bucket_of_weights_is_reported_once_it_is_loaded(monkeypatch):
    reports = Reports()
    monkeypatch.setattr(weight_sync, "TRAINER", reports)
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in "ab"})
    loaded = []
    for bucket in weight_sync.ActorWeights(model, device=torch.device("cpu"), bucket_bytes=1).buckets():
        assert len(reports) == len(loaded)
        loaded += [name for name, _ in bucket]
    assert loaded == ["a.weight", "b.weight"]
    assert reports == [("weight", 1, 2), ("weight", 2, 2)]
