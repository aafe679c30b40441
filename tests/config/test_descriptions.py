"""The first line of every experiment and choice describes it completely, because the help prints only that line."""

import pytest

from rgtrain.config import catalogue

PATHS = [*catalogue.experiments(), *(path for group in catalogue.GROUPS for path in catalogue.choices(group))]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: "/".join(path.with_suffix("").parts[-2:]))
def test_the_first_line_is_one_complete_sentence_of_at_most_100_characters(path):
    line = catalogue.description(path)
    assert 20 <= len(line) <= 100
    assert line[0].isupper() or line[0].isdigit()
    # A line that continues below lacks the final stop, or its continuation starts in mid-sentence.
    assert line.endswith(".") and not line.endswith("..")
    assert line.count("(") == line.count(")") and line.count("`") % 2 == 0
    comments = [text for text in path.read_text().splitlines() if not text.startswith("# @package")]
    if comments[1].startswith("#"):
        assert not comments[1].lstrip("# ")[0].islower()
