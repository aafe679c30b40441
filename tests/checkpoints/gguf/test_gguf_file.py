"""A damaged, cut or hostile GGUF file is refused in one line. No claimed length is allocated before it is checked."""

import os
import random
import struct
import time

import numpy as np
import pytest
from gguf import GGUFWriter

from rgtrain.checkpoints.gguf.gguf_file import open_gguf
from rgtrain.errors import ConfigError

KEY = "general.name"


def header(*, tensors: int = 0, fields: int = 0, version: int = 3, body: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + body


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def entry(name: bytes = b"a", shape=(4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = 2**64 - 1
HOSTILE = {
    "empty": (b"", "is empty"),
    "text": (b"not a model", "does not begin with GGUF"),
    "pickle": (b"\x80\x04GGUF", "does not begin with GGUF"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(16), "byte order of another machine"),
    "version 1": (header(version=1), "has version 1 of the format"),
    "many tensors": (header(tensors=HUGE), "claims 18446744073709551615 tensors"),
    "many fields": (header(fields=HUGE), "metadata fields"),
    "no tensors": (header(), "holds no tensors"),
    "long key": (header(fields=1, body=text(b"k", HUGE)), "bytes for a metadata key"),
    "long text": (header(fields=1, body=text(b"k") + struct.pack("<I", 8) + text(b"v", 2**40)), "more than the"),
    "cut text": (header(fields=1, body=text(b"k") + struct.pack("<I", 8) + text(b"v", 2**20)), "ends within the text"),
    "long list": (header(fields=1, body=text(b"k") + struct.pack("<IIQ", 9, 4, 2**61)), "ends within the list 'k'"),
    "list of texts": (header(fields=1, body=text(b"k") + struct.pack("<IIQ", 9, 8, 2**61)), "ends within the list 'k'"),
    "nested list": (header(fields=1, body=text(b"k") + struct.pack("<IIQ", 9, 9, 1)), "of unknown type 9"),
    "unknown type": (header(fields=1, body=text(b"k") + struct.pack("<I", 77)), "of unknown type 77"),
    "repeated key": (
        header(fields=2, body=(text(b"k") + struct.pack("<IB", 7, 1)) * 2),
        "repeats the metadata key 'k'",
    ),
    "dimensions": (header(tensors=1, body=text(b"a") + struct.pack("<I", 2**31)), "claims 2147483648 dimensions"),
    "no values": (header(tensors=1, body=entry(shape=(0, 4))), "impossible shape"),
    "overflow": (header(tensors=1, body=entry(shape=(2**32, 2**32)) + bytes(64)), "so the file is cut off"),
    "part of a block": (header(tensors=1, body=entry(shape=(33,), kind=8)), "impossible shape"),
    "tensor type": (header(tensors=1, body=entry(kind=999)), "as type 999, which is unknown"),
    "offset": (header(tensors=1, body=entry(offset=2**63) + bytes(64)), "so the file is cut off"),
    "overlap": (header(tensors=2, body=entry() + entry(b"b", offset=4) + bytes(96)), "overlapping tensors"),
    "repeated tensor": (header(tensors=2, body=entry() + entry(offset=32) + bytes(128)), "repeats the tensor 'a'"),
    "alignment": (
        header(tensors=1, fields=1, body=text(b"general.alignment") + struct.pack("<II", 4, 0) + entry() + bytes(64)),
        "not a power of two",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_at_once(case, tmp_path):
    content, message = HOSTILE[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    started = time.perf_counter()
    with pytest.raises(ConfigError, match=message) as refused:
        open_gguf(path)
    assert time.perf_counter() - started < 1
    assert "\n" not in str(refused.value)


@pytest.fixture
def small_file(tmp_path):
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_string(KEY, "näme")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_array("numbers", [1.5, 2.5])
    writer.add_bool("flag", True)
    writer.add_tensor("a", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("b", np.ones(4, np.float16))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return tmp_path / "model.gguf"


def test_a_file_is_read_as_it_was_written(small_file):
    file = open_gguf(small_file)
    expected = {KEY: "näme", "tokenizer.ggml.tokens": ["a", "b"], "numbers": [1.5, 2.5], "flag": True}
    assert file.metadata.items() >= expected.items()
    assert np.array_equal(file.tensors["a"].read(), [[0, 1, 2], [3, 4, 5]])
    assert file.tensors["b"].read().tolist() == [1, 1, 1, 1]


def test_a_file_cut_anywhere_is_refused(small_file):
    content = small_file.read_bytes()
    last = max(tensor.start + tensor.num_bytes for tensor in open_gguf(small_file).tensors.values())
    for length in range(0, last, 3):
        small_file.write_bytes(content[:length])
        with pytest.raises(ConfigError):
            open_gguf(small_file)


def test_a_file_with_changed_bytes_is_read_or_refused(small_file):
    content = small_file.read_bytes()
    randomly = random.Random(0)
    for _ in range(250):
        changed = bytearray(content)
        for _ in range(randomly.randint(1, 4)):
            changed[randomly.randrange(len(changed))] = randomly.choice(
                (0, 1, 8, 9, 0x7F, 0xFF, randomly.randrange(256))
            )
        small_file.write_bytes(changed)
        try:
            for tensor in open_gguf(small_file).tensors.values():
                tensor.read()
        except ConfigError:
            continue


def test_a_missing_file_and_a_fifo_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        open_gguf(tmp_path / "model.gguf")
    os.mkfifo(tmp_path / "fifo.gguf")
    with pytest.raises(ConfigError, match="is a FIFO"):
        open_gguf(tmp_path / "fifo.gguf")


@pytest.fixture
def parts(tmp_path):
    writer = GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=1)
    writer.add_string(KEY, "name")
    for number in range(3):
        writer.add_tensor(f"t{number}", np.full(4, number, np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return sorted(tmp_path.iterdir())


def test_the_parts_of_a_split_file_are_joined(parts):
    for part in parts:
        file = open_gguf(part)
        assert file.text(KEY) == "name"
        assert {name: tensor.read()[0] for name, tensor in file.tensors.items()} == {"t0": 0, "t1": 1, "t2": 2}


def test_a_split_file_without_all_parts_is_refused(parts):
    parts[1].unlink()
    with pytest.raises(ConfigError, match=r"one of 3 parts, of which 1 are missing, such as '.*-00002-of-00003.gguf'"):
        open_gguf(parts[0])
    renamed = parts[0].rename(parts[0].with_name("first.gguf"))
    with pytest.raises(ConfigError, match="is a part of a split GGUF, but not the one"):
        open_gguf(renamed)
