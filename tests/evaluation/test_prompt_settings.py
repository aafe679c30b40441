"""One prompt for training and evaluation: template arguments, templates of every origin, and the run's own settings."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from support.checkpoint_files import tiny_tokenizer
from support.evaluated import SCORES, finished_evaluation

from rgtrain.checkpoints.trained_prompt import TrainedPrompt, prompt_of_run, read_trained_prompt
from rgtrain.errors import ConfigError
from rgtrain.evaluation import evaluation_config
from rgtrain.evaluation.endpoint import connect
from rgtrain.evaluation.engine_interface import Prompt, Sampling
from rgtrain.evaluation.evaluation_config import load_config
from rgtrain.evaluation.evaluation_plan import EvaluationPlan
from rgtrain.evaluation.evaluation_prompts import PromptedProblem, load_tokenizer, render_prompts
from rgtrain.evaluation.summary import config_as_json, identity_of
from rgtrain.problems import PromptStyle, build_messages
from rgtrain.problems.evaluation_set import EvaluationDataset
from rgtrain.problems.prompts import parse_prompt
from rgtrain.reporting.comparison import compare

TEMPLATE = """{%- for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' + ('' if enable_thinking else '<think></think>') }}{% endif %}"""
RUN_PROMPT = {"system_prompt": "direct", "role": "user", "num_examples": 2, "examples_seed": 1}


@pytest.fixture
def model(tmp_path) -> Path:
    """Return the folder of a model with 33 tokens and no weights and no chat template."""
    folder = tmp_path / "base"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 33}))
    return folder


def prompt(folder: Path, **settings) -> str:
    """Return the rendered prompt of a question as text."""
    loaded = load_tokenizer(folder, **settings)
    messages = build_messages("1 + 1?", PromptStyle("Be very brief."))
    render_prompts([PromptedProblem(0, EvaluationDataset("sums", "chain_sum", size=1), None, messages)], loaded)
    return loaded.renderer.text(messages)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chat_template_kwargs": "enable_thinking"}, "chat_template_kwargs is 'enable_thinking'; give a mapping of"),
        ({"chat_template_kwargs": {1: 2}}, "chat_template_kwargs is {1: 2}; give a mapping of plain values"),
        ({"chat_template_kwargs": {"x": float("nan")}}, "chat_template_kwargs is {'x': nan}; give a mapping"),
        ({"chat_template_kwargs": {"tokenize": False}}, "has 'tokenize', which is set by the rendering"),
        ({"chat_template": 3}, "chat_template is 3; give a text"),
        ({"chat_template": "missing.jinja"}, "chat_template 'missing.jinja' does not exist; give a file, or the text"),
        ({"chat_template": "README.md"}, "README.md' is no Jinja template"),
    ],
)
def test_unusable_template_settings_are_refused(write_file, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write_file(**changes))


def test_template_arguments_and_a_template_change_the_prompt_and_the_identity(write_file, model):
    file = model / "mine.jinja"
    file.write_text(TEMPLATE)
    (model / "model.safetensors").touch()
    given = {"model_path": str(model), "chat_template_kwargs": {"enable_thinking": True}, "chat_template": str(file)}
    loaded = load_config(write_file(**given))
    settings = {"chat_template": loaded.chat_template, "arguments": loaded.chat_template_kwargs}
    assert prompt(model, **settings) == "system: Be very brief.\nuser: 1 + 1?\nassistant: "
    assert prompt(model, chat_template=TEMPLATE).endswith("assistant: <think></think>")
    identity = identity_of(loaded, EvaluationPlan([], [], {"digest": "0" * 32}, start=None))
    assert identity["chat_template_kwargs"] == {"enable_thinking": True}
    assert identity["chat_template"] == TEMPLATE
    assert "prompt_notes" not in identity | config_as_json(loaded)


def test_no_arguments_are_the_same_as_an_empty_mapping(write_file):
    assert load_config(write_file(chat_template_kwargs={})) == load_config(write_file())


def test_a_comparison_refuses_other_template_arguments(tmp_path):
    evaluations = [
        finished_evaluation(tmp_path, name, SCORES, chat_template_kwargs=given)
        for name, given in (("on", None), ("off", {"enable_thinking": False}))
    ]
    with pytest.raises(ConfigError, match=r"differ in chat_template_kwargs \(None and {'enable_thinking': False}\)"):
        compare(evaluations)


class RecordingHandler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep the tests' output free of requests."""

    def do_GET(self) -> None:
        self.send({"object": "list", "data": [{"id": "small", "object": "model"}]})

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        choice = {"index": 0, "message": {"role": "assistant", "content": "2"}, "finish_reason": "stop"}
        self.send({"id": "1", "object": "chat.completion", "created": 0, "model": "small", "choices": [choice]})

    def send(self, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_template_arguments_are_sent_to_an_endpoint(write_file):
    with ThreadingHTTPServer(("127.0.0.1", 0), RecordingHandler) as server:
        server.bodies = []
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        address = {"model_path": "openai://small", "base_url": f"http://127.0.0.1:{server.server_address[1]}/v1"}
        for given in ({"enable_thinking": False}, None):
            settings = load_config(write_file(**address, chat_template_kwargs=given)).endpoint_settings
            ask = Prompt([{"role": "user", "content": "1 + 1?"}], None, 1)
            sampling = Sampling(8, 0.0)
            list(connect(settings, sampling, num_requests=1).generate([ask], sampling))
        server.shutdown()
    assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in server.bodies[-1]


@pytest.mark.parametrize("given", [{"chat_template": TEMPLATE}, {"chat_template_kwargs": {"chat_template": TEMPLATE}}])
def test_a_template_is_refused_for_an_endpoint(write_file, given):
    with pytest.raises(ConfigError, match="chat_template is only for models on this machine, because an endpoint"):
        load_config(write_file(model_path="openai://small", base_url="http://127.0.0.1:1/v1", **given))


def test_a_template_only_in_the_processors_file_is_used(model):
    (model / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    assert prompt(model).startswith("system: Be very brief.\nuser: 1 + 1?")


@pytest.mark.parametrize(
    "content", ["", "[", '{"chat_template": 3}', '{"chat_template": [{"name": "a"}]}', "{}", "[" * 9999]
)
def test_a_damaged_file_of_a_processor_is_refused(model, content):
    (model / "chat_template.json").write_text(content)
    with pytest.raises(ConfigError, match=r"chat_template\.json' holds no chat template.*; restore it"):
        prompt(model)


def test_one_of_several_templates_is_chosen_by_name(model):
    settings = json.loads((model / "tokenizer_config.json").read_text())
    templates = [{"name": "chat", "template": TEMPLATE}, {"name": "rag", "template": TEMPLATE.replace("user", "u")}]
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": templates}))
    with pytest.raises(
        ConfigError, match="has the chat templates chat, rag and no default; give one of them as chat_t"
    ):
        prompt(model)
    assert "user: 1 + 1?" in prompt(model, chat_template="chat")
    with pytest.raises(ConfigError, match="'tools' is neither a file, .*; the model has the templates chat, rag"):
        prompt(model, chat_template="tools")


def test_an_adapters_own_template_and_tokenizer_are_used(model, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "chat_template.jinja").write_text(TEMPLATE)
    (model / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    assert load_tokenizer(model, adapter=adapter).folder == model
    assert prompt(model, adapter=adapter).startswith("system: Be very brief.\nuser:")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, adapter / name)
    assert load_tokenizer(model, adapter=adapter).folder == adapter
    assert prompt(model, adapter=adapter).startswith("system: Be very brief.\nuser:")
    assert "user" not in prompt(model, adapter=adapter, chat_template="{{ messages[0].content + messages[1].content }}")


def test_a_token_that_the_model_lacks_is_refused(model):
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 3}))
    with pytest.raises(ConfigError, match="writes token 4, but the model has only 3 tokens; give the tokenizer that"):
        prompt(model, chat_template=TEMPLATE)


def run_config(**changes) -> dict:
    model = {"path": "m", "custom_chat_template": TEMPLATE}
    data = {"prompt": RUN_PROMPT, "apply_chat_template_kwargs": {"enable_thinking": True}}
    return {"data": data | changes, "actor_rollout_ref": {"model": model}, "trainer": {}}


@pytest.fixture
def step(tmp_path) -> Path:
    """Return the folder of a checkpoint's step in a run."""
    folder = tmp_path / "run" / "checkpoints" / "global_step_5"
    (folder / "actor").mkdir(parents=True)
    (folder / "actor" / "model_world_size_1_rank_0.pt").touch()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(run_config()))
    return folder


@pytest.mark.parametrize("part", ["", "actor", "..", "../.."])
def test_a_checkpoint_is_evaluated_with_the_prompts_of_its_run(write_file, step, part):
    config = load_config(write_file(model_path=str(step / part)))
    assert config.prompt_style == PromptStyle(**RUN_PROMPT)
    assert (config.chat_template_kwargs, config.chat_template) == ({"enable_thinking": True}, TEMPLATE)
    [note] = config.prompt_notes
    assert note.startswith(
        'prompts as in training: developer_prompt "direct", developer_role "user", num_examples 2, examples_seed 1, '
        'chat_template_kwargs {"enable_thinking": true}, chat_template "'
    )


def test_values_of_the_file_and_the_command_take_precedence_and_are_reported(write_file, step):
    file = write_file(model_path=str(step), developer_prompt="DeepSeekZero", num_examples=2, chat_template=None)
    config = load_config(file, overrides={"chat_template_kwargs": {"enable_thinking": False}})
    assert config.prompt_style == PromptStyle("DeepSeekZero", "user", 2, 1)
    assert (config.chat_template_kwargs, config.chat_template) == ({"enable_thinking": False}, None)
    _, *warnings = config.prompt_notes
    assert warnings == [
        'warning: developer_prompt is "DeepSeekZero", but the model was trained with "direct"',
        'warning: chat_template_kwargs is {"enable_thinking": false}, but the model was trained with '
        '{"enable_thinking": true}',
        warnings[2],
    ]
    assert warnings[2].startswith("warning: chat_template is null, but the model was trained with")


def test_a_model_of_another_origin_has_the_files_prompts(write_file, model_folder):
    (model_folder.parent / "config.yaml").write_text(yaml.safe_dump(run_config()))
    config = load_config(write_file())
    assert (config.prompt_style, config.prompt_notes) == (PromptStyle(), ())


def test_an_exported_model_records_the_prompts_of_its_run(write_file, model_folder):
    prompt_of_run(run_config(apply_chat_template_kwargs=None)).write(model_folder)
    assert read_trained_prompt(model_folder) == TrainedPrompt(**RUN_PROMPT, chat_template=TEMPLATE)
    assert load_config(write_file()).prompt_style == PromptStyle(**RUN_PROMPT)


EXAMPLE = {"question": "What is 1 + 1?", "answer": "2"}


def test_own_examples_of_a_run_are_those_of_its_evaluation(write_file, model_folder):
    prompt = {"system_prompt": "Costs ${x} dollars.", "role": "system", "examples": [EXAMPLE]}
    prompt_of_run(run_config(prompt=prompt)).write(model_folder)
    config = load_config(write_file())
    assert config.prompt_style == parse_prompt(prompt)
    assert "examples [{" in config.prompt_notes[0]
    config = load_config(write_file(examples=None))
    assert (config.examples, len(config.prompt_notes)) == (None, 2)
    assert config.prompt_notes[1].startswith("warning: examples is null, but the model was trained with [{")


def test_examples_that_training_drops_are_not_those_of_its_evaluation(write_file, model_folder):
    prompt_of_run(run_config(prompt=RUN_PROMPT | {"examples": [EXAMPLE], "examples_until_step": 5})).write(model_folder)
    assert load_config(write_file()).prompt_style == PromptStyle("direct", "user", 0, 1)


def test_files_of_an_evaluation_are_recorded_by_their_content(write_file, tmp_path):
    (tmp_path / "prompt.txt").write_text("Be very brief.\n")
    (tmp_path / "examples.jsonl").write_text(json.dumps(EXAMPLE))
    given = {"developer_prompt": f"file://{tmp_path}/prompt.txt", "examples": f"{tmp_path}/examples.jsonl"}
    config = load_config(write_file(**given))
    identity = identity_of(config, EvaluationPlan([], [], {"digest": "0" * 32}, start=None))
    assert identity["developer_prompt"] == "Be very brief."
    assert identity["examples"] == (EXAMPLE | {"thinking": None},)
    assert config == load_config(write_file(developer_prompt="Be very brief.", examples=[EXAMPLE]))
    with pytest.raises(ConfigError, match="developer_prompt is 'file:///nope', which cannot be read"):
        load_config(write_file(developer_prompt="file:///nope"))
    with pytest.raises(ConfigError, match="worked example 1 lacks 'answer'"):
        load_config(write_file(examples=[{"question": "1?"}]))


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        (
            {"system_prompt": "pkg://os.getcwd"},
            "the prompt function 'pkg://os.getcwd'; if you trust it, give",
        ),
        (
            {"system_prompt": "file:///etc/hostname"},
            "has developer_prompt 'file:///etc/hostname' in place",
        ),
        (
            {"system_prompt": "direct", "examples": "/etc/hostname"},
            "has examples '/etc/hostname' in place",
        ),
    ],
)
def test_a_record_of_training_runs_no_code_and_reads_no_file(write_file, model_folder, recorded, message):
    prompt_of_run(run_config(prompt=recorded)).write(model_folder)
    with pytest.raises(ConfigError, match=message):
        load_config(write_file())
    load_config(write_file(developer_prompt="direct", examples=None))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.yaml' is damaged .*, so the prompts of training are unknown; restore or remove it"),
        ("data: {prompt: &a {role: 3}, more: *a}", "is damaged .it has aliases"),
        ("data: {prompt: {role: 3}}", "in training, developer_role is 3; give a text"),
    ],
)
def test_a_damaged_run_is_refused(write_file, step, content, message):
    (step.parents[1] / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(write_file(model_path=str(step)))


def test_dtype_auto_is_the_type_of_this_machine(write_file, monkeypatch):
    monkeypatch.setattr(evaluation_config, "compute_dtype", lambda: "float16")
    assert load_config(write_file(dtype="auto")).dtype == "float16"
    assert load_config(write_file(dtype="bfloat16")).dtype == "bfloat16"
