"""Rebuild a tokenizer from the metadata of a GGUF file.

transformers converts it by the model's family and ignores the name of the pre-tokenizer, so that the numbers of a
Llama 3 model, among others, are split in another way than in training. Here the named rule decides, as in llama.cpp.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rgtrain.checkpoints.gguf.gguf_file import GgufFile
from rgtrain.checkpoints.untrusted_files import quoted
from rgtrain.errors import ConfigError

_SPACE = "▁"
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_MAX_TEMPLATE_CHARACTERS = 1_000_000
_NAMED_TEMPLATE = re.compile(r"tokenizer\.chat_template\.([\w.-]{1,64})", re.ASCII)
_SENTINEL = "rgtrain-answer"
# Control tokens that always end a generation in llama.cpp.
_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>")

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_WORDS}|\p{{N}}|{_REST}"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split_by(pattern: str) -> Callable[[], Any]:
    def make() -> Any:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    return make


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> Any:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


# The names are llama.cpp's. Rules that only other families use are left out.
PRE_TOKENIZERS: Mapping[str, Callable[[], Any]] = {
    "deepseek-r1-qwen": _split_by(_QWEN2),
    "gpt-2": _gpt2,
    "llama-bpe": _split_by(_LLAMA3),
    "llama-v3": _split_by(_LLAMA3),
    "llama3": _split_by(_LLAMA3),
    "megrez": _split_by(_QWEN2),
    "qwen2": _split_by(_QWEN2),
    "refact": _single_digits,
    "smaug-bpe": _split_by(_LLAMA3),
    "smollm": _single_digits,
    "stablelm2": _split_by(_QWEN2),
    "starcoder": _single_digits,
    "tekken": _split_by(_TEKKEN),
}
# Files from before the pre-tokenizer was named.
_BY_ARCHITECTURE = {
    **dict.fromkeys(("qwen2", "qwen2moe", "qwen3", "qwen3moe"), "qwen2"),
    "starcoder2": "starcoder",
}
# A whole word that is a token stays one, even if no merges lead to it.
_IGNORE_MERGES = frozenset({"llama-bpe", "llama-v3", "llama3", "tekken"})
_ADDS_BEGIN = _IGNORE_MERGES
# Only Llama 3 has this token there. Its early conversions name no rule.
_LLAMA3_BEGIN = ("<|begin_of_text|>", 128_000)


def build_tokenizer(file: GgufFile, *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a GGUF file, with its chat template.

    Its `eos_token` is the token that ends a turn, which trainers and engines wait for.

    Args:
        file: The file.
        vocab_size: The number of rows of the embedding.

    Returns:
        The tokenizer.

    Raises:
        ConfigError: The tokenizer is of an unknown kind, or its lists contradict each other.
    """
    tokens = file.items("tokenizer.ggml.tokens", str)
    if not 0 < len(tokens) <= vocab_size:
        _refuse(file, f"has {len(tokens)} tokens for {vocab_size} rows of the embedding")
    kinds = file.items("tokenizer.ggml.token_type", int) or [1] * len(tokens)
    if len(kinds) != len(tokens):
        _refuse(file, f"has {len(tokens)} tokens and {len(kinds)} types of tokens")
    tokens = _unique(tokens)
    match file.text("tokenizer.ggml.model"):
        case "gpt2":
            tokenizer, adds_begin = _byte_level(file, tokens)
        case "llama":
            tokenizer, adds_begin = _sentencepiece(file, tokens)
        case other:
            _refuse(file, f"has a tokenizer of the kind {quoted(other)}; 'gpt2' and 'llama' are converted")
    added = [
        AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) and token
    ]
    tokenizer.add_tokens(added)
    names = {name: _token(file, tokens, name) for name in ("bos", "eos", "unknown", "padding")}
    templates = _chat_templates(file)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=names["bos"],
        eos_token=names["eos"],
        unk_token=names["unknown"],
        pad_token=names["padding"],
        clean_up_tokenization_spaces=False,
        model_max_length=file.integer(f"{file.text('general.architecture')}.context_length") or 2048,
        chat_template=templates,
    )
    special = {token for token, kind in zip(tokens, kinds, strict=True) if kind in (_CONTROL, _USER_DEFINED)}
    end = _end_of_turn(fast, special) or _token(file, tokens, "eot")
    # Files without a template are of base models, whose text ends with their own eos.
    if end is None and names["eos"] is None:
        end = next((token for token in _ENDS if token in special), None)
    fast.eos_token = end or names["eos"]
    if fast.eos_token is None:
        _refuse(file, "names no token that ends a text")
    # A distinct padding token, so that a trainer that masks padding does not mask the end of the turn too.
    if fast.pad_token is None:
        fast.pad_token = names["eos"] or fast.eos_token
    _add_begin_and_end(file, fast.backend_tokenizer, tokens, names, adds_begin=adds_begin)
    return fast


def end_token_ids(file: GgufFile, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids of the tokens that end a generation: the end of the turn, then the file's other ends."""
    ids = [tokenizer.eos_token_id]
    ids += [file.integer(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    ids += [special.get(name) for name in _ENDS]
    return [token for token in dict.fromkeys(ids) if token is not None and 0 <= token < len(tokenizer)]


def _byte_level(file: GgufFile, tokens: Sequence[str]) -> tuple[Tokenizer, bool]:
    name = file.text("tokenizer.ggml.pre", "default")
    if name == "default":
        name = _BY_ARCHITECTURE.get(file.text("general.architecture"), name)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if name == "default" and vocabulary.get(_LLAMA3_BEGIN[0]) == _LLAMA3_BEGIN[1]:
        name = "llama-bpe"
    if name not in PRE_TOKENIZERS:
        _refuse(
            file,
            f"has the pre-tokenizer {quoted(name)}, whose rule is unknown here, so numbers or words could be split "
            f"otherwise than in training; known are {', '.join(sorted(PRE_TOKENIZERS))}",
        )
    merges = [tuple(merge.split(" ", 1)) for merge in file.items("tokenizer.ggml.merges", str)]
    if not merges or not all(
        len(merge) == 2 and merge[0] in vocabulary and merge[1] in vocabulary and merge[0] + merge[1] in vocabulary
        for merge in merges
    ):
        _refuse(file, "has no list of merges, or one that does not fit its tokens")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False, ignore_merges=name in _IGNORE_MERGES))
    if name in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[name]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, file.flag("tokenizer.ggml.add_bos_token", name in _ADDS_BEGIN)


def _sentencepiece(file: GgufFile, tokens: Sequence[str]) -> tuple[Tokenizer, bool]:
    scores = file.items("tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        _refuse(file, f"has {len(tokens)} tokens and {len(scores)} scores")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    # Sentencepiece joins the pair whose result has the best score. Each way to make a token is a merge of that rank.
    pairs = [
        (-scores[number], vocabulary[token[:cut]], vocabulary[token[cut:]], (token[:cut], token[cut:]))
        for token, number in vocabulary.items()
        if len(token) <= 64
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    merges = [pair for *_, pair in sorted(pairs)]
    unknown = _token(file, tokens, "unknown")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    adds_space = file.flag("tokenizer.ggml.add_space_prefix", True)
    replace = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace]) if adds_space else replace
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * adds_space)
    return tokenizer, file.flag("tokenizer.ggml.add_bos_token", True)


def _add_begin_and_end(
    file: GgufFile,
    tokenizer: Tokenizer,
    tokens: Sequence[str],
    names: Mapping[str, str | None],
    *,
    adds_begin: bool,
) -> None:
    begin = names["bos"] if adds_begin else None
    end = names["eos"] if file.flag("tokenizer.ggml.add_eos_token", False) else None
    numbers = {token: number for number, token in enumerate(tokens)}
    if begin or end:
        first, second = ([token for token in (begin, text, end) if token] for text in ("$A:0", "$B:1"))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=first,
            pair=[*first, *second],
            special_tokens=[(token, numbers[token]) for token in {begin, end} if token],
        )


def _chat_templates(file: GgufFile) -> Any:
    """Return the chat template, or all by name if there are several; None without one."""
    default = file.text("tokenizer.chat_template")
    named = {found[1]: file.text(key) for key in file.metadata if (found := _NAMED_TEMPLATE.fullmatch(key)) is not None}
    if any(len(text) > _MAX_TEMPLATE_CHARACTERS for text in (default, *named.values())):
        _refuse(file, f"has a chat template of more than {_MAX_TEMPLATE_CHARACTERS} characters")
    if named:
        return {"default": default, **named} if default else named
    return default or None


def _end_of_turn(tokenizer: PreTrainedTokenizerFast, special: set[str]) -> str | None:
    """Return the special token that the chat template writes behind an answer; None if it writes none."""
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _SENTINEL}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # A template is code of the file's author. Without its help, the metadata decide.
        return None
    _, found, rest = text.partition(_SENTINEL)
    rest = rest.lstrip()
    return (
        max((token for token in special if token and rest.startswith(token)), key=len, default=None) if found else None
    )


def _token(file: GgufFile, tokens: Sequence[str], name: str) -> str | None:
    number = file.integer(f"tokenizer.ggml.{name}_token_id")
    if number is None:
        return None
    if not 0 <= number < len(tokens):
        _refuse(file, f"has the {name} token {number}, but only {len(tokens)} tokens")
    return tokens[number]


def _unique(tokens: Sequence[str]) -> list[str]:
    """Return `tokens`, with a number behind those that occur before, so that each keeps its own id."""
    found: set[str] = set()
    unique = []
    for number, token in enumerate(tokens):
        name = f"{token}<{number}>" if token in found else token
        found.add(name)
        unique.append(name)
    return unique


def _refuse(file: GgufFile, what: str) -> NoReturn:
    raise ConfigError(f"{str(file.paths[0])!r} {what}: convert the model again, or give another file")
