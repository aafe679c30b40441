"""The index page of a folder with runs and evaluations."""

import json
import shutil

import pytest
from support.run_folders import write_run

from rgtrain.commands.report_command import main


@pytest.fixture(scope="module")
def folder(pair_of_folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "outputs"
    write_run(folder / "runs" / "first")
    (folder / "runs" / "first" / "report.html").write_text("")
    for results in pair_of_folders:
        shutil.copytree(results, folder / "evaluation" / results.name)
    (folder / "evaluation" / pair_of_folders[1].name / "summary.json").write_text("{")
    unfinished = shutil.copytree(pair_of_folders[0], folder / "evaluation" / "unfinished & <i>")
    (unfinished / "summary.json").unlink()
    (unfinished / "report.html").write_text("")
    main([str(folder)], program="rgtrain report")
    return folder


def test_the_index_lists_runs_and_evaluations(open_page, folder):
    page = open_page(folder / "index.html", ready="#runs")
    run = page.locator("#runs tbody tr").inner_text()
    assert run.startswith("runs/first\t") and "6 of 6" in run and "chain_sum 60.0 (" in run
    rows = page.locator("#evaluations tbody tr").all_inner_texts()
    assert [row.split(" (no report")[0].split("\t")[0] for row in rows] == [
        "evaluation/quick_base",
        "evaluation/quick_trained",
        "evaluation/unfinished & <i>",
    ]
    assert rows[0].split("\t")[1:] == ["base", "quick", "6", "33.3 (9.7 to 70.0)"]
    assert "is damaged" in rows[1] and "not finished" in rows[2]
    page.locator("#evaluations th button", has_text="right %").click()
    assert page.problems == []
    links = page.locator("a").evaluate_all("links => links.map((link) => link.getAttribute('href'))")
    assert links == ["runs/first/report.html", "evaluation/unfinished%20%26%20%3Ci%3E/report.html"]
    page.close()


def test_a_run_still_gets_its_report(folder, tmp_path, capsys):
    run = write_run(tmp_path / "run")
    main([str(run)], program="rgtrain report")
    assert capsys.readouterr().out == f"written: {run / 'report.html'}\n"


def test_a_folder_without_runs_or_evaluations_is_refused(tmp_path, capsys):
    (tmp_path / "other" / "summary.json").parent.mkdir()
    (tmp_path / "other" / "summary.json").write_text(json.dumps({}))
    with pytest.raises(SystemExit):
        main([str(tmp_path)], program="rgtrain report")
    assert "give the folder of a run" in capsys.readouterr().err
