"""Only regular files inside a checkpoint's folder are read, up to a maximum size. Others are refused in one line."""

import json
import logging
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from rgtrain.checkpoints.untrusted_files import (
    first_line,
    open_regular,
    parse_json_object,
    printable,
    quiet_libraries,
    quoted,
    read_bounded,
    read_json_object,
)
from rgtrain.errors import ConfigError


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "private").write_text("private")
    return tmp_path / "checkpoint"


def content_of(path: Path, **options: Path) -> bytes:
    with open_regular(path, **options) as file:
        return file.read()


def test_a_file_is_opened(folder):
    (folder / "config.json").write_text("{}")
    assert content_of(folder / "config.json") == b"{}"


def test_a_missing_file_raises_file_not_found_error(folder):
    with pytest.raises(FileNotFoundError):
        open_regular(folder / "config.json")


def test_a_link_to_a_file_in_the_same_folder_is_followed(folder):
    (folder / "data").write_text("data")
    (folder / "link").symlink_to("data")
    assert content_of(folder / "link") == b"data"


def test_a_link_out_of_the_folder_is_refused(folder):
    (folder / "config.json").symlink_to("../private")
    with pytest.raises(ConfigError, match="is a link to .*private', outside of"):
        open_regular(folder / "config.json")


def test_a_linked_folder_does_not_lead_out_of_the_checkpoint(folder):
    (folder / "actor").symlink_to(folder.parent)
    with pytest.raises(ConfigError, match="outside of"):
        open_regular(folder / "actor" / "private", inside=folder)


def test_the_folder_itself_may_be_a_link(folder):
    (folder / "config.json").write_text("{}")
    linked = folder.parent / "linked"
    linked.symlink_to(folder)
    assert content_of(linked / "config.json") == b"{}"


def test_a_folder_with_the_same_prefix_is_outside(folder):
    other = folder.with_name(f"{folder.name}_of_another_user")
    other.mkdir()
    (other / "private").write_text("private")
    (folder / "config.json").symlink_to(other / "private")
    with pytest.raises(ConfigError, match="outside of"):
        open_regular(folder / "config.json")


def test_links_of_a_hub_snapshot_to_blobs_are_followed(tmp_path):
    model = tmp_path / "models--someone--model"
    snapshot = model / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    (model / "blobs" / "ab").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/ab")
    assert content_of(snapshot / "config.json") == b"{}"


def test_blobs_of_any_other_folder_are_outside(tmp_path):
    (tmp_path / "snapshots" / "0123").mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "ab").write_text("{}")
    (tmp_path / "snapshots" / "0123" / "config.json").symlink_to("../../blobs/ab")
    with pytest.raises(ConfigError, match="outside of"):
        open_regular(tmp_path / "snapshots" / "0123" / "config.json")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


@pytest.mark.parametrize(("make", "kind"), [(os.mkfifo, "a FIFO"), (Path.mkdir, "a folder"), (make_socket, "a socket")])
def test_a_special_file_is_refused_without_blocking(folder, make: Callable[[Path], None], kind, monkeypatch):
    # The path of a socket must be short.
    monkeypatch.chdir(folder)
    make(Path("config.json"))
    with pytest.raises(ConfigError, match=f"is {kind}, not a regular file"):
        open_regular(folder / "config.json")


def test_a_device_is_refused():
    with pytest.raises(ConfigError, match="is a device, not a regular file"):
        open_regular(Path("/dev/zero"))


def test_a_broken_link_is_refused(folder):
    (folder / "config.json").symlink_to("gone")
    with pytest.raises(ConfigError, match="is a broken link: replace it by the file"):
        open_regular(folder / "config.json")


def test_circular_links_are_refused(folder):
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    with pytest.raises(ConfigError, match="can't read .*make it readable"):
        open_regular(folder / "a")


def test_a_refused_file_leaves_no_descriptor_open(folder):
    os.mkfifo(folder / "config.json")
    before = {path.name for path in Path("/proc/self/fd").iterdir()}
    with pytest.raises(ConfigError):
        open_regular(folder / "config.json")
    assert {path.name for path in Path("/proc/self/fd").iterdir()} == before


def test_a_file_of_the_maximum_size_is_read(folder):
    (folder / "config.json").write_bytes(b"x" * 100)
    assert read_bounded(folder / "config.json", max_bytes=100) == b"x" * 100


def test_a_larger_file_is_refused_with_its_size(folder):
    with (folder / "config.json").open("wb") as file:
        # A sparse file, which takes no space.
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="has 1099511627776 bytes, but at most 100 are allowed"):
        read_bounded(folder / "config.json", max_bytes=100)


def test_a_json_object_is_read(folder):
    (folder / "config.json").write_text('{"a": [1, {"b": null}]}')
    assert read_json_object(folder / "config.json", max_bytes=100) == {"a": [1, {"b": None}]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "holds a JSON list, not an object"),
        (b"null", "holds a JSON NoneType, not an object"),
        (b'{"a": 1, "a": 2}', "it has a duplicate key"),
        (b'{"a": {"b": 1, "b": 1}}', "it has a duplicate key"),
    ],
)
def test_content_other_than_a_json_object_is_refused_in_one_line(content, reason):
    with pytest.raises(ConfigError, match=reason) as refused:
        parse_json_object(content, Path("config.json"))
    assert len(str(refused.value).splitlines()) == 1


def nested(depth: int) -> bytes:
    value: object = 1
    for level in range(depth):
        value = {"a": value} if level % 2 else [value]
    return json.dumps({"a": value}).encode()


def test_an_object_that_nests_deeper_than_any_config_is_refused():
    assert parse_json_object(nested(31), Path("config.json"))
    with pytest.raises(ConfigError, match="has more than 32 levels of nesting"):
        parse_json_object(nested(32), Path("config.json"))


def test_only_the_first_line_of_an_error_is_used_in_a_printable_form():
    assert first_line(ValueError("first\x1b[2J\nsecond")) == "first?[2J"
    assert first_line(ValueError("")) == "ValueError"
    assert first_line(ValueError("x" * 1000)) == "x" * 200 + "..."


def test_text_is_cut_to_the_given_length():
    assert [printable(text, max_characters=3) for text in ("abc", "abcd", "a\tb")] == ["abc", "abc...", "a?b"]


def test_a_long_name_is_shortened_in_the_middle():
    assert quoted("model.layers.0") == "'model.layers.0'"
    long = quoted("a" * 1000 + "\n" + "b" * 1000)
    assert long.startswith("'aaa") and long.endswith("bbb'") and len(long) < 130 and "..." in long


def test_a_name_that_is_not_a_string_is_quoted_too():
    assert quoted(("a", 1)) == repr("('a', 1)")


def test_libraries_are_quiet_inside_the_block_and_restored_after_a_failure(caplog):
    logger = logging.getLogger("transformers")
    before = logger.level
    with pytest.raises(ValueError), warnings.catch_warnings(record=True) as warned, quiet_libraries():
        logger.error("a long explanation")
        warnings.warn("an old format", stacklevel=1)
        raise ValueError
    assert (warned, caplog.records, logger.level) == ([], [], before)
