"""Keep some groups of each step and all of validation, and show one group from time to time."""

from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from random import Random
from statistics import fmean
from typing import Any

from torch import Tensor

from rgtrain.checkpoints.rollout_files import TRAINING, VALIDATION, KeptCompletion, KeptGroup, RolloutFiles
from rgtrain.config.run_config import RolloutsConfig
from rgtrain.problems.answers import extract_answer, opens_thinking
from rgtrain.tables import printable
from rgtrain.training.lifecycle.console import announce

# Of a shown group, the number of best completions, and of worst ones.
_SHOWN_COMPLETIONS = 2
_SHOWN_CHARACTERS = 200
_TABLE_COLUMNS = ("dataset", "level", "prompt", "completion", "answer", "expected", "reward", "advantage", "tokens")


@dataclass(frozen=True)
class ScoredSample:
    """A completion as the trainer stores it.

    Attributes:
        uid: The uid of its prompt.
        dataset: The dataset of its problem.
        extra_info: The digest of the problem and its level in the curriculum.
        expected_answer: The answer of the problem's entry.
        prompt: Token ids.
        response: Token ids.
        reward: The total reward.
        details: The details of the reward by name.
        advantages: The advantage of each token, perhaps padded. None in validation.
        rollout_log_probs: vLLM's log-probability of each token. None if it computed none.
        old_log_probs: The engine's log-probability of each token. None if it computed none.
    """

    uid: str
    dataset: str
    extra_info: Mapping[str, Any]
    expected_answer: str
    prompt: Tensor
    response: Tensor
    reward: float
    details: Mapping[str, float]
    advantages: Tensor | None = None
    rollout_log_probs: Tensor | None = None
    old_log_probs: Tensor | None = None


# The fields of a sample that ScoredSample reads, and those that only training has.
SAMPLE_FIELDS = (
    "uid",
    "data_source",
    "extra_info",
    "reward_model",
    "prompts",
    "responses",
    "rm_scores",
    "extra_fields",
)
TRAINING_FIELDS = ("advantages", "old_log_probs")


def scored_samples(columns: Mapping[str, Sequence[Any]]) -> list[ScoredSample]:
    """Return the samples whose fields are given, one list per field. SAMPLE_FIELDS are needed."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [_scored_sample(row) for row in rows]


def _scored_sample(row: Mapping[str, Any]) -> ScoredSample:
    details = row["extra_fields"].get("reward_extra_info", {})
    return ScoredSample(
        uid=row["uid"],
        dataset=row["data_source"],
        extra_info=row["extra_info"],
        expected_answer=str(row["reward_model"]["ground_truth"]),
        prompt=row["prompts"],
        response=row["responses"],
        reward=float(row["rm_scores"].sum()),
        details={name: float(value) for name, value in details.items() if isinstance(value, Real)},
        advantages=row.get("advantages"),
        rollout_log_probs=row.get("rollout_log_probs"),
        old_log_probs=row.get("old_log_probs"),
    )


def _rounded(value: Any) -> float:
    return float(f"{float(value):.6g}")


class RolloutKeeper:
    """Decodes, compresses and writes groups in a background thread.

    Args:
        files: The run's files.
        settings: The configuration's node `rollouts`.
        tokenizer: The model's tokenizer.
        max_response_length: The maximum length of a completion, in tokens.
        seed: The seed of the random choice.
        trackers: The run's trackers by name, as verl holds them.
    """

    def __init__(
        self,
        files: RolloutFiles,
        settings: RolloutsConfig,
        *,
        tokenizer: Any,
        max_response_length: int,
        seed: int,
        trackers: Mapping[str, Any],
    ):
        self._files = files
        self._settings = settings
        self._tokenizer = tokenizer
        self._max_response_length = max_response_length
        self._seed = seed
        self._trackers = trackers
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollouts")
        self._writing: Future[list[KeptGroup]] | None = None
        self._failed = False

    def keep_training(
        self,
        rewards: Mapping[str, Sequence[float]],
        read: Callable[[Container[str]], Sequence[ScoredSample]],
        *,
        step: int,
    ) -> None:
        """Keep some groups of a training step, and show one of them in every `rollouts.print_every` steps.

        Args:
            rewards: The rewards of the completions of each group by its uid.
            read: Returns the completions of the groups with some uids.
            step: The training step.
        """
        uids = list(rewards)
        chosen = choose_groups(
            [fmean(of_group) for of_group in rewards.values()],
            num_groups=self._settings.per_step,
            random=Random(f"{self._seed} {step}"),
        )
        if not chosen:
            return
        groups = {group[0].uid: group for group in _by_uid(read({uids[position] for position in chosen}))}
        kept = [(groups[uids[position]], reasons) for position, reasons in chosen.items()]
        self._start(kept, step=step, split=TRAINING)
        every = self._settings.print_every
        if every and (step == 1 or step % every == 0):
            shown = self.wait()
            if shown:
                for line in group_lines(max(shown, key=_reward_spread), step=step):
                    announce(line)
                log_table(self._trackers, shown, name="rollouts/training", step=step)

    def keep_validation(self, samples: Sequence[ScoredSample], *, step: int) -> None:
        """Keep all groups of a validation."""
        self._start([(group, ()) for group in _by_uid(samples)], step=step, split=VALIDATION)
        if self._settings.print_every:
            log_table(self._trackers, self.wait()[: self._settings.per_step], name="rollouts/validation", step=step)

    def wait(self) -> list[KeptGroup]:
        """Wait until everything is written.

        Returns:
            The groups that were written last. Empty if they could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return []
        try:
            return writing.result()
        except OSError as error:
            # A full disk must not end a run that could go on.
            if not self._failed:
                announce(f"warning: cannot keep rollouts: {error}")
            self._failed = True
            return []

    def _start(self, kept: Sequence[tuple[list[ScoredSample], Sequence[str]]], *, step: int, split: str) -> None:
        self.wait()
        self._writing = self._executor.submit(self._write, kept, step=step, split=split)

    def _write(
        self, kept: Sequence[tuple[list[ScoredSample], Sequence[str]]], *, step: int, split: str
    ) -> list[KeptGroup]:
        groups = [self._group(samples, reasons) for samples, reasons in kept]
        self._files.append(groups, step=step, split=split)
        return groups

    def _group(self, samples: Sequence[ScoredSample], reasons: Sequence[str]) -> KeptGroup:
        first = samples[0]
        texts = self._tokenizer.batch_decode([sample.response.tolist() for sample in samples], skip_special_tokens=True)
        prompt = self._tokenizer.decode(first.prompt.tolist())
        answers: Sequence[str | None] = texts
        if not first.extra_info["judged_whole"]:
            answers = [extract_answer(text, thinking_begun=opens_thinking(prompt)) for text in texts]
        return KeptGroup(
            dataset=first.dataset,
            level=first.extra_info.get("level"),
            digest=first.extra_info["digest"],
            prompt=prompt,
            expected_answer=first.expected_answer,
            chosen_as=list(reasons),
            completions=[self._completion(*values) for values in zip(samples, texts, answers, strict=True)],
        )

    def _completion(self, sample: ScoredSample, text: str, answer: str | None) -> KeptCompletion:
        num_tokens = len(sample.response)
        ends = int(sample.response[-1]) == self._tokenizer.eos_token_id
        advantages, of_rollout, of_engine = (
            None if values is None else values[:num_tokens].float()
            for values in (sample.advantages, sample.rollout_log_probs, sample.old_log_probs)
        )
        gap = None
        # Both are the same values if vLLM's count as those of the old policy.
        if of_rollout is not None and of_engine is not None and not of_rollout.equal(of_engine):
            gap = _rounded((of_rollout - of_engine).abs().mean())
        return KeptCompletion(
            text=text,
            answer=answer,
            reward=_rounded(sample.reward),
            details={name: _rounded(value) for name, value in sample.details.items()},
            num_tokens=num_tokens,
            finish_reason="length" if num_tokens >= self._max_response_length and not ends else "stop",
            advantage=None if advantages is None else _rounded(advantages.mean()),
            mean_log_prob=None if of_rollout is None else _rounded(of_rollout.mean()),
            rollout_gap=gap,
        )


def _by_uid(samples: Sequence[ScoredSample]) -> list[list[ScoredSample]]:
    groups: dict[str, list[ScoredSample]] = {}
    for sample in samples:
        groups.setdefault(sample.uid, []).append(sample)
    return list(groups.values())


def choose_groups(rewards: Sequence[float], *, num_groups: int, random: Random) -> dict[int, list[str]]:
    """Choose the first group, a random one, the best and the worst, then further random ones.

    Args:
        rewards: The mean reward of each group.
        num_groups: The number of groups to choose. If it is below 4, the last of these reasons are left out.
        random: The source of random numbers.

    Returns:
        The reasons for each chosen group by its position. A group may be chosen for several reasons. Further random
        groups then take the free places.
    """
    if not rewards or num_groups < 1:
        return {}
    positions = range(len(rewards))
    # Of equal groups, the first one.
    best, worst = max(positions, key=rewards.__getitem__), min(positions, key=rewards.__getitem__)
    reasons = {"first": 0, "random": random.choice(positions), "best": best, "worst": worst}
    chosen: dict[int, list[str]] = {}
    for reason, position in list(reasons.items())[:num_groups]:
        chosen.setdefault(position, []).append(reason)
    others = [position for position in positions if position not in chosen]
    for position in random.sample(others, min(len(others), num_groups - len(chosen))):
        chosen[position] = ["random"]
    return chosen


def _reward_spread(group: KeptGroup) -> float:
    rewards = [completion.reward for completion in group.completions]
    return max(rewards) - min(rewards)


def group_lines(group: KeptGroup, *, step: int) -> list[str]:
    """Return a few printable lines that show a group of a step: its problem and some completions, best first."""
    level = "" if group.level is None else f" level {group.level}"
    rewards = [completion.reward for completion in group.completions]
    lines = [
        f"step {step}, a group of {group.dataset}{level} with rewards from {min(rewards):.2f} to {max(rewards):.2f}:",
        f"  prompt (end): {_end(group.prompt)}",
        f"  expected answer: {_shortened(group.expected_answer)}",
    ]
    ordered = sorted(group.completions, key=lambda completion: -completion.reward)
    shown = [*ordered[:_SHOWN_COMPLETIONS], *ordered[_SHOWN_COMPLETIONS:][-_SHOWN_COMPLETIONS:]]
    for completion in shown:
        cut = ", cut off" if completion.finish_reason == "length" else ""
        lines.append(
            f"  reward {completion.reward:.2f}, {completion.num_tokens} tokens{cut}: {_shortened(completion.text)}"
        )
    if len(ordered) > len(shown):
        lines.append(f"  and {len(ordered) - len(shown)} more")
    return lines


def _shortened(text: str) -> str:
    """Return the beginning and the end of `text` on one printable line."""
    # Control characters are removed only from the part that is shown, because removing them takes time.
    if len(text) > 4 * _SHOWN_CHARACTERS:
        text = f"{text[: 2 * _SHOWN_CHARACTERS]} {text[-2 * _SHOWN_CHARACTERS :]}"
    line = printable(text)
    half = _SHOWN_CHARACTERS // 2
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:half]} [...] {line[-half:]}"


def _end(prompt: str) -> str:
    return printable(prompt[-4 * _SHOWN_CHARACTERS :])[-_SHOWN_CHARACTERS:]


def log_table(trackers: Mapping[str, Any], groups: Sequence[KeptGroup], *, name: str, step: int) -> None:
    """Log the completions of groups as a table to Weights & Biases and as text to TensorBoard, if the run uses them."""
    rows = [
        (
            group.dataset,
            group.level,
            group.prompt,
            completion.text,
            completion.answer,
            group.expected_answer,
            completion.reward,
            completion.advantage,
            completion.num_tokens,
        )
        for group in groups
        for completion in group.completions
    ]
    if not rows:
        return
    if "wandb" in trackers:
        wandb = trackers["wandb"]
        wandb.log({name: wandb.Table(columns=list(_TABLE_COLUMNS), data=[list(row) for row in rows])}, step=step)
    if "tensorboard" in trackers:
        # TensorBoard renders Markdown. Indented lines are shown as they are.
        blocks = [
            "\n".join(
                f"    {column}: {line}"
                for column, value in zip(_TABLE_COLUMNS, row, strict=True)
                for line in (str(value).splitlines() or [""])
            )
            for row in rows
        ]
        trackers["tensorboard"].writer.add_text(name, "\n\n---\n\n".join(blocks), step)
