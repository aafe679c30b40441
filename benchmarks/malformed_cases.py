"""Ways to damage a sound checkpoint, by family, for malformed_checkpoints.py and the tests."""

import json
import os
import pickle
import shutil
import socket
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.distributed.tensor import DTensor, Partial, Shard
from transformers import LlamaConfig, PreTrainedTokenizerFast

from rgtrain.checkpoints.shards.random_checkpoints import mesh_of_rank, rank_file, write_random_checkpoint

SECRET = "canary5e0b77"
# If code in the checkpoint runs, it makes a file of this name outside of the checkpoint.
MARKER = "ran"
STEP = "checkpoints/global_step_20"
HEAD = "lm_head.weight"
GIGABYTE = 2**30

Spoil = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Case:
    """A damaged checkpoint: `spoil` changes a copy of the sound run `base`, given the copy and a folder outside."""

    family: str
    name: str
    spoil: Spoil
    base: str = "plain"
    given: str = "run"
    options: tuple[str, ...] = ()
    weights: str = "model.safetensors"
    must_be_refused: bool = False


CASES: list[Case] = []


def add(family: str, name: str, spoil: Spoil, **options: Any) -> None:
    CASES.append(Case(family, name, spoil, **options))


# The sound runs.


def write_sound_runs(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Write the sound runs, and return the tensors that each run's export must contain."""
    sharded = folder / "sharded"
    actor = write_random_checkpoint(sharded / STEP, _config(), world_size=2)
    _tokenizer().save_pretrained(actor / "huggingface")
    _write_run_files(sharded)
    ranks = [torch.load(rank_file(actor, 2, rank), weights_only=True) for rank in range(2)]
    tensors = {name: torch.cat([rank[name].to_local() for rank in ranks]) for name in ranks[0]}
    for name, factors in {"plain": {}, "adapter": _factors()}.items():
        shutil.copytree(sharded, folder / name)
        target = folder / name / STEP / "actor"
        for rank in range(2):
            rank_file(target, 2, rank).unlink()
        (target / "fsdp_config.json").write_text('{"world_size": 1}')
        torch.save(tensors | factors, rank_file(target, 1, 0))
    (folder / "adapter" / STEP / "actor" / "lora_train_meta.json").write_text('{"r": 2, "lora_alpha": 4}')
    merged = dict(tensors)
    down, up = (factor.float() for factor in _factors().values())
    merged["model.layers.0.mlp.up_proj.weight"] = merged["model.layers.0.mlp.up_proj.weight"] + 2.0 * (up @ down)
    alone = folder / "adapter alone"
    shutil.copytree(folder / "adapter", alone)
    torch.save(_factors(), only_rank(alone))
    save_file(tensors, hf(alone) / "model.safetensors")
    return {"sharded": tensors, "plain": tensors, "adapter": merged, "adapter alone": merged}


def _config() -> LlamaConfig:
    sizes = {"vocab_size": 33, "hidden_size": 24, "intermediate_size": 5, "num_hidden_layers": 2}
    return LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)


def _factors() -> dict[str, torch.Tensor]:
    prefix = "base_model.model.model.layers.0.mlp.up_proj"
    down = torch.arange(48.0).reshape(2, 24) / 64
    return {f"{prefix}.lora_A.default.weight": down, f"{prefix}.lora_B.default.weight": torch.ones(5, 2) / 4}


def _tokenizer() -> PreTrainedTokenizerFast:
    words = ["<unk>", *(str(number) for number in range(32))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", chat_template="{{ messages }}")


def _write_run_files(run: Path) -> None:
    (run / "config.yaml").write_text(json.dumps({"trainer": {"total_training_steps": 40}, "seed": 7}))
    (run / "metrics.jsonl").write_text('{"step": 20, "val-core/gcd/acc/mean@1": 0.25}\n')


# Places in a run.


def actor_of(run: Path) -> Path:
    return run / STEP / "actor"


def hf(run: Path) -> Path:
    return actor_of(run) / "huggingface"


def only_rank(run: Path) -> Path:
    return rank_file(actor_of(run), 1, 0)


def writes(place: Callable[[Path], Path], content: str | bytes) -> Spoil:
    """Write `content` into the file at `place`."""

    def spoil(run: Path, outside: Path) -> None:
        place(run).unlink(missing_ok=True)
        place(run).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))

    return spoil


def grows(place: Callable[[Path], Path], num_bytes: int) -> Spoil:
    """Extend the file at `place` to `num_bytes` as a sparse file."""

    def spoil(run: Path, outside: Path) -> None:
        with place(run).open("ab") as file:
            file.truncate(num_bytes)

    return spoil


# File names and folders.


def _renames(name: str, *, keep: bool = False) -> Spoil:
    def spoil(run: Path, outside: Path) -> None:
        shutil.copy(only_rank(run), actor_of(run) / name)
        if not keep:
            only_rank(run).unlink()
        (actor_of(run) / "fsdp_config.json").unlink()

    return spoil


for _name in (
    "model_world_size_1000000000_rank_0.pt",
    "model_world_size_1000000000_rank_999999999.pt",
    "model_world_size_0_rank_0.pt",
    "model_world_size_1_rank_1.pt",
    "model_world_size_01_rank_00.pt",
    "model_world_size_-1_rank_0.pt",
    f"model_world_size_{'9' * 200}_rank_0.pt",
    "model_world_size_\u0661_rank_\u0660.pt",
    "model_world_size_1_rank_0.pt\n.pt",
    "model_world_size_1_rank_0.PT",
):
    add("names of rank files", repr(_name)[:60], _renames(_name), must_be_refused=True)
for _name in ("model_world_size_2_rank_0.pt", "model_world_size_1_rank_00.pt", "model_world_size_1_rank_5.pt"):
    add("names of rank files", f"{_name} beside the right one", _renames(_name, keep=True))
add("names of rank files", "no rank file", lambda run, outside: only_rank(run).unlink(), must_be_refused=True)
add("names of rank files", "one of two ranks", lambda run, _: rank_file(actor_of(run), 2, 0).unlink(), base="sharded")
add(
    "names of rank files",
    "one rank under two names",
    lambda run, _: shutil.copy(rank_file(actor_of(run), 2, 0), rank_file(actor_of(run), 2, 1)) and None,
    base="sharded",
    must_be_refused=True,
)
add(
    "names of rank files", "a step of 200 digits", lambda run, _: (run / f"checkpoints/global_step_{'9' * 200}").mkdir()
)

# fsdp_config.json

for _content in (
    *("", "no", "[]", "null", "{}", '{"world_size": "1"}', '{"world_size": 1.5}', '{"world_size": -1}'),
    *('{"world_size": 0}', '{"world_size": 1000000000}', '{"world_size": true}', '{"world_size": null}'),
    *('{"world_size": [1]}', '{"world_size": 1e999}', '{"world_size": NaN}', '{"world_size": ' + "9" * 5000 + "}"),
    *('{"world_size": 1, "world_size": 2}', "[" * 100_000, '{"a":' * 100_000, b"\xff\xfe\x00{", b"\x00" * 100),
):
    add("fsdp_config.json", repr(_content)[:40], writes(lambda run: actor_of(run) / "fsdp_config.json", _content))
add("fsdp_config.json", "1 GB", grows(lambda run: actor_of(run) / "fsdp_config.json", GIGABYTE))
add("fsdp_config.json", "missing", lambda run, _: (actor_of(run) / "fsdp_config.json").unlink())

# Files that are not regular files.


def _link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "secret")


def _socket(path: Path, outside: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


_THINGS: dict[str, Callable[[Path, Path], None]] = {
    "a link to a secret file": _link,
    "a link to /dev/zero": lambda path, outside: path.symlink_to("/dev/zero"),
    "a dangling link": lambda path, outside: path.symlink_to("nowhere"),
    "a link to itself": lambda path, outside: path.symlink_to(path.name),
    "a FIFO": lambda path, outside: os.mkfifo(path),
    "a socket": _socket,
    "a folder": lambda path, outside: path.mkdir(),
    "an empty file": lambda path, outside: path.touch(),
}
_PLACES: dict[str, Callable[[Path], Path]] = {
    "a rank file": only_rank,
    "config.json": lambda run: hf(run) / "config.json",
    "tokenizer.json": lambda run: hf(run) / "tokenizer.json",
    "chat_template.jinja": lambda run: hf(run) / "chat_template.jinja",
    "fsdp_config.json": lambda run: actor_of(run) / "fsdp_config.json",
    "config.yaml": lambda run: run / "config.yaml",
    "metrics.jsonl": lambda run: run / "metrics.jsonl",
    "the tracker": lambda run: run / "checkpoints/latest_checkpointed_iteration.txt",
}


def _replaces(place: Callable[[Path], Path], make: Callable[[Path, Path], None]) -> Spoil:
    def spoil(run: Path, outside: Path) -> None:
        place(run).unlink(missing_ok=True)
        make(place(run), outside)

    return spoil


for _place, _path_of in _PLACES.items():
    for _thing, _make in _THINGS.items():
        add("kinds of files", f"{_place} is {_thing}", _replaces(_path_of, _make))
add("kinds of files", "an unknown link", lambda run, outside: _link(hf(run) / "id_rsa.txt", outside))
add("kinds of files", "additional_chat_templates is a link out", lambda run, outside: _linked_templates(run, outside))
add("kinds of files", "huggingface/ is a link out", lambda run, outside: _moved(hf(run), outside), must_be_refused=True)
add("kinds of files", "two steps are links to the run", lambda run, _: _looped(run), must_be_refused=True)
add("kinds of files", "the step is a link", lambda run, outside: _moved(run / STEP, outside))
add("kinds of files", "actor/ is a link", lambda run, outside: _moved(actor_of(run), outside))
add("kinds of files", "the run is a link", lambda run, outside: _moved(run, outside))
add("kinds of files", "a link inside", lambda run, _: (hf(run) / "merges.txt").symlink_to("tokenizer.json"))


def _moved(path: Path, outside: Path) -> None:
    shutil.move(path, outside / path.name)
    path.symlink_to(outside / path.name)


def _looped(run: Path) -> None:
    shutil.rmtree(run / STEP)
    for number in (20, 21):
        (run / f"checkpoints/global_step_{number}").symlink_to(run.absolute())


def _linked_templates(run: Path, outside: Path) -> None:
    (outside / "templates").mkdir()
    (outside / "templates" / "private.jinja").write_text(SECRET)
    (hf(run) / "additional_chat_templates").symlink_to(outside / "templates")


# The zip file around a rank's tensors.


def _rezipped(change: Callable[[dict[str, bytes]], list[tuple[str, bytes]] | None], *, method: int = 0) -> Spoil:
    """Write the rank file again after `change` to its records, compressed by a `method` of zipfile."""

    def spoil(run: Path, outside: Path) -> None:
        with zipfile.ZipFile(only_rank(run)) as archive:
            records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        changed = change(records)
        with zipfile.ZipFile(only_rank(run), "w", method) as archive:
            for name, content in changed if changed is not None else records.items():
                archive.writestr(name, content)

    return spoil


def _named(records: dict[str, bytes], end: str) -> str:
    return next(name for name in records if name.endswith(end))


def _bytes(change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(run: Path, outside: Path) -> None:
        only_rank(run).write_bytes(change(only_rank(run).read_bytes()))

    return spoil


def _end_record(content: bytes, at: int, form: str, value: int) -> bytes:
    """Write `value` to a field of the end record of a zip file."""
    start = content.rindex(b"PK\x05\x06") + at
    return content[:start] + struct.pack(form, value) + content[start + struct.calcsize(form) :]


def _central(content: bytes, at: int, form: str, value: int) -> bytes:
    """Write `value` to a field of the last entry in the zip file's table of contents."""
    start = content.rindex(b"PK\x01\x02") + at
    return content[:start] + struct.pack(form, value) + content[start + struct.calcsize(form) :]


for _part in (0.0, 0.1, 0.5, 0.9, 0.999):
    add("zip", f"cut to {_part:.1%}", _bytes(lambda content, part=_part: content[: int(len(content) * part)]))
add("zip", "rewritten, sound", _rezipped(lambda records: None))
add("zip", "packed", _rezipped(lambda records: None, method=zipfile.ZIP_DEFLATED), must_be_refused=True)
add("zip", "packed by LZMA", _rezipped(lambda records: None, method=zipfile.ZIP_LZMA), must_be_refused=True)
add(
    "zip",
    "a bomb of 1 GB",
    _rezipped(lambda records: [*records.items(), ("x/data.pkl", bytes(GIGABYTE))], method=zipfile.ZIP_DEFLATED),
    must_be_refused=True,
)
add("zip", "a record twice", _rezipped(lambda records: [*records.items(), *list(records.items())[:2]]))
add("zip", "a record of 100 MB more", _rezipped(lambda records: [*records.items(), ("x/more", bytes(10**8))]))
add(
    "zip",
    "300,000 records more",
    _rezipped(lambda records: [*records.items(), *((f"x/data/{n}", b"") for n in range(300_000))]),
)
add("zip", "a record with a path", _rezipped(lambda records: [*records.items(), ("../../../escaped", b"x")]))
add("zip", "no data.pkl", _rezipped(lambda records: records.pop(_named(records, "/data.pkl")) and None))
add("zip", "an empty data.pkl", _rezipped(lambda records: records.update({_named(records, "/data.pkl"): b""})))
add("zip", "big-endian", _rezipped(lambda records: records.update({_named(records, "/byteorder"): b"big"})))
add(
    "zip",
    "of an odd byte order",
    _rezipped(lambda records: records.update({_named(records, "/byteorder"): b"\xff" * 9})),
)
add("zip", "no data", _rezipped(lambda records: [item for item in records.items() if "/data/" not in item[0]]))
add("zip", "no records", _rezipped(lambda records: []))
add(
    "zip",
    "code for TorchScript",
    _rezipped(lambda records: [*records.items(), (f"{next(iter(records)).split('/')[0]}/constants.pkl", b"x")]),
)
add("zip", "data after the end", _bytes(lambda content: content + b"x" * 1000))
add("zip", "data before the start", _bytes(lambda content: b"x" * 1000 + content))
add("zip", "an entry that starts at 4 GB", _bytes(lambda content: _central(content, 42, "<I", 0xFFFFFFF0)))
add("zip", "an entry of 4 GB", _bytes(lambda content: _central(content, 24, "<I", 0xFFFFFFF0)))
add("zip", "an encrypted entry", _bytes(lambda content: _central(content, 8, "<H", 1)))
add("zip", "a table of contents of 4 GB", _bytes(lambda content: _end_record(content, 12, "<I", 0xFFFFFFF0)))
add("zip", "a table of contents at 4 GB", _bytes(lambda content: _end_record(content, 16, "<I", 0xFFFFFFF0)))
add("zip", "a tensor's data changed", _bytes(lambda content: content[:-1] and _flipped(content)), must_be_refused=True)
add("zip", "1 TB of nothing in front of the table", lambda run, _: _with_hole(only_rank(run)))
for _kind, _start in {
    "a text": b"hello",
    "gzip": b"\x1f\x8b\x08",
    "tar": b"model\x00" * 100,
    "a pickle": pickle.dumps({}),
}.items():
    add("zip", f"{_kind} instead", writes(only_rank, _start * 50), must_be_refused=True)


def _flipped(content: bytes) -> bytes:
    at = content.rindex(b"PK\x03\x04", 0, content.index(b"PK\x01\x02")) - 600
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def _with_hole(path: Path) -> None:
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02")
    with path.open("r+b") as file:
        file.truncate(at)
        file.seek(2**40)
        file.write(content[at:])


def _legacy(run: Path, outside: Path) -> None:
    state = torch.load(only_rank(run), weights_only=True)
    torch.save(state, only_rank(run), _use_new_zipfile_serialization=False)


add("zip", "torch's format before 1.6", _legacy, must_be_refused=True)


# The pickle that holds the structure, written by hand.


@dataclass(frozen=True)
class Stored:
    """A reference to a storage in a pickle; torch reads its data from the record `key`."""

    key: str
    numel: int
    kind: Any = torch.FloatStorage


class Rebuilt:
    """A call of `function` in a pickle; torch.save writes one per tensor."""

    def __init__(self, function: Any, *args: Any):
        self.function, self.args = function, args

    def __reduce__(self) -> tuple:
        return self.function, self.args


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return ("storage", value.kind, value.key, "cpu", value.numel) if isinstance(value, Stored) else None


def tensor(stored: Stored, offset: int, size: tuple, stride: tuple, *more: Any) -> Rebuilt:
    return Rebuilt(torch._utils._rebuild_tensor_v2, stored, offset, size, stride, False, OrderedDict(), *more)


def _repickled(change: Callable[[dict[str, Any], Path], Any]) -> Spoil:
    """Write the rank file with a changed structure; `change` edits it in place or returns another one in a tuple."""

    def spoil(run: Path, outside: Path) -> None:
        state, records = {}, {}
        for key, (name, value) in enumerate(torch.load(only_rank(run), weights_only=True).items()):
            records[str(key)] = value.numpy().tobytes()
            state[name] = tensor(Stored(str(key), value.numel()), 0, tuple(value.shape), value.stride())
        changed = change(state, outside)
        [whole] = changed if isinstance(changed, tuple) else [state]
        _write_rank_file(only_rank(run), whole, records)

    return spoil


def _write_rank_file(path: Path, state: Any, records: dict[str, bytes]) -> None:
    if not isinstance(state, bytes):
        buffer = BytesIO()
        _Pickler(buffer, protocol=2).dump(state)
        state = buffer.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", state)
        archive.writestr("x/byteorder", "little")
        for key, content in records.items():
            archive.writestr(f"x/data/{key}", content)
        archive.writestr("x/version", "3\n")


def _nested(kind: type, depth: int) -> Any:
    value: Any = kind()
    for _ in range(depth):
        value = kind([value, value])
    return value


class _Runs:
    """Return a pickle that makes the marker file when it is loaded."""

    def __init__(self, outside: Path):
        self.outside = outside

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.outside / MARKER}'",)


def _put(value: Any) -> Spoil:
    """Add `value` to the tensors of the state."""
    return _repickled(lambda state, outside: state.update({"more": value}))


def _of(value: Any) -> Spoil:
    """Replace the whole state by `value`."""
    return _repickled(lambda state, outside: (value,))


_DEEP = 100_000
add("pickle", "sound", _repickled(lambda state, outside: None))
add(
    "pickle",
    "a call of os.system",
    _repickled(lambda state, outside: state.update(more=_Runs(outside))),
    must_be_refused=True,
)
add(
    "pickle",
    "a call of os.system in place of all",
    _repickled(lambda state, outside: (_Runs(outside),)),
    must_be_refused=True,
)
for _name, _value in {
    "a list": [1],
    "None": None,
    "an empty dictionary": {},
    "a number": 5,
    "a text": "x" * 100,
}.items():
    add("pickle", f"{_name} instead", _of(_value), must_be_refused=True)
add("pickle", "a list in lists of lists, 2^60 values", _put(_nested(list, 60)))
add("pickle", "a tuple of tuples, 2^60 values", _put(_nested(tuple, 60)))
add("pickle", "a number of 10,000 digits", _put(1 << 33_000))
add("pickle", "a text of 20 MB", _put("x" * 20_000_000), must_be_refused=True)
add("pickle", "1,000,000 empty lists", _of(b"\x80\x02" + b"]" * 1_000_000 + b"."), must_be_refused=True)
add("pickle", "lists 100,000 deep", _of(b"\x80\x02" + b"]" * _DEEP + b"a" * (_DEEP - 1) + b"."), must_be_refused=True)
add("pickle", "an unknown instruction", _of(b"\x80\x02\xff."), must_be_refused=True)
add("pickle", "no end", _of(b"\x80\x02}"), must_be_refused=True)
add("pickle", "protocol 200", _of(b"\x80\xc8}."), must_be_refused=True)
add("pickle", "a memo number of 2^31", _of(b"\x80\x02}r\xff\xff\xff\x7f."), must_be_refused=True)
add("pickle", "bytes of 2 GB announced", _of(b"\x80\x03B\xff\xff\xff\x7fabc."), must_be_refused=True)
add(
    "pickle",
    "values that are no tensors",
    _repickled(lambda state, outside: state.update({f"extra{n}": n for n in range(5000)})),
)
add("pickle", "a dictionary in itself", _repickled(lambda state, outside: state.update(more=state)))
_HASHED_TUPLE = (
    b")" + b"q\x00h\x00\x86" * 1 + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(1, 60))
)
add(
    "pickle",
    "a key that takes 2^60 steps to hash",
    _of(b"\x80\x02}" + _HASHED_TUPLE + b"K\x01s."),
    must_be_refused=True,
)

# Tensors that no model has.


def _head(make: Callable[[Stored], Any]) -> Spoil:
    """Replace the head, which is the last record with 33 x 24 values, by another tensor."""

    def change(state: dict[str, Any], outside: Path) -> None:
        state[HEAD] = make(state[HEAD].args[0])

    return _repickled(change)


def _saved(make: Callable[[torch.Tensor], Any]) -> Spoil:
    """Replace the head by `make(head)`, written by torch."""

    def spoil(run: Path, outside: Path) -> None:
        state = torch.load(only_rank(run), weights_only=True)
        state[HEAD] = make(state[HEAD])
        torch.save(state, only_rank(run))

    return spoil


def _in_place_of(stored: Stored, other: Stored) -> Stored:
    """Return `other` stored in the head's record if it refers to that record."""
    return Stored(stored.key if other.key == "HEAD" else other.key, other.numel, other.kind)


_SHAPES: dict[str, tuple[int, tuple, tuple]] = {
    "100,000 dimensions": (0, (1,) * 100_000, (1,) * 100_000),
    "65 dimensions": (0, (1,) * 65, (1,) * 65),
    "a negative size": (0, (-33, 24), (24, 1)),
    "a size of 2^62": (0, (2**62, 24), (24, 1)),
    "a size of 2^70": (0, (2**70, 24), (24, 1)),
    "2^62 rows of nothing": (0, (2**62, 0), (1, 1)),
    "one value 10^12 times": (0, (10**6, 10**6), (0, 0)),
    "one row in all rows": (0, (33, 24), (0, 1)),
    "overlapping rows": (0, (33, 24), (1, 1)),
    "a negative stride": (0, (33, 24), (-24, 1)),
    "a stride of 2^62": (0, (33, 24), (2**62, 1)),
    "an offset beyond the data": (10**6, (33, 24), (24, 1)),
    "an offset of 2^62": (2**62, (33, 24), (24, 1)),
    "a negative offset": (-24, (33, 24), (24, 1)),
    "a last row outside": (1, (33, 24), (24, 1)),
    "fewer strides than sizes": (0, (33, 24), (1,)),
    "no dimension": (0, (), ()),
    "sizes that are texts": (0, ("33", "24"), (24, 1)),
    "sizes that are fractions": (0, (33.5, 24.0), (24, 1)),
}
for _name, (_offset, _size, _stride) in _SHAPES.items():
    _make_head = lambda stored, place=(_offset, _size, _stride): tensor(stored, *place)  # noqa: E731
    # torch reads a negative stride as the stride of a contiguous tensor.
    add("tensors", _name, _head(_make_head), must_be_refused=_name != "a negative stride")
for _name, _storage in {
    "a missing record": Stored("999", 792),
    "a record with a path": Stored("../data.pkl", 792),
    "a record of 2^60 values": Stored("HEAD", 2**60),
    "a record of -1 values": Stored("HEAD", -1),
    "a record of no values": Stored("HEAD", 0),
    "an unknown kind of storage": Stored("HEAD", 792, kind=OrderedDict),
}.items():
    add(
        "tensors",
        _name,
        _head(lambda stored, storage=_storage: tensor(_in_place_of(stored, storage), 0, (33, 24), (24, 1))),
    )
for _dtype in (torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.uint16, torch.uint64):
    add(
        "tensors",
        f"of {_dtype}",
        _saved(lambda head, dtype=_dtype: torch.zeros(33, 24).to(dtype)),
        must_be_refused=True,
    )
for _name, _make_value in {
    "sparse": lambda head: head.to_sparse(),
    "sparse by rows": lambda head: head.to_sparse_csr(),
    "quantized": lambda head: torch.quantize_per_tensor(head, 0.1, 0, torch.qint8),
    "nested": lambda head: torch.nested.nested_tensor([head[:3], head[3:]]),
    "without data": lambda head: torch.empty(33, 24, device="meta"),
    "with a sign that is still to be changed": lambda head: torch._neg_view(head),
    "all NaN": lambda head: torch.full_like(head, float("nan")),
    "with one infinity": lambda head: head.index_fill(0, torch.tensor([3]), float("inf")),
    "of another shape": lambda head: head[:, :7].clone(),
    "empty": lambda head: torch.zeros(0, 24),
    "a scalar": lambda head: torch.tensor(1.0),
    "of 64 dimensions": lambda head: torch.zeros((1,) * 64),
    "a list of tensors": lambda head: [head],
}.items():
    add("tensors", _name, _saved(_make_value), must_be_refused=True)
add("tensors", "stored by columns", _saved(lambda head: head.T.contiguous().T))
add("tensors", "a parameter", _saved(torch.nn.Parameter))
add("tensors", "inside a larger storage", _saved(lambda head: torch.cat([head, head])[:33]))


def _all_share(state: dict[str, Any], outside: Path) -> None:
    shared = state[HEAD].args[0]
    for number in range(2000):
        state[f"model.layers.{number}.mlp.up_proj.weight"] = tensor(shared, 0, (5, 24), (24, 1))


add("tensors", "2,000 that share their data", _repickled(_all_share), must_be_refused=True)

# Names of tensors.


def _renamed(name: Any) -> Spoil:
    return _repickled(lambda state, outside: state.update({name: state.pop(HEAD)}))


for _name in (
    *("../../../escaped", "/etc/passwd", "lm_head\x00.weight", "lm_head\n.weight", "lm\x1b[2Jhead", "lm\ud800head"),
    *(
        "x" * 1_000,
        "y" * 100_000,
        "",
        "lm\u202ehead",
        "LM_HEAD.WEIGHT",
        "lm_head.weight ",
        "base_model.model." * 20,
        5,
        None,
    ),
    *(("a", "b"), True, "lora_A", ".lora_A.default.weight", "a.lora_A." * 50, "__metadata__", "lm_head.weight|x`<b>"),
):
    add("names of tensors", repr(_name)[:40], _renamed(_name), must_be_refused=True)
add(
    "names of tensors",
    "twice, under a wrapper's name too",
    _repickled(lambda state, outside: state.update({f"pretrained_model.{HEAD}": state[HEAD]})),
    must_be_refused=True,
)
add(
    "names of tensors",
    "20,000 more",
    _repickled(lambda state, outside: state.update({f"w{n}": state[HEAD] for n in range(20_000)})),
    must_be_refused=True,
)

# Placements on meshes.


def _placed(make: Callable[[int, torch.Tensor, Any], Any]) -> Spoil:
    """Replace rank 1's part of the head by `make(part)`."""

    def spoil(run: Path, outside: Path) -> None:
        path = rank_file(actor_of(run), 2, 1)
        state = torch.load(path, weights_only=True)
        with mesh_of_rank(1, (2,)) as mesh:
            state[HEAD] = make(1, state[HEAD].to_local(), mesh)
            torch.save(state, path)

    return spoil


def _dtensor(local: torch.Tensor, mesh: Any, placement: Any, shape: tuple = (33, 24)) -> DTensor:
    return DTensor.from_local(local, mesh, [placement], run_check=False, shape=torch.Size(shape), stride=(shape[-1], 1))


for _name, _make_placed in {
    "partial sums": lambda rank, local, mesh: _dtensor(local, mesh, Partial()),
    "along another dimension": lambda rank, local, mesh: _dtensor(local, mesh, Shard(1)),
    "of another whole": lambda rank, local, mesh: _dtensor(local, mesh, Shard(0), (40, 24)),
    "of a whole of 2^50 rows": lambda rank, local, mesh: _dtensor(local, mesh, Shard(0), (2**50, 24)),
    "of fewer rows": lambda rank, local, mesh: _dtensor(local[:3], mesh, Shard(0)),
    "of another type": lambda rank, local, mesh: _dtensor(local.double(), mesh, Shard(0)),
    "without a placement": lambda rank, local, mesh: local,
}.items():
    add("placements", _name, _placed(_make_placed), base="sharded", must_be_refused=True)


def _shard_of(dim: int) -> Spoil:
    def spoil(run: Path, outside: Path) -> None:
        for rank in range(2):
            path = rank_file(actor_of(run), 2, rank)
            state = torch.load(path, weights_only=True)
            with mesh_of_rank(rank, (2,)):
                state[HEAD]._spec.placements = (Shard(dim),)
                torch.save(state, path)

    return spoil


for _dim in (2, 10**9, -1, -5):
    add("placements", f"along dimension {_dim}", _shard_of(_dim), base="sharded")

# config.json


def _config_with(**changes: Any) -> Spoil:
    def spoil(run: Path, outside: Path) -> None:
        path = hf(run) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def _write_code(run: Path, outside: Path) -> None:
    code = f"from pathlib import Path\nPath({str(outside / MARKER)!r}).touch()\n"
    for module in ("configuration_own", "modeling_own", "tokenization_own"):
        (hf(run) / f"{module}.py").write_text(code)


def _config_with_code(**changes: Any) -> Spoil:
    def spoil(run: Path, outside: Path) -> None:
        _write_code(run, outside)
        _config_with(**changes)(run, outside)

    return spoil


for _content in (
    *("", "no", "[]", "null", "{}", "[" * _DEEP, '{"a":' * _DEEP, '{"a": 1, "a": 2}'),
    b"\xff\xfe\x00{",
    b"\x00" * 99,
):
    add("config.json", repr(_content)[:40], writes(lambda run: hf(run) / "config.json", _content), must_be_refused=True)
add("config.json", "1 GB", grows(lambda run: hf(run) / "config.json", GIGABYTE), must_be_refused=True)
for _changes in (
    *(
        {"num_hidden_layers": value}
        for value in (2_000_000, 90_000, 10**9, 10**18, 10**400, 0, -1, 3, "two", 1e300, None, [2])
    ),
    *({"hidden_size": value} for value in (2**62, 2**50, 0, -5, 25, 10**400, 1.5, float("nan"))),
    *({"num_attention_heads": value} for value in (0, 7, -4, 10**9)),
    *({"vocab_size": value} for value in (10**12, 0, -1, 34)),
    *({"intermediate_size": value} for value in (2**62, 6)),
    *(
        {"model_type": value}
        for value in ("unknown", ["llama"], None, "../llama", "x" * 10_000, "bert", "whisper", "mixtral")
    ),
    *(
        {"dtype": "evil"},
        {"hidden_act": "evil"},
        {"hidden_act": 5},
        {"rope_parameters": "evil"},
        {"rope_parameters": []},
    ),
    *({"architectures": 5}, {"num_labels": 10**9}, {"id2label": 5}, {"quantization_config": {"quant_method": "evil"}}),
    *(
        {"tie_word_embeddings": True},
        {"max_position_embeddings": 10**12},
        {"pad_token_id": 10**9},
        {"rms_norm_eps": "x"},
    ),
    *({"layer_types": ["evil"] * 1000}, {"num_experts": 10**9}, {"text_config": {"num_hidden_layers": 10**9}}),
    *({"attn_implementation": "someone/kernel"}, {"_attn_implementation": "someone/kernel"}, {"_name_or_path": [1]}),
    *(
        {"_name_or_path": "\n---\n# <script>" * 100},
        {"configuration_files": ["config.../../../../outside/secret.json"]},
    ),
    {"model_type": "mixtral", "num_local_experts": 10**9, "num_experts_per_tok": 2},
    {"model_type": "qwen3_moe", "num_experts": 50_000, "num_hidden_layers": 50_000},
    {"model_type": "gpt2", "n_layer": 2_000_000},
    {"model_type": "t5", "num_layers": 2_000_000},
):
    add("config.json", ", ".join(f"{key}={value!r}"[:40] for key, value in _changes.items()), _config_with(**_changes))
_AUTO_MAP = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
add(
    "config.json",
    "code of its own for an unknown model",
    _config_with_code(model_type="own", auto_map=_AUTO_MAP),
    must_be_refused=True,
)
add("config.json", "code of its own for a known model", _config_with_code(auto_map=_AUTO_MAP))
add(
    "config.json",
    "code from the hub",
    _config_with_code(model_type="own", auto_map={"AutoConfig": "evil/repo--configuration.Own"}),
    must_be_refused=True,
)
add(
    "config.json",
    "an auto_map of another kind",
    _config_with_code(model_type="own", auto_map=[1, 2]),
    must_be_refused=True,
)

# The other files of the model.


def _hf_file(name: str, content: str | bytes) -> Spoil:
    return writes(lambda run: hf(run) / name, content)


def _tokenizer_code(run: Path, outside: Path) -> None:
    _write_code(run, outside)
    path = hf(run) / "tokenizer_config.json"
    auto_map = {"AutoTokenizer": ["tokenization_own.Own", None]}
    path.write_text(json.dumps({"auto_map": auto_map, "tokenizer_class": "Own"}))


add("files of the model", "code of its own for the tokenizer", _tokenizer_code, must_be_refused=True)
add("files of the model", "code that nothing names", _write_code)
for _name, _content in {
    "tokenizer.json": "[" * _DEEP,
    "tokenizer_config.json": '{"a":' * _DEEP,
    "chat_template.jinja": "{% for a in range(10**9) %}{% for b in range(10**9) %}{% endfor %}{% endfor %}",
    "generation_config.json": '{"max_length": -1, "do_sample": "maybe"}',
    "model.safetensors.index.json": '{"weight_map": {"a": "../../../outside/secret"}}',
    "model.safetensors": b"\xff" * 100,
    "pytorch_model.bin": pickle.dumps(_Runs(Path("nowhere"))),
    "adapter_config.json": '{"peft_type": "EVIL", "r": 1000000000, "base_model_name_or_path": "evil/model"}',
    "Config.json": "{}",
    "CONFIG.JSON": "{}",
    "README.md": "# evil",
    "odd\nname.json": "{}",
    "-rf": "x",
    ".env": SECRET,
    "secret.txt": "x",
    "special_tokens_map.json": b"\xff\x00",
}.items():
    add("files of the model", repr(_name), _hf_file(_name, _content))
add(
    "files of the model",
    "1 GB of tokenizer.json",
    grows(lambda run: hf(run) / "tokenizer.json", GIGABYTE),
    must_be_refused=True,
)
add(
    "files of the model", "1,000 files", lambda run, _: [(hf(run) / f"f{n}.json").touch() for n in range(1000)] and None
)
add("files of the model", "no tokenizer", lambda run, _: [path.unlink() for path in hf(run).glob("tok*")] and None)

for _name, _content in {
    "tokenizer.json": "[" * _DEEP,
    "tokenizer_config.json": '{"a":' * _DEEP,
    "chat_template.jinja": "{% for a in range(10**9) %}{% for b in range(10**9) %}{% endfor %}{% endfor %}",
    "tokenizer.json ": "x",
}.items():
    add("verified exports", repr(_name), _hf_file(_name, _content), options=("--verify",))
add("verified exports", "sound", lambda run, outside: None, options=("--verify",))
add(
    "verified exports",
    "1,000 dimensions",
    _head(lambda stored: tensor(stored, 0, (1,) * 1000, (1,) * 1000)),
    options=("--verify",),
)
add(
    "verified exports",
    "no tokenizer",
    lambda run, _: [path.unlink() for path in hf(run).glob("tok*")] and None,
    options=("--verify",),
)
add(
    "verified exports",
    "a processor's code",
    _hf_file("processor_config.json", '{"auto_map": {"AutoProcessor": "evil/repo--own.Own"}}'),
    options=("--verify",),
)

# LoRA


def _settings(content: str) -> Spoil:
    return writes(lambda run: actor_of(run) / "lora_train_meta.json", content)


for _content in (
    *("", "[]", "{}", '{"r": 1000000000, "lora_alpha": 4}', '{"r": 0, "lora_alpha": 4}', '{"r": -2, "lora_alpha": 4}'),
    *(
        '{"r": 2.0, "lora_alpha": 4}',
        '{"r": "2", "lora_alpha": 4}',
        '{"r": true, "lora_alpha": 4}',
        '{"r": 3, "lora_alpha": 4}',
    ),
    *('{"r": 2, "lora_alpha": 0}', '{"r": 2, "lora_alpha": NaN}', '{"r": 2, "lora_alpha": 1e999}', "[" * _DEEP),
    *('{"r": 2, "lora_alpha": 1e30}', '{"r": 2, "lora_alpha": ' + "9" * 400 + "}", '{"r": 2, "lora_alpha": [4]}'),
    *('{"r": 2, "lora_alpha": 4, "task_type": 5}', '{"r": 2, "lora_alpha": 4, "task_type": "x\\n\\u0000"}'),
):
    add("LoRA", repr(_content)[:60], _settings(_content), base="adapter", must_be_refused=True)
add("LoRA", "unknown settings", _settings('{"r": 2, "lora_alpha": 4, "evil": [1], "use_dora": false}'), base="adapter")


def _factors_with(change: Callable[[dict[str, torch.Tensor], str], Any]) -> Spoil:
    def spoil(run: Path, outside: Path) -> None:
        state = torch.load(only_rank(run), weights_only=True)
        change(state, next(name for name in state if "lora_A" in name))
        torch.save(state, only_rank(run))

    return spoil


for _name, _change in {
    "one factor of two": lambda state, down: state.pop(down),
    "a factor of another rank": lambda state, down: state.update({down: torch.zeros(3, 24)}),
    "a factor of another width": lambda state, down: state.update({down: torch.zeros(2, 25)}),
    "a factor of three dimensions": lambda state, down: state.update({down: torch.zeros(2, 24, 1)}),
    "a factor of integers": lambda state, down: state.update({down: torch.zeros(2, 24, dtype=torch.int64)}),
    "two adapters": lambda state, down: state.update({down.replace("default", "other"): torch.zeros(2, 24)}),
    "a magnitude": lambda state, down: state.update({down.replace("lora_A", "lora_magnitude_vector"): torch.zeros(5)}),
    "of an unknown module": lambda state, down: state.update({down.replace("up_proj", "evil"): state.pop(down)}),
}.items():
    _refused = {} if "integers" in _name else {"must_be_refused": True}
    add("LoRA", _name, _factors_with(_change), base="adapter", **_refused)
for _name, _change in {"one factor of two": lambda state, down: state.pop(down)}.items():
    add(
        "LoRA",
        f"{_name}, taken out",
        _factors_with(_change),
        base="adapter",
        options=("--lora", "adapter"),
        must_be_refused=True,
    )

# The base model's weights beside the config, needed for an adapter that was saved without them.


def _weights(run: Path) -> Path:
    return hf(run) / "model.safetensors"


def _header_with(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    def spoil(run: Path, outside: Path) -> None:
        content = _weights(run).read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        changed = change(header)
        encoded = changed if isinstance(changed, bytes) else json.dumps(header).encode()
        _weights(run).write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])

    return spoil


for _name, _spoil in {
    "sound": lambda run, outside: None,
    "cut short": lambda run, outside: _weights(run).write_bytes(_weights(run).read_bytes()[:3000]) and None,
    "empty": writes(_weights, b""),
    "three bytes": writes(_weights, b"abc"),
    "a header of 2^63 bytes": writes(_weights, (2**63).to_bytes(8, "little") + b"{}"),
    "1 GB of nothing": lambda run, outside: (
        writes(_weights, b"")(run, outside),
        grows(_weights, GIGABYTE)(run, outside),
    )[0],
    "a link out": _replaces(_weights, _link),
    "a link to /dev/zero": _replaces(_weights, lambda path, outside: path.symlink_to("/dev/zero")),
    "a FIFO": _replaces(_weights, lambda path, outside: os.mkfifo(path)),
    "a folder": _replaces(_weights, lambda path, outside: path.mkdir()),
    "the same weights twice": lambda run, outside: shutil.copy(_weights(run), hf(run) / "more.safetensors") and None,
    "a header 100,000 deep": _header_with(lambda header: b"[" * _DEEP),
    "a header that is a list": _header_with(lambda header: b"[1, 2]"),
    "a name twice": _header_with(lambda header: b'{"a": {}, "a": {}}'),
    "an entry that is a number": _header_with(lambda header: header.update(a=5)),
    "an unknown type": _header_with(lambda header: header[HEAD].update(dtype="EVIL")),
    "a negative size": _header_with(lambda header: header[HEAD].update(shape=[-33, -24])),
    "a size of 2^70": _header_with(lambda header: header[HEAD].update(shape=[2**70, 24])),
    "a fraction for a size": _header_with(lambda header: header[HEAD].update(shape=[33.0, 24])),
    "no shape": _header_with(lambda header: header[HEAD].pop("shape") and None),
    "offsets that end before they start": _header_with(lambda header: header[HEAD]["data_offsets"].reverse()),
    "offsets after the end": _header_with(lambda header: header[HEAD].update(data_offsets=[10**12, 10**12 + 3168])),
    "negative offsets": _header_with(lambda header: header[HEAD].update(data_offsets=[-3168, 0])),
    "1,000 dimensions": _header_with(lambda header: header[HEAD].update(shape=[33, 24, *[1] * 1000])),
    "1,000 tensors of one place": _header_with(
        lambda header: header.update({f"w{n}": header[HEAD] for n in range(1000)})
    ),
    "a name with control characters": _header_with(lambda header: header.update({"\x1b[2J\n": header.pop(HEAD)})),
}.items():
    add("base weights", _name, _spoil, base="adapter alone", must_be_refused=_name != "sound")

# Files in the run's folder that the model card is made from.


def _run_file(name: str, content: str | bytes) -> Spoil:
    return writes(lambda run: run / name, content)


_LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20))
_MERGES = "m0: &m0 {a: 1}\n" + "".join(f"m{n}: &m{n}\n  <<: [{', '.join([f'*m{n - 1}'] * 9)}]\n" for n in range(1, 12))
_MARKUP = "x|y<script>alert(1)</script>[a](http://evil)`*_$\\n---\\u202e"
_MARKED = "trainer: {}\ndata: {mixture: {X: 1}}\nactor_rollout_ref: {model: {path: X}}\nseed: X".replace(
    "X", f'"{_MARKUP}"'
)
for _name, _content in {
    "a bomb of aliases": f"{_LAUGHS}trainer: {{}}\ndata: {{mixture: *a19}}\nseed: *a19\n",
    "a bomb of merged keys": f"{_MERGES}trainer: {{}}\ndata: {{mixture: *m11}}\n",
    "lists 5,000 deep": "trainer: " + "[" * 5000 + "]" * 5000,
    "10 MB": "trainer: {}\n" + "# x\n" * 2_500_000,
    "a list": "- trainer",
    "nothing": "",
    "NULs": b"\x00" * 1000,
    "no UTF-8": b"trainer: \xff\xfe\xfa",
    "a Python object": "trainer: !!python/object/apply:os.system ['touch ran']",
    "a date that is none": "trainer: {}\nseed: 2020-99-99",
    "a number of 100,000 digits": "trainer: {}\nseed: 0x" + "f" * 100_000,
    "a truth that is none": "trainer: !!bool x",
    "an empty number": 'trainer: !!int ""',
    "a time that is none": "trainer: !!timestamp x",
    "a number of base 60": "trainer: 1" + ":1" * 300 + ".5",
    "a text of 100,000 characters": "trainer: {}\nseed: " + json.dumps(_MARKUP * 2000),
    "a key that is a list": "trainer: {}\n? [a, b]\n: c",
    "a text for the trainer": "trainer: hello\ndata: 5\nreward: [1]\nactor_rollout_ref: text\nalgorithm: 7",
    "lists for all values": json.dumps(
        {
            "trainer": {"total_training_steps": [1]},
            "data": {"mixture": [1, [2]], "train_batch_size": {}},
            "reward": {"parts": "x"},
            "seed": [1],
            "actor_rollout_ref": {"model": {"path": [1]}},
        }
    ),
    "numbers that are none": "trainer: {total_training_steps: .nan}\nseed: .inf\ndata: {mixture: {1: 2, null: 3}}",
    "markup in all names": _MARKED,
    "a path with a NUL": 'trainer: {}\nactor_rollout_ref: {model: {path: "a/b\\0c"}}',
    "a path of 100,000 characters": "trainer: {}\nactor_rollout_ref: {model: {path: " + f"{'ab' * 25_000}/" * 2 + "}}",
    "a surrogate": 'trainer: {}\nseed: "\\ud800"',
    "a million datasets": "trainer: {}\ndata: {mixture: {" + ", ".join(f"d{n}: 1" for n in range(20_000)) + "}}",
}.items():
    add("config.yaml", _name, _run_file("config.yaml", _content))
for _name, _content in {
    "NULs": b"\x00" * 5000 + b"\n",
    "empty lines": "\n\n\n",
    "null": "null\n",
    "an empty object": "{}\n",
    "a list": "[20]\n",
    "no UTF-8": b'{"step": 20, "\xff": 1}\n',
    "lists 100,000 deep": "[" * _DEEP + "\n",
    "a number of 400 digits": '{"step": 20, "val-core/gcd/acc/mean@1": ' + "9" * 400 + "}\n",
    "a number of 5,000 digits": '{"step": 20, "val-core/gcd/acc/mean@1": ' + "9" * 5000 + "}\n",
    "NaN": '{"step": 20, "val-core/gcd/acc/mean@1": NaN}\n',
    "a text": '{"step": 20, "val-core/gcd/acc/mean@1": "high"}\n',
    "a step that is a list": '{"step": [20]}\n',
    "markup in a name": json.dumps({"step": 20, "val-core/x|<b>[a](b)\n---/acc/mean@1": 0.5}) + "\n",
    "50,000 names": json.dumps({"step": 20} | {f"val-core/d{n}/acc/mean@1": 0.5 for n in range(50_000)}) + "\n",
    "a surrogate": '{"step": 20, "val-core/\\ud800/acc/mean@1": 0.5}\n',
    "a line without an end": '{"step": 20, "val-core/gcd/acc/mean@1": 0.2',
    "a line of 40 MB": '{"step": 20, "x": "' + "x" * 40_000_000 + '"}\n',
}.items():
    add("metrics.jsonl", _name, _run_file("metrics.jsonl", _content))
add("metrics.jsonl", "1 GB of NULs", grows(lambda run: run / "metrics.jsonl", GIGABYTE))
for _content in (*("", "x", "-5", "9" * 5000, "20\n\n", "19"), b"\xff\x00"):
    _tracker = "checkpoints/latest_checkpointed_iteration.txt"
    add("trackers", repr(_content)[:40], _run_file(_tracker, _content))
