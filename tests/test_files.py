"""An atomically written file has its old or its new content, even if the write is interrupted."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from rgtrain.files import flush, remove_leftovers, write_atomically
from rgtrain.paths import PROJECT_ROOT

# The process is killed after half of the new content is written.
INTERRUPTED = """
import sys, time
from pathlib import Path
from rgtrain.files import write_atomically
def content():
    yield b"new" * 100_000
    print("half", flush=True)
    time.sleep(600)
write_atomically(Path(sys.argv[1]), content())
"""


def test_the_new_content_replaces_the_old(tmp_path):
    path = tmp_path / "state.json"
    write_atomically(path, "a much longer old content")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_chunks_of_bytes_are_written_in_order(tmp_path):
    write_atomically(tmp_path / "state", [b"a", b"\xff", b"b"])
    assert (tmp_path / "state").read_bytes() == b"a\xffb"


def test_text_is_utf_8_and_a_lone_surrogate_is_no_error(tmp_path):
    write_atomically(tmp_path / "state", "Größe \ud800")
    assert (tmp_path / "state").read_bytes() == "Größe \\ud800".encode()


def test_other_users_can_read_the_file(tmp_path):
    write_atomically(tmp_path / "state", "new")
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o644


def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path):
    def content() -> Iterator[bytes]:
        yield b"new"
        raise KeyboardInterrupt

    path = tmp_path / "state"
    write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, content())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_process_leaves_the_old_content_and_a_removable_temporary_file(tmp_path):
    path = tmp_path / "state"
    write_atomically(path, "old")
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "half\n"
    process.kill()
    process.communicate()
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path, ["state"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_partial_content(tmp_path):
    path = tmp_path / "state"
    contents = [letter * 500_000 for letter in "ab"]
    write_atomically(path, contents[0])
    writer = threading.Thread(target=lambda: [write_atomically(path, contents[number % 2]) for number in range(40)])
    writer.start()
    while writer.is_alive():
        assert path.read_text() in contents
    writer.join()


def test_only_temporary_files_of_the_given_names_are_removed(tmp_path):
    kept = [".state-short", ".state-toolong12", ".other-abcd1234", "state-abcd1234", ".stateX-abcd1234", "state"]
    for name in [*kept, ".state-abcd1234", ".a.b-abcd_234"]:
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path, ["state", "a.b"])
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_a_dot_in_a_name_matches_only_a_dot(tmp_path):
    (tmp_path / ".metricsXjsonl-abcd1234").write_text("")
    remove_leftovers(tmp_path, ["metrics.jsonl"])
    assert [path.name for path in tmp_path.iterdir()] == [".metricsXjsonl-abcd1234"]


def test_folders_and_links_are_not_removed(tmp_path):
    (tmp_path / ".state-abcd1234").mkdir()
    (tmp_path / "target").write_text("")
    (tmp_path / ".state-abcd5678").symlink_to(tmp_path / "target")
    remove_leftovers(tmp_path, ["state"])
    assert len(list(tmp_path.iterdir())) == 3


def test_files_and_folders_can_be_flushed_and_a_missing_path_is_an_error(tmp_path):
    (tmp_path / "state").write_text("")
    flush(tmp_path / "state")
    flush(tmp_path)
    with pytest.raises(FileNotFoundError):
        flush(tmp_path / "missing")
