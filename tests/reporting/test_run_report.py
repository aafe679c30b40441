"""The report of runs in a browser: figures, curves, and a browser of rollouts in which model text never runs."""

import base64
import gzip
import json
import re
from pathlib import Path

import pytest
from support.run_folders import kept_group, write_run

from rgtrain.checkpoints.supervised_run import SFT_CONFIG
from rgtrain.errors import ConfigError
from rgtrain.reporting import run_report as module
from rgtrain.reporting.run_reader import read_run
from rgtrain.reporting.run_report import run_overview, run_report, write_run_report

HOSTILE = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 1'>"


def group(step: int):
    return kept_group(step, [1.0, 0.0] if step % 2 else [0.0, 0.0], text=f"<think>thought {step}</think>{HOSTILE}")


@pytest.fixture(scope="module")
def page(open_page, tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "run", group=group)
    write_run_report([run], page=run / "report.html")
    return open_page(run / "report.html", ready="#group h3")


def position(page) -> str:
    return page.inner_text("#position")


def test_the_page_shows_progress_and_held_out_accuracy(page):
    tiles = page.locator(".tiles").inner_text()
    assert "6 of 6" in tiles and "training steps" in tiles and "2 s" in tiles
    row = page.locator("tr", has_text="chain_sum").first.inner_text()
    assert row.split("\t")[1].startswith("0.0 (0.0 to ") and "60.0 (" in row and "step 6" in row


def test_a_supervised_run_has_no_advantages(tmp_path):
    run = write_run(tmp_path / "run", group=group)
    assert run_overview(read_run(run)).figures["advantage estimator"] == "grpo"
    (run / SFT_CONFIG).touch()
    figures = run_overview(read_run(run)).figures
    assert (figures["training"], figures["advantage estimator"]) == ("on right answers", "")


def test_every_chart_is_drawn_and_curves_can_be_hidden(page):
    assert page.locator("figure").count() == page.locator("figure svg polyline, figure svg polygon").evaluate_all(
        "lines => new Set(lines.map((line) => line.closest('figure'))).size"
    )
    figure = page.locator("figure", has_text="Training accuracy")
    assert figure.locator("polyline").count() == 2
    figure.locator("button", has_text="chain_sum").click()
    assert figure.locator("polyline").count() == 1
    figure.locator("button", has_text="chain_sum").click()
    figure.locator("svg").hover()
    assert "step" in figure.locator(".tip").inner_text()


def test_groups_are_filtered_and_paged(page):
    assert position(page) == "group 1 of 9 (9 in all)"
    page.select_option("#of-split", "training")
    page.select_option("#of-verdict", "mixed")
    assert position(page) == "group 1 of 3 (9 in all)"
    page.click("#next")
    assert page.locator("#group h3").inner_text() == "training step 3: spell_backward"
    page.fill("#from-step", "5")
    assert position(page) == "group 1 of 1 (9 in all)"
    page.fill("#from-step", "")
    page.fill("#with-text", "THOUGHT 3")
    assert position(page) == "group 1 of 1 (9 in all)"
    assert page.locator("#group mark").first.text_content() == "thought 3"
    page.fill("#with-text", "")
    page.select_option("#of-verdict", "")
    page.select_option("#of-split", "")


def test_keys_move_through_groups_and_wrong_answers(page):
    page.locator("h1").click()
    page.keyboard.press("ArrowRight")
    assert position(page).startswith("group 2 ")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("w")
    page.keyboard.press("w")
    page.keyboard.press("w")
    assert position(page).startswith("group 2 ")
    assert page.locator(".is-current").get_attribute("data-number") == "1"
    page.keyboard.press("Shift+W")
    page.keyboard.press("Shift+W")
    assert position(page).startswith("group 1 ")


def test_a_link_opens_its_group_with_the_filters(page, open_page):
    page.select_option("#of-dataset", "chain_sum")
    page.click("#next")
    heading, address = page.locator("#group h3").inner_text(), page.url
    page.select_option("#of-dataset", "")
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector("#group h3")
    assert page.locator("#group h3").inner_text() == heading
    assert page.input_value("#of-dataset") == "chain_sum"


def test_model_text_is_shown_verbatim_and_never_runs(page):
    assert HOSTILE in page.locator("article > pre").first.inner_text()
    assert page.evaluate("window.ran") is None
    assert page.locator("#group img, #group script").count() == 0
    assert [problem for problem in page.problems if problem != "about:blank"] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_page_without_scrolling_sideways(open_page, tmp_path, scheme):
    run = write_run(tmp_path / "run", group=group)
    write_run_report([run], page=run / "report.html")
    options = {"viewport": {"width": 390, "height": 800}, "color_scheme": scheme}
    page = open_page(run / "report.html", ready="#group h3", **options)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.problems == []
    page.close()


def test_seeds_share_a_band_and_a_table_and_other_runs_do_not(tmp_path):
    runs = [read_run(write_run(tmp_path / f"run_{seed}", seed=seed)) for seed in (1, 2, 3)]
    other = read_run(write_run(tmp_path / "other", actor_rollout_ref__actor__ppo_mini_batch_size=2))
    content = run_report([*runs, other])
    assert "run_1 and 2 other seeds" in content
    assert "<td>0.370 ± 0.010</td>" in content
    assert '<tr class="overall"><td class="left">actor_rollout_ref.actor.ppo_mini_batch_size</td>' in content


def test_groups_that_do_not_fit_are_left_out_evenly(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", num_steps=30, group=group)
    size = sum(block.num_bytes for block in read_run(run).blocks)
    monkeypatch.setattr(module, "_MAX_ROLLOUT_BYTES", size // 3)
    left_out = re.search(r"(\d+) groups were left out, evenly over the steps", run_report([read_run(run)]))
    # A third of 30 training steps and 11 validations.
    assert int(left_out[1]) in range(26, 30)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no metrics\.jsonl; give the folder of a run"):
        write_run_report([tmp_path], page=tmp_path / "report.html")
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text("{")
    with pytest.raises(ConfigError, match=r"cannot read .*config\.yaml"):
        read_run(run)


def test_damage_to_a_run_costs_only_the_damaged_part(tmp_path):
    run = write_run(tmp_path / "run", group=group)
    (run / "provenance.jsonl").write_text("[" * 100_000)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "critic/')
    Path(run / "rollouts" / "training-000001.jsonl.gz").write_bytes(b"damaged")
    content = run_report([read_run(run)])
    assert "6 of 6" in content and "repeat or continue" not in content
    packed = re.search(r'id="rollout-data">([^<]*)<', content)[1]
    kept = [json.loads(line) for line in gzip.decompress(base64.b64decode(packed)).splitlines()]
    assert [(one["split"], one["step"]) for one in kept] == [("validation", 0), ("validation", 3), ("validation", 6)]
