import dataclasses
import subprocess
import sys

from support.evaluated import COMPARE

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
