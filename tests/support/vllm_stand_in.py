"""A stand-in for vLLM's model of a Llama, with fused and split parameters and a loader that finds their parts."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PADDED_VOCABULARY = 16
HALF = 4


def llama_actor(*, tied: bool = False, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))


class VllmModel(nn.Module):
    """The parameters of a Llama as vLLM has them on one rank of two, in bf16, with norms in fp32.

    Projections are fused and hold half of the outputs, or of the inputs. The vocabulary is padded, and tied embeddings
    are one parameter.

    Args:
        tied: Whether the embeddings are tied.
        rank: The rank, 0 or 1.
    """

    def __init__(self, *, tied: bool = False, rank: int = 1):
        super().__init__()
        self.rank = rank
        self.num_loads = 0
        self.tied = tied
        self.parameters_by_name = nn.ParameterDict()
        for layer in range(SIZES["num_hidden_layers"]):
            self._add(f"{layer}.qkv", 8, 8)
            self._add(f"{layer}.gate_up", 12, 8)
            self._add(f"{layer}.o", 8, HALF)
            self._add(f"{layer}.down", 8, 6)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                self._add(f"{layer}.{norm}", 8, dtype=torch.float32)
        self._add("norm", 8, dtype=torch.float32)
        for name in ("embed", *(() if tied else ("lm_head",))):
            self._add(name, PADDED_VOCABULARY, 8)

    def _add(self, name: str, *size: int, dtype: torch.dtype = torch.bfloat16) -> None:
        random = torch.randn(size).to(dtype)
        self.parameters_by_name[name.replace(".", "_")] = nn.Parameter(random, requires_grad=False)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.num_loads += 1
        for name, weight in weights:
            if not (self.tied and name == "lm_head.weight"):
                self.load_weight(name, weight)

    def load_weight(self, name: str, weight: Tensor) -> None:
        parts = name.split(".")
        if len(parts) < 4:
            short = {"embed_tokens": "embed", "lm_head": "lm_head", "norm": "norm"}[parts[-2]]
            parameter = self.parameters_by_name[short]
            parameter[: len(weight)].data.copy_(weight)
            parameter[len(weight) :].data.fill_(0)
            return
        layer, module = parts[2], parts[-2]
        rows = {"q_proj": ("qkv", 0, 4), "k_proj": ("qkv", 4, 2), "v_proj": ("qkv", 6, 2)}
        rows |= {"gate_proj": ("gate_up", 0, 6), "up_proj": ("gate_up", 6, 6)}
        if module in rows:
            fused, start, num_rows = rows[module]
            own = weight.narrow(0, self.rank * num_rows, num_rows)
            self.parameters_by_name[f"{layer}_{fused}"].data.narrow(0, start, num_rows).copy_(own)
        elif module in ("o_proj", "down_proj"):
            parameter = self.parameters_by_name[f"{layer}_{module.removesuffix('_proj')}"]
            parameter.data.copy_(weight.narrow(1, self.rank * parameter.shape[1], parameter.shape[1]))
        else:
            self.parameters_by_name[f"{layer}_{module}"].data.copy_(weight)

    def values(self) -> dict[str, Tensor]:
        return {name: parameter.clone() for name, parameter in self.named_parameters()}


def replacing(model: VllmModel) -> Callable[[], None]:
    """Return a process that puts a parameter into other memory."""

    def process() -> None:
        model.parameters_by_name["norm"].data = model.parameters_by_name["norm"].data.clone()

    return process
