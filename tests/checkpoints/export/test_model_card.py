"""The model card describes the run, and unusual content of the run's files does not break it."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants
from support.checkpoint_files import tiny_model, write_checkpoint
from transformers import AutoModelForTokenClassification

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.export.card_metadata import card_metadata


def card_of_run(step: Path, output: Path, *, base: str, metrics: str = "", mixture: Any = None) -> ModelCard:
    """Export a checkpoint of a run with the base model, and return the card as the hub's client reads it."""
    run = step.parents[1]
    config = {
        "trainer": {},
        "data": {"mixture": {"gcd": {}} if mixture is None else mixture},
        "algorithm": {"adv_estimator": "grpo"},
        "actor_rollout_ref": {"model": {"path": base}},
    }
    (run / "config.yaml").write_text(json.dumps(config))
    (run / "metrics.jsonl").write_text(f"{metrics}\n")
    return ModelCard((export(step, output) / "README.md").read_text())


def metadata_with_base(base: str) -> dict[str, Any]:
    none = {"tags": [], "datasets": [], "title": "a run", "accuracies": {}}
    return card_metadata(base=base, pipeline="text-generation", is_adapter=False, **none)


def write_base(folder: Path, matter: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\n{matter}\n---\n\n# A model\n")
    return folder


def test_the_metadata_of_a_card_is_that_of_a_model_on_the_hub(step, tmp_path):
    metrics = json.dumps({"step": 20, "val-core/gcd/acc/mean@4": 0.25, "val-core/chain_sum/acc/mean@4": 1})
    mixture = {"gcd": {}, "chain_sum": {}}
    card = card_of_run(step, tmp_path / "out", base="Qwen/Qwen2.5-0.5B", metrics=metrics, mixture=mixture)
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("Qwen/Qwen2.5-0.5B", "finetune")
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert data["tags"] == ["verl", "reinforcement-learning", "reasoning-gym", "grpo"]
    assert data["datasets"] == ["reasoning-gym/gcd", "reasoning-gym/chain_sum"]
    assert card.data.model_name == "run, step 20"
    found = {result.dataset_type: (result.metric_type, result.metric_value) for result in card.data.eval_results}
    assert found == {"reasoning-gym/gcd": ("accuracy", 0.25), "reasoning-gym/chain_sum": ("accuracy", 1.0)}
    assert all("mean@4" in result.metric_name for result in card.data.eval_results)


@pytest.mark.parametrize(
    ("matter", "expected"),
    [
        ("license: apache-2.0", {"license": "apache-2.0"}),
        ("license: [mit]", {"license": "mit"}),
        (
            "license: other\nlicense_name: qwen-research\nlicense_link: https://huggingface.co/a/b/blob/main/LICENSE",
            {
                "license": "other",
                "license_name": "qwen-research",
                "license_link": "https://huggingface.co/a/b/blob/main/LICENSE",
            },
        ),
        ("license: other\nlicense_link: javascript:alert(1)\nlicense_name: '<b>'", {"license": "other"}),
        ("license: my-own", {}),
        ("license: {a: b}", {}),
        ("license: &a [*a]", {}),
        ("[", {}),
        ("- mit", {}),
    ],
)
def test_the_license_is_that_of_the_base_models_card(matter, expected, tmp_path):
    found = metadata_with_base(str(write_base(tmp_path / "base", matter)))
    assert {key: value for key, value in found.items() if key.startswith("license")} == expected


def test_the_license_of_a_hub_model_is_read_from_the_cache_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--someone--base"
    write_base(repository / "snapshots" / "abc", "license: mit")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    found = metadata_with_base("someone/base")
    assert (found["base_model"], found["license"]) == ("someone/base", "mit")


def test_a_folder_in_the_hubs_cache_is_named_by_its_model(tmp_path):
    base = write_base(tmp_path / "models--Qwen--Qwen2.5-0.5B" / "snapshots" / "abc", "license: apache-2.0")
    found = metadata_with_base(str(base))
    assert (found["base_model"], found["license"]) == ("Qwen/Qwen2.5-0.5B", "apache-2.0")


def test_an_exported_base_model_passes_its_own_base_model_on(step, tmp_path):
    base = write_base(tmp_path / "exported", "base_model: someone/base\nlicense: mit")
    card = card_of_run(step, tmp_path / "out", base=str(base))
    assert (card.data.base_model, card.data.license) == ("someone/base", "mit")
    assert str(tmp_path) not in card.content


def test_a_local_folder_is_never_named_as_a_base_model(step, tmp_path):
    base = write_base(tmp_path / "private" / "base", "base_model: /home/someone/model")
    card = card_of_run(step, tmp_path / "out", base=str(base))
    assert card.data.base_model is None
    assert str(tmp_path) not in card.content and "/home" not in card.content
    assert "| base model | base |" in card.content


def test_a_critic_has_the_task_of_its_class(tmp_path):
    critic = tiny_model(auto_class=AutoModelForTokenClassification, num_labels=1)
    actor = write_checkpoint(tmp_path / "global_step_1", critic, world_size=1)
    assert ModelCard((export(actor, tmp_path / "out") / "README.md").read_text()).data.pipeline_tag == (
        "token-classification"
    )


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
    assert ModelCard(card).data.eval_results[0].dataset_type == "reasoning-gym/a"
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
