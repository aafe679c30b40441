"""The model card describes the run, and unusual content of the run's files does not break it."""

import json

import pytest

from rgtrain.checkpoints.export import export


def test_the_model_card_describes_the_run(step, tmp_path):
    config = {
        "seed": 7,
        "trainer": {"total_training_steps": 40},
        "data": {"mixture": {"gcd": {"weight": 1}, "chain_sum": {"weight": 2}}},
        "reward": {"parts": {"accuracy": {}}},
        "algorithm": {"adv_estimator": "grpo"},
        "actor_rollout_ref": {"model": {"path": "Qwen/Qwen2.5-1.5B-Instruct"}, "actor": {"optim": {"lr": 1e-6}}},
    }
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(config))
    metrics = [{"step": 10, "val-core/gcd/acc/mean@1": 0.1}, {"step": 20, "val-core/gcd/acc/mean@1": 0.25}]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    card = (export(step, tmp_path / "out", dtype="bf16") / "README.md").read_text()
    assert "base_model: Qwen/Qwen2.5-1.5B-Instruct" in card
    for row in ("| step | 20 of 40 |", "| datasets | gcd, chain_sum |", "| validation | gcd 0.250 |", "| seed | 7 |"):
        assert row in card
    assert "| weights | all of the language model, bfloat16 |" in card


def test_markup_in_the_run_folder_does_not_change_the_structure_of_the_card(step, tmp_path, caplog):
    markup = "x|y<script>alert(1)</script>[here](http://evil)`*_$\n---\n# title"
    model = {"path": "someone/model\n---\nlicense: evil"}
    config = {
        "trainer": {},
        "seed": "7" * 300 + markup,
        "data": {"mixture": {markup: 1}},
        "actor_rollout_ref": {"model": model},
    }
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(config))
    metrics = json.dumps(
        {"step": 20, f"val-core/{markup.replace('/', '')}/acc/mean@1": 0.5, "val-core/a/acc/mean@1": 1}
    )
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b"\x00\x00\nnull\n{}\n\xff\n[1]\n" + metrics.encode() + b"\n{")
    card = (export(step, tmp_path / "out") / "README.md").read_text()
    assert card.count("\n---\n") == 1
    assert "license" not in card.split("\n---\n")[0]
    assert [line for line in card.splitlines() if line.startswith("#")] == ["# run, step 20"]
    assert all(line.count("|") == 3 for line in card.splitlines() if line.startswith("|") and "---" not in line)
    for raw in ("<script", "[here]", "http://evil", "`", "$"):
        assert raw not in card
    assert "a 1.000" in card
    assert "ignores 5 damaged lines of metrics.jsonl" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x]\ntrainer: {b: *a}",
        "trainer: " + "[" * 5000,
        "trainer: {}\nseed: 2020-99-99",
        "trainer: {}\n? [a]\n: b",
        "trainer: !!bool x",
        'trainer: !!int ""',
        "trainer: !!timestamp x",
        "trainer: 1" + ":1" * 300 + ".5",
        b"\xff\xfe\x00",
    ],
)
def test_a_card_without_a_readable_run_config_omits_details_with_a_warning(step, tmp_path, caplog, content):
    path = tmp_path / "run" / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    card = (export(step, tmp_path / "out") / "README.md").read_text()
    assert "| step | 20 |" in card
    assert "the model card omits details of the run, because its config.yaml can't be read" in caplog.text


def test_values_of_unexpected_types_are_omitted_from_the_card(step, tmp_path):
    odd = (
        "trainer: {total_training_steps: [1]}\nseed: 0x" + "f" * 9000 + "\ndata: {mixture: [1], train_batch_size: .nan}"
    )
    (tmp_path / "run" / "config.yaml").write_text(odd + "\nactor_rollout_ref: {model: {path: [x]}}\nreward: 5")
    card = (export(step, tmp_path / "out") / "README.md").read_text()
    assert "| step | 20 |" in card
    assert not any(f"| {name} |" in card for name in ("seed", "datasets", "prompts per step", "base model", "reward"))


def test_the_card_of_a_linked_step_describes_the_run_that_holds_the_link(step, tmp_path):
    (tmp_path / "run" / "config.yaml").write_text("trainer: {}\nseed: 7")
    step.rename(tmp_path / "moved")
    step.symlink_to(tmp_path / "moved")
    card = (export(tmp_path / "run", tmp_path / "out") / "README.md").read_text()
    assert "| step | 20 |" in card
    assert "| seed | 7 |" in card
