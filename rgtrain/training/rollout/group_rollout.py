"""Run rollouts: send prompts to the workers' vLLM, score completions as they arrive, and store them for the trainer.

This replaces verl's agent loop through the key `rollout.agent.agent_loop_manager_class`. For every completion, verl's
loop runs a task, several remote calls and several writes in separate processes. Here, each engine gets a call with all
its groups, and further calls only if they did not fit into the engines at first. Workers push each group as soon as it
is complete. The code runs on a thread of the trainer's process while the trainer waits.
"""

import asyncio
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import ray
import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from transformers import AutoConfig
from verl.utils.tokenizer import hf_tokenizer

from rgtrain.config.run_config import RunConfig, plain_config
from rgtrain.curriculum.curriculum import GroupResult
from rgtrain.machine.orphan_cleanup import private_folder
from rgtrain.problems import Scorer, load_entry
from rgtrain.problems.answers import PROMPT_END_TOKENS, opens_thinking
from rgtrain.problems.group_rewards import CompletionReward, FinishedCompletion, GroupRewards, finish_reason_of
from rgtrain.training.lifecycle.console import announce
from rgtrain.training.lifecycle.training_activity import ACTIVITY
from rgtrain.training.rollout.channel import Arrivals, WorkerChannel
from rgtrain.training.rollout.dispatch import Dispatched, Dispatcher, EngineCapacity, ExpectedLengths
from rgtrain.training.rollout.groups import Group, GroupLimits, PartKey, PartRequest, SampleKey, WorkerPlace
from rgtrain.training.rollout.packed_columns import Column, JoinedColumn, PackedColumn
from rgtrain.training.rollout.sample_store import STORE, SampleBlock

TRAIN_PARTITION = "train"
# The time that the groups of a call may take to arrive after the workers have finished it.
_ARRIVAL_SECONDS = 60


class GroupRollout:
    """A replacement for verl's agent loop manager that writes the results of rollouts into the sample store.

    Args:
        config: The run's configuration.
        workers: The group of generating workers.
    """

    @classmethod
    def create(cls, *, config: DictConfig, llm_client: Any, **_: Any) -> "GroupRollout":
        """Create the manager with verl's arguments. Our trainer passes the group of workers as `llm_client`."""
        return cls(RunConfig.of(plain_config(config)), workers=llm_client)

    def __init__(self, config: RunConfig, *, workers: Any):
        self._rollout = config.rollout
        trust_remote_code = bool(config.model.trust_remote_code)
        self._tokenizer = hf_tokenizer(config.model.path, trust_remote_code=trust_remote_code)
        self._generate_on = _remote_generate(workers)
        self._channel = _open_channel(config)
        num_engines = len(self._generate_on) // self._rollout.tensor_model_parallel_size
        self._dispatcher = Dispatcher(num_engines, EngineCapacity(self._rollout.max_num_seqs))
        # Sampled texts depend on the order of prompts. With one engine, there is nothing to balance.
        self._deals_in_turn = num_engines == 1 or self._rollout.full_determinism
        self._lengths = ExpectedLengths()
        self._has_called = False
        # The number of calls to each engine in this run, which outlives batches.
        self._num_calls: Counter[int] = Counter()
        # Closed when this process ends, because verl never closes a manager.
        self._resources = ExitStack()
        scorer = self._resources.enter_context(Scorer(**config.reward.scorer))
        self._max_tokens = config.data.max_response_length
        self._rewards = GroupRewards(config.reward.parts, scorer=scorer, max_tokens=self._max_tokens)
        self._failures: list[BaseException] = []
        self._training_results: list[tuple[int, GroupResult]] = []
        # The number of prompts drawn so far for the latest partition and step.
        self._num_drawn: Counter[tuple[str, int]] = Counter()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="rollout").start()

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Start generating completions for every prompt, and return at once.

        Dynamic sampling calls this again while earlier prompts are still being generated. The new prompts join them.

        Args:
            prompts: verl's batch with a row per prompt. `validate` and `global_steps` apply to the whole batch.
        """
        names = ("uid", "data_source", "extra_info", "reward_model", "raw_prompt")
        columns = {name: _as_list(prompts[name]) for name in names}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        validate = bool(_constant(prompts, "validate", False))
        partition, step = "val" if validate else TRAIN_PARTITION, int(_constant(prompts, "global_steps", 0))
        num_drawn = self._num_drawn[partition, step]
        self._num_drawn = Counter({(partition, step): num_drawn + len(rows)})
        batch = _Batch(
            {row["uid"]: row for row in rows},
            partition=partition,
            step=step,
            first=num_drawn,
            group_size=(self._rollout.val_kwargs if validate else self._rollout).n,
            sampling=self._sampling(validate),
            seed=random.Random(f"{self._rollout.seed} {(partition, step)} {num_drawn}").getrandbits(62),
        )
        asyncio.run_coroutine_threadsafe(self._run(batch), self._loop)

    def raise_failures(self) -> None:
        """Raise an error if rollouts have failed since the last call. verl would continue with the remaining groups.

        Raises:
            RuntimeError: There were failures. The first one is the cause.
        """
        if self._failures:
            failures, self._failures = self._failures, []
            raise RuntimeError(
                f"rollouts had {len(failures)} failures, and the first one is {failures[0]!r}"
            ) from failures[0]

    def take_training_results(self) -> list[GroupResult]:
        """Return the training groups scored since the last call, in the order of drawing, with those verl dropped."""
        # The order in which groups finish is not reproducible.
        results = sorted(self._training_results, key=lambda pair: pair[0])
        self._training_results.clear()
        return [result for _, result in results]

    @property
    def engine_idle_share(self) -> float | None:
        """The mean share of this step's generation in which an engine had no work, or None if there is one engine."""
        return self._dispatcher.idle_share if self._dispatcher.num_engines > 1 else None

    async def _run(self, batch: "_Batch") -> None:
        try:
            await self._generate(batch)
        except BaseException as failure:
            self._failures.append(failure)
        finally:
            # Otherwise the trainer would wait forever for the unfinished prompts.
            for uid in batch.unfinished:
                STORE.put(batch.partition, None, {uid: {"status": "failure"}})

    async def _generate(self, batch: "_Batch") -> None:
        if batch.first == 0:
            self._dispatcher.begin_timing()
            if batch.partition == TRAIN_PARTITION:
                self._lengths.begin_step()
        with self._channel.awaiting() as batch.arrivals:
            try:
                self._queue(batch)
                judging = await self._receive(batch)
                await asyncio.gather(*batch.calls)
            finally:
                for call in batch.calls:
                    call.cancel()
                self._dispatcher.withdraw(batch)
                # If the batch failed, there may be room for other batches.
                self._call(self._dispatcher.take())
            await asyncio.gather(*judging)

    def _queue(self, batch: "_Batch") -> None:
        """Put the batch's groups into the queue, and start those for which engines have room."""
        groups = [
            PartRequest(PartKey(uid, 0), batch.group_size, row["extra_info"]["prompt_ids"])
            for uid, row in batch.rows.items()
        ]
        if self._deals_in_turn:
            dispatched = self._dispatcher.deal(groups, first=batch.first, batch=batch)
        else:
            pairs = [(row["data_source"], row["extra_info"]["level"]) for row in batch.rows.values()]
            self._dispatcher.add(groups, expected=[self._lengths.of(*pair) for pair in pairs], batch=batch)
            dispatched = self._dispatcher.take()
        self._call(dispatched)
        if not self._has_called:
            # The first call connects a worker to the trainer, so that it can also report the progress of updates.
            for engine in set(range(self._dispatcher.num_engines)) - {one.engine for one in dispatched}:
                self._start_call(batch, engine, [])
        self._has_called = True

    def _call(self, dispatched: Sequence[Dispatched]) -> None:
        """Send each engine its groups, with one call for each batch."""
        calls: dict[tuple[_Batch, int], list[PartRequest]] = defaultdict(list)
        for engine, batch, part in dispatched:
            batch.expect(part)
            calls[batch, engine].append(part)
        for (batch, engine), parts in calls.items():
            self._start_call(batch, engine, parts)

    def _start_call(self, batch: "_Batch", engine: int, parts: list[PartRequest]) -> None:
        # Engines with the same seed would draw the same random numbers, and so would calls with the same seed.
        seed = batch.seed + engine + self._dispatcher.num_engines * batch.num_calls[engine]
        batch.num_calls[engine] += 1
        call = asyncio.create_task(self._await_call(batch, engine, parts, seed=seed))
        batch.calls.append(call)
        call.add_done_callback(batch.deliver_failure)

    async def _await_call(self, batch: "_Batch", engine: int, parts: list[PartRequest], *, seed: int) -> None:
        """Have an engine generate, and wait until its groups have arrived.

        Args:
            batch: The batch of the groups.
            engine: The number of the engine. All ranks of a tensor-parallel engine get the same call.
            parts: The groups, or parts of them.
            seed: The seed of sampling.

        Raises:
            TimeoutError: Groups did not arrive after the workers had finished.
        """
        num_ranks = self._rollout.tensor_model_parallel_size
        # Without waiting groups, the trainer does not need to know how many completions an engine has finished.
        reports = self._dispatcher.has_waiting
        # A call that is cancelled before it is sent must not take a number, because the engine would wait for it.
        number = self._num_calls[engine]
        self._num_calls[engine] += 1
        running = [
            generate(parts, batch.sampling, number, seed, self._channel.endpoint, reports)
            for generate in self._generate_on[engine * num_ranks : (engine + 1) * num_ranks]
        ]
        capacity, *_ = await asyncio.gather(*running)
        self._dispatcher.set_capacity(engine, capacity)
        missing = [batch.arrived[part.key] for part in parts]
        if missing and (await asyncio.wait(missing, timeout=_ARRIVAL_SECONDS))[1]:
            raise TimeoutError(
                f"some of {len(batch.rows)} groups did not arrive within {_ARRIVAL_SECONDS} s after the "
                f"workers finished, and {self._channel.num_dropped} messages were dropped in this run"
            )

    async def _receive(self, batch: "_Batch") -> list["asyncio.Task[None]"]:
        """Receive a group for every prompt, and return the scoring tasks, which start as the groups arrive."""
        judging: list[asyncio.Task[None]] = []
        while len(judging) < len(batch.rows):
            arrival = await batch.arrivals.get()
            if isinstance(arrival, BaseException):
                raise arrival
            if isinstance(arrival, Group):
                self._dispatcher.arrived(arrival.key)
                batch.arrived[arrival.key].set_result(None)
                if group := batch.joined(arrival):
                    judging.append(asyncio.create_task(self._judge(group, batch)))
            else:
                self._dispatcher.completed(arrival)
            if self._dispatcher.has_waiting:
                self._call(self._dispatcher.take())
        return judging

    async def _judge(self, group: Group, batch: "_Batch") -> None:
        row = batch.rows[group.uid]
        texts = self._tokenizer.batch_decode(group.responses, skip_special_tokens=True)
        lengths = [len(response) for response in group.responses]
        prompt_end = self._tokenizer.decode(row["extra_info"]["prompt_ids"][-PROMPT_END_TOKENS:])
        end_token = self._tokenizer.eos_token_id
        completions = [
            FinishedCompletion(
                text,
                len(tokens),
                finish_reason_of(
                    len(tokens), tokens[-1] if len(tokens) else None, max_tokens=self._max_tokens, end_token=end_token
                ),
            )
            for text, tokens in zip(texts, group.responses, strict=True)
        ]
        rewards = await self._rewards.compute(
            completions,
            load_entry(row["extra_info"]["entry"]),
            dataset=row["extra_info"]["dataset"],
            messages=row["raw_prompt"],
            level=row["extra_info"]["level"],
            step=batch.step,
            thinking_begun=opens_thinking(prompt_end),
        )
        if batch.partition == TRAIN_PARTITION:
            self._lengths.observe(row["data_source"], row["extra_info"]["level"], lengths)
            self._training_results.append((batch.numbers[group.uid], _group_result(row, rewards)))
        samples, tags = _samples(row, group, rewards, step=batch.step)
        STORE.put(batch.partition, samples, {**tags, group.uid: {"status": "finished"}})
        batch.unfinished.discard(group.uid)

    def _sampling(self, validate: bool) -> dict[str, Any]:
        source = self._rollout.val_kwargs if validate else self._rollout
        return {"temperature": source.temperature, "top_p": source.top_p, "top_k": source.top_k}


def _remote_generate(workers: Any) -> list[Callable[..., Awaitable[EngineCapacity]]]:
    """Return the method `generate` of each worker, which starts it on that worker alone.

    Args:
        workers: verl's worker group.

    Returns:
        The method of each rank.
    """
    # verl names the type of a bound method after the method of the Ray actor, which has the role as a prefix.
    name = type(workers.generate).__name__
    return [getattr(worker, name).remote for worker in workers.workers]


def _open_channel(config: RunConfig) -> WorkerChannel:
    """Open the socket on which workers send groups and report progress during the whole run."""
    model, rollout = config.model, config.rollout
    model_config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    limits = GroupLimits(
        vocabulary_size=model_config.get_text_config().vocab_size,
        max_response_tokens=rollout.response_length,
        max_group_size=max(rollout.n, rollout.val_kwargs.n),
    )

    def moved(place: WorkerPlace) -> None:
        ACTIVITY.moved(str(place), source=f"worker {place.worker}", share=place.share)

    # In a cluster that the run did not start, even a single worker may be on another machine.
    is_local = config.trainer.nnodes == 1 and config.ray_init.address is None
    if is_local:
        return WorkerChannel(limits, folder=private_folder(), moved=moved, warn=announce)
    return WorkerChannel(limits, host=ray.util.get_node_ip_address(), moved=moved, warn=announce)


class _Batch:
    """The rows of a batch by uid, the prompts' numbers in the order of drawing, and the state of their generation.

    Args:
        rows: The row of each prompt by uid.
        partition: The partition of the sample store.
        step: The training step.
        first: The number of prompts drawn for this step before this batch.
        group_size: The number of completions per prompt.
        sampling: The sampling parameters.
        seed: The seed of the first call of the first engine.
    """

    arrivals: Arrivals

    def __init__(
        self,
        rows: dict[str, dict[str, Any]],
        *,
        partition: str,
        step: int,
        first: int,
        group_size: int,
        sampling: dict[str, Any],
        seed: int,
    ):
        self.rows = rows
        self.partition = partition
        self.step = step
        self.first = first
        self.group_size = group_size
        self.sampling = sampling
        self.seed = seed
        self.numbers = {uid: first + position for position, uid in enumerate(rows)}
        self.unfinished = set(rows)
        self.calls: list[asyncio.Task[None]] = []
        # The number of calls by engine.
        self.num_calls: Counter[int] = Counter()
        # A future for each part that an engine generates.
        self.arrived: dict[PartKey, asyncio.Future[None]] = {}
        self._parts: dict[str, list[Group]] = defaultdict(list)

    def expect(self, part: PartRequest) -> None:
        """Accept the messages of a part."""
        self.arrived[part.key] = asyncio.get_running_loop().create_future()
        self.arrivals.expect(part.key, part.num_completions)

    def joined(self, part: Group) -> Group | None:
        """Add a part, and return the group if it is complete.

        Args:
            part: A part that was not added before.

        Returns:
            The group, or None if parts are missing.
        """
        parts = self._parts[part.uid]
        parts.append(part)
        is_complete = sum(len(one.responses) for one in parts) == self.group_size
        return Group.joined(self._parts.pop(part.uid)) if is_complete else None

    def deliver_failure(self, call: "asyncio.Task[None]") -> None:
        """Pass the error of a call to the receiver of the arrivals."""
        if not call.cancelled() and (error := call.exception()):
            self.arrivals.deliver(error)


def _group_result(row: Mapping[str, Any], rewards: Sequence[CompletionReward]) -> GroupResult:
    return GroupResult(
        dataset=row["data_source"],
        level=row["extra_info"]["level"],
        scores=[one.details["acc"] for one in rewards],
        rewards=[one.reward for one in rewards],
    )


def _samples(
    row: Mapping[str, Any], group: Group, rewards: Sequence[CompletionReward], *, step: int
) -> tuple[SampleBlock, dict[str, dict[str, Any]]]:
    """Return the columns of the completions, and their tags by key, in the layout that verl's trainer reads."""
    prompt_ids, size = row["extra_info"]["prompt_ids"], len(rewards)
    lengths = torch.tensor([len(response) for response in group.responses])
    prompt_lengths = torch.full((size,), len(prompt_ids))
    prompt = torch.tensor(prompt_ids, dtype=torch.int32)
    prompts = PackedColumn("tokens", prompt.repeat(size), prompt_lengths, torch.int64)
    tokens = np.concatenate([np.asarray(response, dtype=np.int32) for response in group.responses])
    responses = PackedColumn("tokens", torch.from_numpy(tokens), lengths, torch.int64)
    log_probs = np.concatenate([np.asarray(each, dtype=np.float32) for each in group.log_probs])
    mask = PackedColumn("constant", torch.ones(size, dtype=torch.int8), lengths, torch.int64)
    # The entry and the messages are not needed after scoring.
    names = ("digest", "level", "judged_whole", "num_held_out", "num_too_long")
    extra_info = {name: row["extra_info"][name] for name in names}
    columns: dict[str, Column] = {
        **{name: [row[name]] * size for name in ("uid", "data_source", "reward_model")},
        "extra_info": [extra_info] * size,
        "prompts": prompts,
        "responses": responses,
        "response_mask": mask,
        "loss_mask": mask,
        "input_ids": JoinedColumn(prompts, responses),
        "position_ids": PackedColumn.positions(prompt_lengths + lengths),
        "rollout_log_probs": PackedColumn("tokens", torch.from_numpy(log_probs), lengths, torch.float32),
        "rm_scores": PackedColumn(
            "last", torch.tensor([one.reward for one in rewards], dtype=torch.float32), lengths, torch.float32
        ),
        "num_turns": torch.full((size,), 2),
        "extra_fields": [{"reward_extra_info": one.details} for one in rewards],
    }
    keys = [str(SampleKey(row["uid"], number)) for number in range(size)]
    tags = {
        key: {
            "status": "success",
            "prompt_len": len(prompt_ids),
            "response_len": length,
            "seq_len": len(prompt_ids) + length,
            "global_steps": step,
            "min_global_steps": group.version,
            "max_global_steps": group.version,
        }
        for key, length in zip(keys, lengths.tolist(), strict=True)
    }
    return SampleBlock(keys, columns), tags


def _as_list(column: Any) -> list[Any]:
    """Return a tensordict's column of objects as a list."""
    return column.tolist() if hasattr(column, "tolist") else list(column)


def _constant(batch: TensorDict, name: str, default: Any) -> Any:
    return getattr(batch[name], "data", batch[name]) if name in batch else default
