"""Rollouts: prompts to vLLM in groups, completions judged as they come, all of it handed to verl's trainer.

Stands in for verl's agent loop (`rollout.agent.agent_loop_manager_class`), which runs a task, several remote calls and
writes for every completion, in processes of its own. Here one request generates a group, and finished groups are
written together. It runs inside the trainer's process, on a thread that works while the trainer waits.
"""

import asyncio
import threading
import uuid
from collections.abc import Mapping
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.utils.tokenizer import hf_tokenizer

from rgtrain.problems import load_entry, render_prompt
from rgtrain.verl_plugin.rewards import Rewards
from rgtrain.verl_plugin.vllm_server import Group


class GroupRollout:
    """verl's agent loop manager: `generate_sequences` starts a batch and returns, results go to verl's queue."""

    @classmethod
    def create(cls, *, config: Any, llm_client: list[Any], **_: Any) -> "GroupRollout":
        """As verl calls it; `llm_client` are the vLLM servers' handles, from our trainer."""
        return cls(OmegaConf.to_container(config, resolve=True), servers=llm_client)

    def __init__(self, config: Mapping[str, Any], *, servers: list[Any]):
        self._rollout = config["actor_rollout_ref"]["rollout"]
        self._template_kwargs = config["data"].get("apply_chat_template_kwargs") or {}
        self._tokenizer = hf_tokenizer(config["actor_rollout_ref"]["model"]["path"])
        self._servers = servers
        # Ends with this process: verl does not tell a manager that it is done.
        self._rewards = Rewards(config["reward"], max_tokens=config["data"]["max_response_length"]).__enter__()
        self._failures: list[BaseException] = []
        self._finished: list[dict[str, Any]] = []
        self._writing = False
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="rollout").start()

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Start generating completions for every prompt; returns at once."""
        names = ("uid", "raw_prompt", "data_source", "extra_info", "reward_model")
        columns = {name: as_list(prompts[name]) for name in names}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        validate = bool(_constant(prompts, "validate", False))
        step = int(_constant(prompts, "global_steps", 0))
        asyncio.run_coroutine_threadsafe(self._generate_all(rows, validate=validate, step=step), self._loop)

    def raise_failures(self) -> None:
        """Raise what went wrong since the last call, if anything: verl itself would go on with what is left."""
        if self._failures:
            failures, self._failures = self._failures, []
            raise RuntimeError(f"{len(failures)} rollout groups failed; the first because of: {failures[0]!r}") from (
                failures[0]
            )

    async def _generate_all(self, rows: list[dict[str, Any]], *, validate: bool, step: int) -> None:
        tasks = []
        for number, row in enumerate(rows):
            server = self._servers[number % len(self._servers)]
            tasks.append(asyncio.create_task(self._generate(row, server, validate=validate, step=step)))
            # The request leaves before the next prompt is rendered.
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    async def _generate(self, row: dict[str, Any], server: Any, *, validate: bool, step: int) -> None:
        partition = "val" if validate else "train"
        try:
            prompt_ids = render_prompt(row["raw_prompt"], self._tokenizer, **self._template_kwargs)
            group: Group = await server.generate_group.remote(prompt_ids, uuid.uuid4().hex, self._sampling(validate))
            texts = self._tokenizer.batch_decode(group.responses, skip_special_tokens=True)
            entry = load_entry(row["extra_info"]["entry"])
            rewards = await self._rewards.of(texts, [len(response) for response in group.responses], entry)
            samples = _samples(row, prompt_ids, group, rewards, step=step)
        except BaseException as failure:
            self._failures.append(failure)
            samples = []
        self._finished.append({"uid": row["uid"], "partition": partition, "samples": samples})
        if not self._writing:
            await self._write()

    def _sampling(self, validate: bool) -> dict[str, Any]:
        source = self._rollout["val_kwargs"] if validate else self._rollout
        return {
            "n": source["n"],
            "temperature": source["temperature"],
            "top_p": source["top_p"],
            "top_k": source["top_k"],
        }

    async def _write(self) -> None:
        """Hand over finished groups, those that finish meanwhile in the next turn."""
        self._writing = True
        try:
            while self._finished:
                finished, self._finished = self._finished, []
                await asyncio.to_thread(_put, finished)
        finally:
            self._writing = False


def _put(groups: list[dict[str, Any]]) -> None:
    """Write groups' samples, and only then that the groups are finished: the trainer reads them at once."""
    for partition in {group["partition"] for group in groups}:
        members = [group for group in groups if group["partition"] == partition]
        samples = [sample for group in members for sample in group["samples"]]
        if samples:
            tq.kv_batch_put(
                keys=[sample["key"] for sample in samples],
                fields=list_of_dict_to_tensordict([sample["fields"] for sample in samples]),
                tags=[sample["tag"] for sample in samples],
                partition_id=partition,
            )
        tags = [{"status": "finished" if group["samples"] else "failure"} for group in members]
        tq.kv_batch_put(keys=[group["uid"] for group in members], tags=tags, partition_id=partition)


def _samples(
    row: Mapping[str, Any],
    prompt_ids: list[int],
    group: Group,
    rewards: list[tuple[float, dict[str, float]]],
    *,
    step: int,
) -> list[dict[str, Any]]:
    """What verl's trainer reads of each completion: a key, fields and tags in the layout of its agent loop."""
    prompt = torch.tensor(prompt_ids)
    # Without the entry and the messages: nobody reads them again, and every column costs at every hand-over.
    kept = {name: row[name] for name in ("uid", "data_source", "reward_model")}
    kept["extra_info"] = {name: value for name, value in row["extra_info"].items() if name != "entry"}
    samples = []
    for number, (reward, details) in enumerate(rewards):
        response = torch.tensor(group.responses[number])
        mask = torch.ones_like(response)
        score = torch.zeros(len(response))
        score[-1] = reward
        num_tokens = len(prompt) + len(response)
        fields = {
            **kept,
            "prompts": prompt,
            "responses": response,
            "response_mask": mask,
            "loss_mask": mask,
            "input_ids": torch.cat([prompt, response]),
            "position_ids": torch.arange(num_tokens),
            "rollout_log_probs": torch.tensor(group.log_probs[number]),
            "rm_scores": score,
            "num_turns": 2,
            "extra_fields": {"reward_extra_info": details},
        }
        tag = {
            "status": "success",
            "prompt_len": len(prompt),
            "response_len": len(response),
            "seq_len": num_tokens,
            "global_steps": step,
            "min_global_steps": group.version,
            "max_global_steps": group.version,
        }
        samples.append({"key": f"{row['uid']}_{number}_0", "fields": fields, "tag": tag})
    return samples


def as_list(column: Any) -> list[Any]:
    """A column of objects: a tensordict stack or a list already, by what TransferQueue's storage made of it."""
    return column.tolist() if hasattr(column, "tolist") else list(column)


def _constant(batch: TensorDict, name: str, default: Any) -> Any:
    return getattr(batch[name], "data", batch[name]) if name in batch else default
