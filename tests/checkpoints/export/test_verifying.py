"""With `verify`, the export compares its result with the model in training, and states the differences."""

import json

import peft
import pytest
import torch
from support.checkpoint_files import tiny_model, write_checkpoint, write_plain
from transformers import AutoModelForTokenClassification

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.trained_outputs import LOG_PROBS, VALUES, TrainedOutputs, probe_sequences
from rgtrain.commands import export_command
from rgtrain.errors import ConfigError
from rgtrain.upstream.adapter_settings import adapter_settings

VOCABULARY_SIZE = 33


@torch.no_grad()
def write_outputs(actor, model, **changes):
    """Write the outputs of the model in training to the checkpoint in `actor`, as its workers do."""
    sequences = probe_sequences(model.config.to_dict(), vocab_size=VOCABULARY_SIZE)
    outputs = []
    for sequence in sequences:
        ids = torch.tensor(sequence)
        logits = model.eval()(ids[None]).logits[0, :-1]
        is_critic = logits.shape[-1] == 1
        log_probs = torch.log_softmax(logits, dim=-1)[range(len(ids) - 1), 0 if is_critic else ids[1:]]
        outputs.append((logits[:, 0] if is_critic else log_probs).tolist())
    fields = {"quantity": VALUES if is_critic else LOG_PROBS, "dtype": "float32", "adapter_scales": {}}
    TrainedOutputs(**{**fields, "sequences": sequences, "outputs": outputs} | changes).write(actor)


def rslora_model() -> peft.PeftModel:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=2, use_rslora=True, target_modules=["q_proj"], init_lora_weights=False)
    return peft.get_peft_model(tiny_model(), config)


def write_rslora(folder, **settings):
    model = rslora_model()
    actor = write_plain(folder / "global_step_1", model)
    (actor / "lora_train_meta.json").write_text(json.dumps(adapter_settings(None, model) | settings))
    write_outputs(actor, model, adapter_scales={"1": 2})
    return actor


def verified(folder, **options) -> str:
    """Return the statement of a verified export."""
    said: list[str] = []
    export(folder / "global_step_1" / "actor", folder / "exported", verify=True, say=said.append, **options)
    return said[0]


@pytest.mark.parametrize("lora", ["merged", "adapter"])
def test_an_adapter_is_compared_with_the_model_in_training(tmp_path, lora):
    write_rslora(tmp_path)
    statement = verified(tmp_path, lora=lora)
    assert statement.startswith("verified: the log-probabilities of 124 tokens equal those of the model in training")
    assert statement.endswith(", and the scales of 2 adapters equal the trainer's")


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_tied_embeddings_of_several_ranks_are_compared_with_the_model_in_training(tmp_path, dtype):
    model = tiny_model(tie_word_embeddings=True)
    write_outputs(write_checkpoint(tmp_path / "global_step_1", model, world_size=3), model)
    assert verified(tmp_path, dtype=dtype).startswith("verified: the log-probabilities of 124 tokens equal")


def test_the_values_of_a_critic_are_compared(tmp_path):
    model = tiny_model(auto_class=AutoModelForTokenClassification, num_labels=1)
    write_outputs(write_plain(tmp_path / "global_step_1", model), model)
    assert verified(tmp_path).startswith("verified: the values of 124 tokens equal those of the model in training")


def test_an_adapter_of_another_scale_is_found(tmp_path):
    actor = write_rslora(tmp_path, use_rslora=False)
    with pytest.raises(ConfigError, match="scales are 0.5 for 2 modules, but 1 for 2 modules in training: correct"):
        verified(tmp_path)
    # Without the record of the scales, the outputs differ.
    write_outputs(actor, rslora_model(), adapter_scales={"0.5": 2})
    with pytest.raises(
        ConfigError, match="log-probabilities of 124 tokens differ from those of the model in training by"
    ):
        verified(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step_1"]


def swapped_layers(model):
    first, second = "model.layers.0.", "model.layers.1."
    names = {name: name.replace(first, "X").replace(second, first).replace("X", second) for name in model.state_dict()}
    return {names[name]: tensor for name, tensor in model.state_dict().items()}


def cast_to_bf16(model):
    return {name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()}


def without_head(model):
    return {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


@pytest.mark.parametrize("fault", [swapped_layers, cast_to_bf16, without_head])
def test_other_weights_than_in_training_are_found(tmp_path, fault):
    model = tiny_model()
    actor = write_plain(tmp_path / "global_step_1", model)
    write_outputs(actor, model)
    [path] = actor.glob("model_*.pt")
    torch.save(fault(model), path)
    config = actor / "huggingface" / "config.json"
    if fault is without_head:
        config.write_text(config.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    with pytest.raises(
        ConfigError, match="differ from those of the model in training by up to .* so nothing was exported"
    ):
        verified(tmp_path)


def test_a_failed_verification_has_an_exit_code(tmp_path, capsys):
    write_rslora(tmp_path, use_rslora=False)
    with pytest.raises(SystemExit) as exit:
        export_command.main([str(tmp_path / "global_step_1"), str(tmp_path / "exported"), "--verify"], program="export")
    assert exit.value.code == 2
    assert "the adapter's scales are 0.5 for 2 modules" in capsys.readouterr().err


def test_a_checkpoint_without_outputs_gets_a_weaker_check_that_says_so(tmp_path):
    write_checkpoint(tmp_path / "global_step_1", tiny_model(tie_word_embeddings=True), world_size=2)
    statement = verified(tmp_path)
    assert statement.startswith("weaker check passed (same as the checkpoint's shards; not compared with the model in")
    assert "within 0 (limit 0.003)" in statement


def test_a_model_whose_rounding_could_hide_a_fault_is_not_called_verified(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
    write_outputs(write_plain(tmp_path / "global_step_1", model), model)
    with pytest.raises(ConfigError, match="can't be verified, because rounding alone may change its log-probabilities"):
        verified(tmp_path, dtype="bf16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": [[float("nan")] * 40]}, "no valid outputs"),
        ({"outputs": []}, "no valid outputs"),
        ({"sequences": [["a"]]}, "no valid outputs"),
        ({"dtype": "int8"}, "no valid outputs"),
        ({"sequences": [[1, VOCABULARY_SIZE]], "outputs": [[-1.0]]}, "tokens beyond the vocabulary of 33"),
        ({"quantity": VALUES}, "has the values of another kind of model than a language model"),
    ],
)
def test_damaged_outputs_are_refused(tmp_path, changes, message):
    model = tiny_model()
    write_outputs(write_plain(tmp_path / "global_step_1", model), model, **changes)
    with pytest.raises(ConfigError, match=message):
        verified(tmp_path)
