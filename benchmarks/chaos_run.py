"""Define the run that chaos.py disturbs: its command, its model, and one start of it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from rgtrain.checkpoints.checkpoint_store import CheckpointStore, problems
from rgtrain.machine.orphan_cleanup import RUN_ID, processes_of
from rgtrain.models.random_models import make_tiny_model
from rgtrain.paths import PROJECT_ROOT

STEP = re.compile(r"\] step +(\d+)/\d+ ")
STARTED = re.compile(r"continuing after step (\d+)|starting from the base model|has finished its (\d+) steps")
# Number of steps between validations.
TEST_FREQ = 5
# Longer than any step or start takes, even on a busy machine.
_PATIENCE_SECONDS = 300
_ANSWERS = ("red", "a dog", "seven", "Kate and Bill", "up")
_TEACHING_STEPS, _LEARNING_RATE = 600, 3e-3


def command(model: Path, run_dir: Path, num_steps: int, *, dapo: bool = False) -> list[str]:
    """Return the command of a small run; a DAPO run is deterministic so that its steps can be compared."""
    words = {
        "actor_rollout_ref.model.path": model,
        "run_dir": run_dir,
        "hardware": "cpu",
        "trainer.total_training_steps": num_steps,
        "trainer.save_freq": 1,
        "trainer.test_freq": TEST_FREQ,
        "data.validation_size": 16,
        "trainer.rollout_data_dir": run_dir / "rollouts",
        "trainer.logger": "[]",
        "data.train_size": 8 * num_steps,
        "data.train_batch_size": 4,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
        "actor_rollout_ref.rollout.n": 4,
    }
    program = [sys.executable, "-u", str(PROJECT_ROOT / "train_grpo.py"), "--config-name", "quickstart"]
    if dapo:
        words |= {"algorithm": "dapo", "algorithm.filter_groups.metric": "reward", "debug": "deterministic"}
        words |= {"data.train_size": 16 * num_steps}
    # Rewards depend on the answer's length, so that a group's advantages are not all zero.
    parts = "+reward.parts.length={weight: 1, max_len: 16, buffer: 15}"
    return [*program, *(f"{key}={value}" for key, value in words.items()), parts]


def model_that_answers(folder: Path) -> Path:
    """Train a tiny model to answer every prompt; a random model would leave the scorers without work."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_tiny_model(folder)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
    for step in range(_TEACHING_STEPS):
        question = tokenizer.decode(torch.randint(1000, 40000, (20,)))
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        prompt_ids, answer_ids = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (prompt, f"<answer>{_ANSWERS[step % len(_ANSWERS)]}</answer>{tokenizer.eos_token}")
        )
        labels = torch.tensor([[-100] * len(prompt_ids) + answer_ids])
        model(input_ids=torch.tensor([prompt_ids + answer_ids]), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def sound_steps(run_dir: Path) -> dict[int, Path]:
    """Return the checkpoints that a run can resume from, by step."""
    steps = CheckpointStore(run_dir / "checkpoints", keep=None, say=print).steps()
    return {step: folder for step, folder in steps.items() if not problems(folder)}


def prompts_of_step(run_dir: Path, step: int) -> Counter[str]:
    """Return the prompts that a run trained on in `step`, each counted once per completion."""
    lines = (run_dir / "rollouts" / f"{step}.jsonl").read_text().splitlines()
    return Counter(json.loads(line)["input"] for line in lines)


class Start:
    """One start of the run's command, and its output."""

    def __init__(self, command: list[str]):
        self.command = command
        environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=PROJECT_ROOT,
            # Under nohup, the run would ignore SIGHUP.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self._lines.extend(self.process.stdout)

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def wait_lines(self, pattern: re.Pattern, number: int) -> bool:
        """Wait for `number` more lines with `pattern`, and return whether they came before the end and the deadline."""
        wanted = self.num_lines(pattern) + number
        deadline = time.monotonic() + number * _PATIENCE_SECONDS
        while self.num_lines(pattern) < wanted and time.monotonic() < deadline:
            if self.is_over():
                self._reader.join()
                break
            time.sleep(0.02)
        return self.num_lines(pattern) >= wanted

    def wait_seconds(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.is_over():
            time.sleep(0.02)

    def num_lines(self, pattern: re.Pattern) -> int:
        return sum(bool(pattern.search(line)) for line in list(self._lines))

    def last_step(self) -> int:
        return max((int(match[1]) for line in list(self._lines) if (match := STEP.search(line))), default=0)

    def resumed_after(self) -> int | None:
        """Return the step after which it resumed: 0 for a new run, None if it ended before that."""
        matches = [match for line in list(self._lines) if (match := STARTED.search(line))]
        return int(matches[0][1] or matches[0][2] or 0) if matches else None

    def output(self) -> str:
        """Return the output so far."""
        return "".join(list(self._lines))

    def all_pids(self) -> list[int]:
        """Return the ids of the processes that it has started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        environments = [Path(f"/proc/{pid}/environ").read_text().split("\0") for pid in children]
        own = next(line for environment in environments for line in environment if line.startswith(RUN_ID))
        return list(processes_of(own.partition("=")[2]))

    def pids_of(self, name: str) -> list[int]:
        """Return the ids of its processes with `name` in the command line; "scorer" stands for the scoring workers."""
        pids = self.all_pids()
        if name != "scorer":
            # Only the first: scoring workers are forked from the server and share its command line.
            return [pid for pid in sorted(pids) if name in Path(f"/proc/{pid}/cmdline").read_text()][:1]
        [server] = self.pids_of("scoring.server")
        return [int(pid) for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split()]

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> int:
        """Wait for the end, and return the exit code."""
        code = self.process.wait()
        self._reader.join()
        return code
