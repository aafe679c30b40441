"""An engine for evaluations that needs no model: it decodes one token of each completion per step."""

import os
import time
from types import SimpleNamespace

from rgtrain.evaluation.vllm_engine import VllmEngine, VllmSettings

MAX_NUM_SEQS = 4


class ScriptedEngine(VllmEngine):
    """Completes each prompt with as many tokens as its first token id says, and dies if that is 0.

    The text of a completion has the number of its process, its seed, and the number of completions that the engine
    held together.

    Args:
        settings: The dtype is "seeds" if the engine gives prompts their own seeds.
    """

    def __init__(self, settings: VllmSettings):
        self.max_num_seqs = MAX_NUM_SEQS
        self.seeds_prompts = settings.dtype == "seeds"
        self._seed = settings.seed
        self.llm = SimpleNamespace(llm_engine=self)
        self._num_requests = 0
        self._num_left: dict[str, list[int]] = {}
        self._seeds: dict[str, int | None] = {}

    def close(self) -> None:
        """Do nothing."""

    def _submit(self, numbered, sampling):
        names = []
        for _, prompt, seed in numbered:
            names.append(str(self._num_requests))
            self._num_requests += 1
            self._num_left[names[-1]] = [prompt.token_ids[0]] * prompt.num_samples
            self._seeds[names[-1]] = seed
        return names

    def has_unfinished_requests(self) -> bool:
        return bool(self._num_left)

    def get_num_unfinished_requests(self) -> int:
        return sum(map(len, self._num_left.values()))

    def step(self):
        time.sleep(0.002)
        num_together = self.get_num_unfinished_requests()
        outputs = []
        for name, lengths in list(self._num_left.items()):
            if not all(lengths):
                os._exit(3)
            self._num_left[name] = [length - 1 for length in lengths]
            if not any(self._num_left[name]):
                del self._num_left[name]
                seed = self._seeds.pop(name)
                texts = [
                    f"{os.getpid()} {None if seed is None else seed + index} {num_together}"
                    for index in range(len(lengths))
                ]
                outputs.append(
                    SimpleNamespace(
                        request_id=name,
                        finished=True,
                        outputs=[SimpleNamespace(text=text, token_ids=[1], finish_reason="stop") for text in texts],
                    )
                )
        return outputs
