"""Convert a GGUF file to a Hugging Face model folder, and check the folder by loading it and generating from it."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map
from transformers.utils.logging import disable_progress_bar

from rgtrain.checkpoints.export.output_folder import atomic_folder, check_output, check_space
from rgtrain.checkpoints.gguf.gguf_config import EMBEDDING, OUTPUT, ROPE_TENSORS, family_of, model_config, tied_tensor
from rgtrain.checkpoints.gguf.gguf_file import GgufFile, open_gguf, unreadable_types
from rgtrain.checkpoints.gguf.gguf_tokenizer import build_tokenizer, end_token_ids
from rgtrain.checkpoints.hugging_face import TOKENIZER_CONFIG
from rgtrain.checkpoints.shards.tensors import single_torch_thread
from rgtrain.checkpoints.untrusted_files import first_line, printable, quiet_libraries, quoted
from rgtrain.errors import ConfigError, choose_from

GGUF_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_MAX_SHARD_SIZE = "5GB"
# Text that any language model finds likelier than random tokens.
_SENTENCE = "The capital of France is Paris. Two plus two is four, and the sun rises in the east."
_QUESTION = "What is 2 + 2?"
_NUM_GENERATED = 8
_MAX_LISTED = 5
# A model whose heads are in the wrong order is as surprised by text as one of random numbers.
_MAX_SHARE_OF_UNIFORM = 0.7


def convert_gguf(
    path: Path, output_dir: Path, *, dtype: str = "bf16", force: bool = False, say: Callable[[str], None]
) -> Path:
    """Write the model in a GGUF file as a Hugging Face folder.

    Quantised values are dequantised, so the folder holds the numbers that llama.cpp computes with, rounded to `dtype`.
    The folder is loaded again: its logits must equal those of the file's tensors, and a few tokens are generated.

    Args:
        path: The file, or any part of a split one.
        output_dir: A new or empty folder.
        dtype: The type of the written weights, a key of GGUF_DTYPES.
        force: Whether `output_dir` may be a model folder, which is replaced.
        say: Receives a line for each thing that a user should know.

    Returns:
        `output_dir`.

    Raises:
        ConfigError: The file is damaged, of an unknown family, or does not fit the family, or the folder can't be
            written. Nothing is written then.
    """
    if dtype not in GGUF_DTYPES:
        raise ConfigError(f"unknown dtype {quoted(dtype)}; {choose_from(dtype, GGUF_DTYPES)}")
    check_output(output_dir, force=force, sources=(path,))
    file = open_gguf(path)
    values = model_config(file)
    if names := unreadable_types(file.tensors.values()):
        raise ConfigError(
            f"{str(path)!r} holds tensors of type {', '.join(names)}, which can't be dequantised here: give the model "
            "in another quantisation, such as Q8_0 or F16"
        )
    num_values = sum(tensor.num_values for tensor in file.tensors.values())
    check_space(output_dir, num_values * GGUF_DTYPES[dtype].itemsize)
    disable_progress_bar()
    with quiet_libraries():
        tokenizer = build_tokenizer(file, vocab_size=values["vocab_size"])
        model = _load_model(file, values, tokenizer, dtype=GGUF_DTYPES[dtype])
        with atomic_folder(output_dir, force=force) as folder:
            model.save_pretrained(folder, max_shard_size=_MAX_SHARD_SIZE)
            _save_tokenizer(tokenizer, folder)
            try:
                lines = _check(folder, model, tokenizer, dtype=GGUF_DTYPES[dtype])
            except (RuntimeError, IndexError, TypeError) as error:
                raise ConfigError(
                    f"the model in {str(path)!r} can't be computed ({first_line(error)}): download or convert it again"
                ) from None
    for line in lines:
        say(line)
    tied = tied_tensor(file)
    if tied == OUTPUT or (tied and OUTPUT in file.tensors):
        say(f"output layer: tied to the embedding, both from {tied}, the more precise of two copies in the file")
    say(f"ends of a generation: {', '.join(map(repr, tokenizer.convert_ids_to_tokens(_end_ids(model))))}")
    return output_dir


def _load_model(
    file: GgufFile, values: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, *, dtype: torch.dtype
) -> PreTrainedModel:
    ends = end_token_ids(file, tokenizer)
    try:
        config = AutoConfig.for_model(
            **values,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=ends[0],
            pad_token_id=tokenizer.pad_token_id,
            dtype=dtype,
        )
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # Configurations and layers reject impossible values by errors of many kinds.
        raise ConfigError(
            f"{str(file.paths[0])!r} has metadata that {values['model_type']} models can't have "
            f"({first_line(error.__cause__ or error)}): download or convert it again"
        ) from None
    weights = _weights(file, values, empty, dtype=dtype)
    model_class = type(empty)
    model, loading = model_class.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
    )
    if wrong := sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]])):
        raise ConfigError(f"{str(file.paths[0])!r} can't be loaded as {values['model_type']}: {_listed(wrong)} differ")
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    return model.eval()


def _weights(
    file: GgufFile, values: Mapping[str, Any], empty: PreTrainedModel, *, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return every weight of `empty` by name, from the file's tensors. Raise ConfigError unless they fit exactly."""
    processor = TENSOR_PROCESSORS.get(file.text("general.architecture"), TensorProcessor)(config=dict(values))
    names = get_gguf_hf_weights_map(empty, processor)
    tied = tied_tensor(file)
    known = set(names) | {f"{name}.weight" for name in names if name.endswith("_exps")}
    if unknown := sorted(set(file.tensors) - known - set(ROPE_TENSORS)):
        raise ConfigError(
            f"{str(file.paths[0])!r} holds {len(unknown)} tensors that a {family_of(file).model_type} model of "
            f"transformers lacks, such as {_listed(unknown)}: it is of a variant that can't be converted"
        )
    # The processors of experts put their tensors here.
    parsed: dict[str, dict[str, torch.Tensor]] = {"tensors": {}}
    for name, tensor in tqdm(file.tensors.items(), unit="tensor", desc="dequantising", disable=None):
        if name in ROPE_TENSORS or (tied and name in (EMBEDDING, OUTPUT) and name != tied):
            continue
        read = tensor.read()
        try:
            done = processor.process(read, name, tensor_key_mapping=names, parsed_parameters=parsed)
        except (ValueError, IndexError, RuntimeError) as error:
            raise ConfigError(
                f"{str(file.paths[0])!r} has a tensor {quoted(name)} of shape {list(tensor.shape)}, which does not fit "
                f"its metadata ({first_line(error)}): download or convert it again"
            ) from None
        if done.name is not None:
            target = names[EMBEDDING if name == tied else done.name]
            parsed["tensors"][target] = torch.from_numpy(done.weights.copy())
        # Experts arrive in two halves; the second is converted when it is copied beside the first.
        parsed["tensors"] = {target: value.to(dtype) for target, value in parsed["tensors"].items()}
    weights = {name: value.contiguous() for name, value in parsed["tensors"].items()}
    wanted = {name: tuple(value.shape) for name, value in empty.state_dict().items()}
    if tied:
        wanted.pop("lm_head.weight")
    for name, shape in wanted.items():
        if name not in weights:
            raise ConfigError(
                f"{str(file.paths[0])!r} lacks the tensor of {quoted(name)}: download or convert it again"
            )
        if tuple(weights[name].shape) != shape:
            raise ConfigError(
                f"{str(file.paths[0])!r} gives {quoted(name)} the shape {list(weights[name].shape)}, but its metadata "
                f"imply {list(shape)}: download or convert it again"
            )
        if not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(weights[name])):
            raise ConfigError(
                f"{str(file.paths[0])!r} gives {quoted(name)} values that are not finite in {dtype}: choose "
                "another --dtype, or download the file again"
            )
    return {name: weights[name] for name in wanted}


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / TOKENIZER_CONFIG
    content = json.loads(path.read_text(encoding="utf-8"))
    # transformers 5 writes a name that earlier versions and other loaders don't know.
    content["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, dtype: torch.dtype
) -> list[str]:
    """Load `folder`, compare its tokens and logits with those of `model`, and generate a few tokens.

    Returns:
        The findings, in lines.

    Raises:
        ConfigError: They differ.
    """
    loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ids = tokenizer(_SENTENCE)["input_ids"]
    if loaded(_SENTENCE)["input_ids"] != ids or loaded.eos_token_id != tokenizer.eos_token_id:
        raise ConfigError("the written tokenizer differs from the file's: this model can't be converted")
    inputs = torch.tensor([ids])
    with torch.inference_mode(), single_torch_thread():
        expected = model(inputs).logits
        reloaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).eval()
        logits = reloaded(inputs).logits
        difference = float((logits - expected).abs().max())
        # The same numbers on the same machine; only another layout of a tensor may change the last bits.
        if not difference <= 1e-2 * float(expected.abs().max()):
            raise ConfigError(
                f"the written model's logits differ from the file's by {difference:.3g}: it is not usable"
            )
        log_probs = torch.log_softmax(logits[0, :-1].float(), dim=-1)
        surprise = -float(log_probs[range(len(ids) - 1), ids[1:]].mean())
        prompt = _prompt(loaded)
        generated = reloaded.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=_NUM_GENERATED,
            do_sample=False,
        )[0, len(prompt) :]
    uniform = math.log(model.config.vocab_size)
    lines = [
        f"checked that logits of the written folder equal the file's (largest difference {difference:.3g}); "
        f"{surprise:.2f} nats per token of English text, of {uniform:.2f} for random tokens",
        f"generated, greedily: {printable(repr(loaded.decode(generated)), max_characters=120)}",
    ]
    if surprise > _MAX_SHARE_OF_UNIFORM * uniform:
        lines.append(
            "warning: the model finds English text as unlikely as random tokens; is it trained on another text?"
        )
    return lines


def _prompt(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    try:
        messages = [{"role": "user", "content": _QUESTION}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) or [tokenizer.eos_token_id]
    except Exception:  # There is no template, or its author's code fails.
        return list(tokenizer(_QUESTION)["input_ids"])


def _end_ids(model: PreTrainedModel) -> list[int]:
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(map(quoted, names[:_MAX_LISTED])) + more
