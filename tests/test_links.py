"""Every relative link, anchor and image of the Markdown files leads somewhere."""

import subprocess
from pathlib import Path

import pytest
from support.links import ROOT, anchors, broken, links, slug, tracked_files

TRACKED = tracked_files()
MARKDOWN = sorted(path for path in TRACKED if path.suffix == ".md")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with the Markdown file `page.md`, an image and a folder."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text("# Other page\n\n## The `key`, twice\n\n## The `key`, twice\n")
    (tmp_path / "docs" / "code.py").write_text("first = 1\nsecond = 2\n")
    (tmp_path / "plot.png").write_bytes(b"")
    (tmp_path / ".gitignore").write_text("ignored.md\n")
    (tmp_path / "ignored.md").write_text("# Ignored\n")
    return tmp_path


def faults(tree: Path, text: str, *, name: str = "page.md") -> list[str]:
    (tree / name).write_text(text)
    return list(broken(tree / name, tracked_files(tree), root=tree))


@pytest.mark.parametrize("path", MARKDOWN, ids=[str(path.relative_to(ROOT)) for path in MARKDOWN])
def test_every_link_leads_somewhere(path):
    assert not list(broken(path, TRACKED))


def test_the_readme_is_checked():
    assert ROOT / "README.md" in MARKDOWN
    assert len(list(links(ROOT / "README.md"))) > 3


@pytest.mark.parametrize(
    "text",
    [
        "[other](docs/other.md)",
        "[`code`](docs/code.py#L2)",
        "[lines](docs/code.py#L1-L2)",
        "[folder](docs/)",
        "[from the root](/docs/other.md)",
        "[heading](docs/other.md#the-key-twice)",
        "[second heading](docs/other.md#the-key-twice-1)",
        "# Here\n\n[here](#here)",
        "![plot](plot.png)",
        "[![plot](plot.png)](docs/other.md)",
        '<a href="docs/other.md"><img src="plot.png"></a>',
        "[a site](https://example.com/nowhere.md) <mail@example.com>",
        "[reference][one]\n\n[one]: docs/other.md 'title'",
        "```text\n[in code](nowhere.md)\n```",
        "Code such as `[x](nowhere.md)`.",
        '<a id="mark"></a>[mark](#mark)',
    ],
)
def test_a_good_link_is_accepted(tree, text):
    assert faults(tree, text) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[other](docs/nowhere.md)", "no such file"),
        ("[above](../docs/other.md)", "no such file"),
        ("[ignored](ignored.md)", "git does not track it"),
        ("[heading](docs/other.md#nowhere)", "no heading"),
        ("[third heading](docs/other.md#the-key-twice-2)", "no heading"),
        ("[here](#nowhere)", "no heading"),
        ("[lines](docs/code.py#L3)", "has 2 lines"),
        ("[symbol](docs/code.py#first)", "no Markdown"),
        ("[folder](docs#first)", "no anchors"),
        ("![plot](plots/plot.png)", "no such file"),
        ("[![plot](nowhere.png)](docs/other.md)", "no such file"),
        ("[![plot](plot.png)](docs/nowhere.md)", "no such file"),
        ('<img src="nowhere.png">', "no such file"),
        ("[one]: docs/nowhere.md", "no such file"),
        ("```text\n```\n[after code](nowhere.md)", "no such file"),
        ("| cell | [in a table](nowhere.md) |", "no such file"),
    ],
)
def test_a_broken_link_is_found(tree, text, fault):
    found = faults(tree, text)
    assert len(found) == 1, found
    assert fault in found[0]
    assert found[0].startswith("page.md:")


def test_a_link_starts_from_its_own_folder(tree):
    assert faults(tree, "[code](code.py) [plot](../plot.png)", name="docs/page.md") == []
    assert len(faults(tree, "[plot](plot.png)", name="docs/page.md")) == 1


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("Bring your own", "bring-your-own"),
        ("What `rgtrain train` prints", "what-rgtrain-train-prints"),
        ("Exit codes: 75, 130", "exit-codes-75-130"),
        ("pass@k & majority@k", "passk--majorityk"),
        ("The [map](a.md) of **it**", "the-map-of-it"),
        ("stop_within_s", "stop_within_s"),
    ],
)
def test_anchors_follow_the_code_hosts_rules(heading, anchor):
    assert slug(heading) == anchor


def test_headings_in_code_have_no_anchor(tree):
    (tree / "page.md").write_text("# One\n\n```bash\n# Two\n```\n\nThree\n=====\n\n| four |\n|---|\n")
    assert anchors(tree / "page.md") == {"one", "three"}
