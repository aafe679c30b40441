import dataclasses
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from support.evaluated import COMPARE

from rgtrain.commands.compare_command import main as compare_main
from rgtrain.reporting.comparison import compare
from rgtrain.reporting.comparison_page import comparison_page
from rgtrain.reporting.comparison_tables import as_markdown, as_text


def as_html(evaluations, folder):
    return comparison_page(evaluations, compare(evaluations), page=folder / "table.html")


def test_all_three_forms_of_the_table_have_the_same_cells(pair, tmp_path):
    forms = [as_text(compare(pair)), as_markdown(compare(pair)), as_html(pair, tmp_path)]
    for cell in ("25.0 (4.6 to 69.9)", "75.0 (30.1 to 95.4)", "+50.0", "0.625", "words (all)"):
        assert all(cell in form for form in forms)


def test_names_cannot_break_out_of_markdown_or_html(pair, tmp_path):
    evil = [dataclasses.replace(one, summary=one.summary | {"model": {"path": "<i>|`\x1b[2J\nx"}}) for one in pair]
    assert "<i>" not in as_markdown(compare(evil)) + as_html(evil, tmp_path)
    assert "\x1b" not in as_text(compare(evil)) + as_markdown(compare(evil))


def test_the_compare_tool_prints_and_writes_the_comparison(pair, tmp_path):
    paths = [str(pair[0].folder), str(pair[1].folder / "summary.json")]
    files = ["--markdown", "new/table.md", "--html", "new/table.html"]
    done = subprocess.run([sys.executable, COMPARE, *paths, *files], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(as_text(compare(pair)))
    assert (tmp_path / "new/table.md").read_text() == as_markdown(compare(pair))
    assert (tmp_path / "new/table.html").read_text() == as_html(pair, tmp_path / "new")


def test_a_comparison_at_a_terminal_fits_its_width(pair, monkeypatch):
    for name, value in {"TERM": "xterm", "COLUMNS": "", "NO_COLOR": ""}.items():
        monkeypatch.setenv(name, value)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with os.fdopen(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        compare_main([str(one.folder) for one in pair], program="compare")
        monkeypatch.undo()
        # The terminal keeps a few thousand characters until they are read.
        shown = os.read(master, 4096).decode("utf-8", "replace")
    os.close(master)
    assert "\x1b[1;36m" in shown
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    rule = next(number for number, line in enumerate(lines) if set(line) == {"\u2500"})
    assert len(lines[rule]) == 100
    assert {"25.0", "+50.0"} <= set(shown.split())
