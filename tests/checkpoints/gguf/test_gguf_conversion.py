"""A model written as GGUF comes back with equal logits, the right tokenizer and the right ends."""

import json

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from support.gguf_models import GGUF_FAMILIES, sentencepiece_metadata, tiny_gguf_model, write_gguf
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rgtrain.checkpoints.gguf import convert_gguf
from rgtrain.checkpoints.gguf.gguf_config import FAMILIES, model_config, tied_tensor
from rgtrain.checkpoints.gguf.gguf_file import open_gguf
from rgtrain.commands.prepare_model_command import main
from rgtrain.errors import ConfigError

IDS = torch.randint(4, 260, (2, 40), generator=torch.Generator().manual_seed(0))


def logits_of(model):
    with torch.inference_mode():
        return model(IDS).logits


def converted(path, **options):
    out = path.with_suffix("")
    lines = []
    convert_gguf(path, out, **({"dtype": "fp32"} | options), say=lines.append)
    return out, lines


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_every_family_is_tested():
    assert set(FAMILIES) == set(GGUF_FAMILIES)


@pytest.mark.parametrize("architecture", GGUF_FAMILIES)
def test_logits_survive_the_way_through_gguf(architecture, tmp_path):
    model = tiny_gguf_model(architecture)
    out, lines = converted(write_gguf(tmp_path / "model.gguf", architecture, model))
    torch.testing.assert_close(logits_of(load(out)), logits_of(model), rtol=1e-4, atol=1e-4)
    assert "equal the file's" in lines[0]
    assert lines[1].startswith("generated, greedily: ")


@pytest.mark.parametrize(
    ("kind", "output_kind", "kept"),
    [("F32", "F32", "token_embd"), ("Q4_0", "Q8_0", "output"), ("Q8_0", "Q4_0", "token_embd")],
)
def test_an_output_layer_that_repeats_the_embedding_is_tied_from_the_more_precise_copy(
    kind, output_kind, kept, tmp_path
):
    model = tiny_gguf_model("qwen2", tie_word_embeddings=True)
    kinds = {"token_embd.weight": kind, "output.weight": output_kind}
    path = write_gguf(tmp_path / "model.gguf", "qwen2", model, with_output=True, kinds=kinds)
    assert tied_tensor(open_gguf(path)) == f"{kept}.weight"
    if kept == "output":
        out, lines = converted(path)
        loaded = load(out)
        assert loaded.config.tie_word_embeddings is True
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
        assert (loaded.lm_head.weight - model.lm_head.weight).abs().max() < 0.01
        assert any(line.startswith("output layer: tied") for line in lines)


def test_a_model_with_its_own_output_layer_stays_untied(tmp_path):
    model = tiny_gguf_model("qwen2", tie_word_embeddings=False)
    file = open_gguf(write_gguf(tmp_path / "model.gguf", "qwen2", model, kind=GGMLQuantizationType.Q4_0))
    assert tied_tensor(file) is None
    assert model_config(file)["tie_word_embeddings"] is False


def test_a_model_without_an_output_layer_is_tied(tmp_path):
    model = tiny_gguf_model("llama", tie_word_embeddings=True)
    out, _ = converted(write_gguf(tmp_path / "model.gguf", "llama", model))
    torch.testing.assert_close(logits_of(load(out)), logits_of(model), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """Return the folder of a converted model, in the default dtype."""
    path = write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", "qwen2", tiny_gguf_model("qwen2"))
    out, lines = converted(path, dtype="bf16")
    return out, lines


def test_the_end_of_the_turn_ends_a_generation(qwen):
    out, lines = qwen
    tokenizer = AutoTokenizer.from_pretrained(out)
    # The metadata name <|endoftext|> as the end, but the chat template ends a turn with <|im_end|>.
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert GenerationConfig.from_pretrained(out).eos_token_id == [2, 0]
    assert lines[-1] == "ends of a generation: '<|im_end|>', '<|endoftext|>'"
    text = tokenizer.apply_chat_template([{"role": "user", "content": "12 + 3"}], tokenize=False)
    assert text == "<|im_start|>user\n12 + 3<|im_end|>\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_folder_is_bf16_and_other_loaders_know_its_tokenizer(qwen):
    out, _ = qwen
    config = AutoConfig.from_pretrained(out)
    assert str(config.dtype) == "torch.bfloat16"
    assert config.rms_norm_eps == 1e-6
    assert json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_quantised_values_are_those_of_llama_cpp(tmp_path):
    model = tiny_gguf_model("qwen2")
    file = open_gguf(write_gguf(tmp_path / "model.gguf", "qwen2", model, kind=GGMLQuantizationType.Q8_0))
    weight = model.model.layers[0].mlp.up_proj.weight.detach()
    scale = weight.reshape(-1, 32).abs().amax(dim=1, keepdim=True) / 127
    rounded = ((weight.reshape(-1, 32) / scale).round() * scale.half().float()).reshape(weight.shape)
    read = torch.from_numpy(file.tensors["blk.0.ffn_up.weight"].read())
    torch.testing.assert_close(read, rounded, rtol=0, atol=2e-2)


ROPE_CASES = {
    "linear": ("qwen2", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"factor": 4.0}),
    "yarn": (
        "qwen3",
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64,
        },
        {"factor": 4.0, "original_max_position_embeddings": 64},
    ),
}


@pytest.mark.parametrize("kind", ROPE_CASES)
def test_scaled_rotary_embeddings_are_kept(kind, tmp_path):
    architecture, metadata, settings = ROPE_CASES[kind]
    own = GGUF_FAMILIES[architecture][1]
    rope = own["rope_parameters"] | {"rope_type": kind} | settings
    model = tiny_gguf_model(architecture, rope_parameters=rope)
    out, _ = converted(write_gguf(tmp_path / "model.gguf", architecture, model, metadata=metadata))
    torch.testing.assert_close(logits_of(load(out)), logits_of(model), rtol=1e-4, atol=1e-4)
    assert AutoConfig.from_pretrained(out).rope_parameters.items() >= rope.items()


def test_the_scaling_of_llama_3_is_recovered_from_its_factors(tmp_path):
    llama3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0} | llama3
    model = tiny_gguf_model("llama", rope_parameters=rope)
    plain = 1 / 500_000.0 ** (torch.arange(0, 32, 2) / 32)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    path = write_gguf(tmp_path / "model.gguf", "llama", model, extra_tensors={"rope_freqs.weight": factors})
    out, _ = converted(path)
    found = AutoConfig.from_pretrained(out).rope_parameters
    assert {name: pytest.approx(value) for name, value in llama3.items()}.items() <= found.items()
    factors[3] *= 1.5
    path = write_gguf(tmp_path / "other.gguf", "llama", model, extra_tensors={"rope_freqs.weight": factors})
    with pytest.raises(ConfigError, match="by factors that are not those of Llama 3.1"):
        converted(path)


def test_long_rope_of_phi3_is_kept(tmp_path):
    long, short = ([factor + 0.1 * number for number in range(8)] for factor in (2.0, 1.0))
    rope = {"rope_type": "longrope", "rope_theta": 50_000.0, "long_factor": long, "short_factor": short}
    rope |= {"original_max_position_embeddings": 64}
    model = tiny_gguf_model("phi3", rope_parameters=rope, original_max_position_embeddings=64)
    extra = {
        f"rope_factors_{name}.weight": np.array(values, np.float32)
        for name, values in {"long": long, "short": short}.items()
    }
    metadata = {"rope.scaling.original_context_length": 64}
    out, _ = converted(write_gguf(tmp_path / "model.gguf", "phi3", model, metadata=metadata, extra_tensors=extra))
    torch.testing.assert_close(logits_of(load(out)), logits_of(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": {"block_count": 3}}, "claims 3 layers but holds 2"),
        ({"metadata": {"attention.head_count": 3}}, "3 attention heads for 64 values"),
        ({"metadata": {"attention.head_count": 0}}, "0 attention heads"),
        ({"metadata": {"attention.key_length": 7}}, "heads of 7 values"),
        ({"metadata": {"embedding_length": 128}}, "heads of 16 values"),
        ({"metadata": {"feed_forward_length": 97}}, "but its metadata imply"),
        ({"metadata": {"embedding_length": None}}, "lacks the metadata of hidden_size"),
        ({"metadata": {"rope.scaling.type": "secret"}}, "scales rotary embeddings by 'secret'"),
        ({"metadata": {"rope.freq_base": float("nan")}}, "which is not finite"),
        ({"metadata": {"context_length": "many"}}, "context_length = 'many'"),
        (
            {"extra_tensors": {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}},
            "holds 1 tensors that a qwen2 model",
        ),
        ({"tokenizer": {}}, "has 0 tokens for 320 rows"),
    ],
)
def test_metadata_that_contradict_the_tensors_are_refused(change, message, tmp_path):
    path = write_gguf(tmp_path / "model.gguf", "qwen2", tiny_gguf_model("qwen2"), **change)
    with pytest.raises(ConfigError, match=message) as refused:
        converted(path)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_that_cannot_be_computed_is_refused(tmp_path):
    model = tiny_gguf_model("qwen3moe")
    path = write_gguf(tmp_path / "model.gguf", "qwen3moe", model, metadata={"expert_used_count": 9})
    with pytest.raises(ConfigError, match="can't be computed"):
        converted(path)
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = tiny_gguf_model("qwen2")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    path = write_gguf(tmp_path / "model.gguf", "qwen2", model)
    with pytest.raises(ConfigError, match="up_proj.weight' values that are not finite"):
        converted(path)


def test_an_unknown_family_is_refused_with_the_list(tmp_path):
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "model.gguf", "rwkv6")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(ConfigError, match="architecture 'rwkv6', which can't be converted: .* gemma2, gemma3, llama"):
        converted(tmp_path / "model.gguf")


def test_a_sentencepiece_model_begins_with_its_own_token(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", "llama", tiny_gguf_model("llama"), tokenizer=sentencepiece_metadata())
    out, _ = converted(path)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_ids_to_tokens(tokenizer("the 12")["input_ids"]) == ["<s>", "▁the", "▁1", "2"]
    assert tokenizer.decode(tokenizer("the 12 ü")["input_ids"], skip_special_tokens=True) == "the 12 ü"


def test_the_command_reports_a_refusal_in_one_line(tmp_path, capsys):
    for arguments, message in (
        (["--dtype", "bf16", str(tmp_path / "out")], "--dtype and --force belong to --gguf"),
        (["--gguf", str(tmp_path / "none.gguf"), str(tmp_path / "out")], "error: there is no file"),
    ):
        with pytest.raises(SystemExit) as left:
            main(arguments, program="prepare_model.py")
        assert left.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_output_must_be_new(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", "qwen2", tiny_gguf_model("qwen2"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty: give a new folder"):
        converted(path)
    with pytest.raises(ConfigError, match="is not a model folder"):
        converted(path, force=True)
    with pytest.raises(ConfigError, match="unknown dtype 'int4'"):
        converted(path, dtype="int4")
