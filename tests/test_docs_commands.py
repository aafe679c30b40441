"""Every shell command, YAML block and Python block of the documentation is run, composed or parsed."""

import pytest
from support.doc_commands import (
    PYTHON,
    SCRIPTS,
    SHELL,
    YAML,
    Block,
    Fault,
    blocks,
    check_block,
    check_python,
    check_shell,
    check_yaml,
)
from support.shell_text import parse_commands

from rgtrain.commands.command_line import COMMANDS
from rgtrain.paths import PROJECT_ROOT

DOCUMENTS = [
    *(PROJECT_ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((PROJECT_ROOT / "docs").rglob("*.md")),
]
BLOCKS = [block for path in DOCUMENTS for block in blocks(path)]


def name_of(block: Block) -> str:
    return f"{block.path.relative_to(PROJECT_ROOT)}:{block.line}"


@pytest.mark.parametrize("block", BLOCKS, ids=name_of)
def test_every_code_block_works(block):
    check_block(block)


@pytest.mark.parametrize("block", BLOCKS, ids=name_of)
def test_every_code_block_has_a_language(block):
    assert block.language in {*SHELL, *YAML, *PYTHON, "text", "json", "toml", "diff", "mermaid", "bibtex", "dockerfile"}


def test_every_subcommand_of_rgtrain_can_be_documented():
    assert set(SCRIPTS) == set(COMMANDS)


def test_the_readme_has_commands_and_a_configuration():
    languages = {block.language for block in BLOCKS if block.path.name == "README.md"}
    assert languages & set(SHELL)
    assert languages & set(YAML)


@pytest.mark.parametrize(
    "text",
    [
        "bash train.sh",
        "bash train.sh setup && source .venv/bin/activate",
        "bash train.sh --config-name quickstart run_dir=runs/NAME > train.log 2>&1 &",
        "python3 -u train_grpo.py --config-name quickstart -m seed=1,2",
        "nohup .venv/bin/python train_grpo.py --config-name quickstart actor_rollout_ref.model.path=/data/my-model",
        "python train_grpo.py --config-path my_configs --config-name mine debug=smoke",
        "sbatch --nodes=2 cluster/slurm.sbatch --config-name quickstart seed=2",
        "python evaluation/evaluate_model.py --config evaluation/quick.yaml --model runs/NAME/hf max_tokens=64",
        "python evaluation/evaluate_model.py --config evaluation/quick.yaml tensor_parallel_size=8",
        "python utils/load_fsdp_to_hf.py runs/NAME runs/NAME/hf --verify",
        "python evaluation/compare_models.py --help",
        ".venv/bin/python -m pip install -c constraints-cpu.txt -r requirements-eval.txt",
        ".venv/bin/python -m pytest -q tests/curriculum -k ladder",
        "docker build -f cluster/Dockerfile --build-arg STACK=cpu -t rgtrain:cpu .",
        "docker run --rm rgtrain:cpu train --config-name quickstart",
        "ray start --head --port=6379",
        "rgtrain train --config-name quickstart preflight=only",
        "rgtrain export runs/NAME runs/NAME/hf --step best",
        "pip install 'rgtrain[cuda,eval]'",
        "tail -f runs/NAME/train.log | grep step",
        "greet() { echo hello; }\ngreet",
        "$ echo hello\nhello, no command\n$ ls docs",
    ],
)
def test_a_command_that_works_is_accepted(text):
    check_shell(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("bash train.sh --config-name nowhere", "nowhere"),
        ("bash train.sh --config-name quickstart trainer.sed=1", "sed"),
        ("bash train.sh --config-name quickstart mixture=nowhere", "nowhere"),
        ("bash train.sh --config-name quickstart data.train_batch_size=7", "train_batch_size"),
        ("bash train.sh --nowhere --config-name quickstart", "refuses these options"),
        ("echo yes && bash train.sh --config-name nowhere", "nowhere"),
        ("echo $(bash train.sh --config-name nowhere)", "nowhere"),
        ("bash train.sh \\\n  --config-name nowhere", "nowhere"),
        ("python train_grpo.py --config-name quickstart -m seed=1,2 reward=accuracy,nowhere", "nowhere"),
        ("python train_grpo.py --config-path configs/nowhere --config-name mine", "no folder"),
        ("sbatch cluster/slurm.sbatch --config-name nowhere", "nowhere"),
        ("sbatch cluster/nowhere.sbatch", "no file"),
        ("nohup timeout 60 bash train.sh --config-name nowhere", "nowhere"),
        ("docker run --rm rgtrain:cpu train --config-name nowhere", "nowhere"),
        ("docker build -f cluster/nowhere .", "no file"),
        ("python evaluation/evaluate_model.py --config evaluation/nowhere.yaml", "no file"),
        ("python evaluation/evaluate_model.py --config evaluation/quick.yaml max_token=64", "max_token"),
        ("python evaluation/evaluate_model.py --confi evaluation/quick.yaml --nowhere", "nowhere"),
        ("python utils/load_fsdp_to_hf.py runs/NAME runs/NAME/hf --nowhere", "nowhere"),
        ("python utils/nowhere.py", "no file"),
        ("rgtrain train --config-name nowhere", "nowhere"),
        ("rgtrain export runs/NAME runs/NAME/hf --nowhere", "nowhere"),
        ("rgtrain nowhere", "no sub-command"),
        ("python -m rgtrain.nowhere", "no module"),
        ("python -c 'print('", "no Python"),
        ("pip install -r nowhere.txt", "no file"),
        ("pip install rgtrain[nowhere]", "no extra"),
        ("pytest tests/nowhere", "no file"),
        ("ray start --nowhere", "nowhere"),
        ("cat docs/nowhere.md", "no file"),
        ("kubectl apply -f cluster/nowhere.yaml", "no file"),
        ("frobnicate --all", "unknown program"),
        ("git frobnicate", "unknown sub-command"),
        ("echo 'open", "no quote closes"),
    ],
)
def test_a_command_that_fails_is_found(text, fault):
    with pytest.raises(Fault, match=fault):
        check_shell(text)


@pytest.mark.parametrize(
    "text",
    [
        "# @package _global_\ndefaults: [/base, /model: qwen2.5_3b, _self_]\ndata: {mixture: {gcd: {weight: 1}}}",
        "data: {train_batch_size: 16}\nactor_rollout_ref: {actor: {ppo_mini_batch_size: 8}}",
        "# configs/reward/mine.yaml\n# @package reward\nparts: {accuracy: {weight: 1}, format: {weight: 0.5}}",
        "# @package _global_\n# A model.\nactor_rollout_ref: {model: {path: Qwen/Qwen2.5-0.5B-Instruct}}",
        "model_path: runs/NAME/hf\ncategories:\n- {category: sums, datasets: [{dataset: chain_sum, size: 5, seed: 1}]}",
        "scorer: {timeout_s: 10}",
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: runs}\nspec: {}",
    ],
)
def test_a_configuration_that_works_is_accepted(text):
    check_yaml(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("# @package _global_\ndefaults: [/base, /model: nowhere, _self_]", "nowhere"),
        ("# @package _global_\ndefaults: [/base, _self_]\ndata: {mixtur: {}}", "mixtur"),
        ("data: {mixture: {nowhere: {weight: 1}}}", "nowhere"),
        ("reward: {parts: {lenght: {weight: 1}}}", "length"),
        ("reward: {parts: {'pkg://my_package.rewards.brevity': {weight: 1}}}", "my_package"),
        ("# configs/reward/mine.yaml\n# @package reward\nparts: {lenght: {weight: 1}}", "length"),
        ("data: {held_out_files: [evaluation/nowhere.yaml]}", "nowhere"),
        ("categories: [{category: sums, datasets: [{dataset: nowhere, size: 5, seed: 1}]}]", "nowhere"),
        ("categories: []\nmax_token: 5", "unknown keys max_token"),
        ("scorer: {timeout: 10}", "timeout"),
        ("services: {web: {}}", "unknown keys services"),
        ("- one", "no mapping"),
        ("a: {", "no YAML"),
    ],
)
def test_a_configuration_that_fails_is_found(text, fault):
    with pytest.raises(Fault, match=fault):
        check_yaml(text)


def test_a_page_may_define_the_modules_that_it_names(tmp_path):
    page = tmp_path / "page.md"
    python = "```python\ndef brevity(completion, *, per_token=0.1):\n    return 0.0\n```\n"
    yaml = "```yaml\nreward: {{parts: {{'pkg://my_package.rewards.brevity': {{weight: 1, {}: 1}}}}}}\n```\n"
    page.write_text(python + yaml.format("per_token"))
    for block in blocks(page):
        check_block(block)
    page.write_text(python + yaml.format("per_word"))
    with pytest.raises(Fault, match="per_word"):
        check_block(list(blocks(page))[1])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("def brevity(:\n    pass", "no Python"),
        ("from rgtrain.problems.rewards import nowhere", "cannot import"),
        ("import rgtrain.nowhere", "cannot import"),
        ("from dataclasses import nowhere", "cannot be imported"),
        ("class Mine(nowhere):\n    pass", "cannot be imported"),
    ],
)
def test_python_that_fails_is_found(text, fault):
    with pytest.raises(Fault, match=fault):
        check_python(text)


def test_python_that_acts_is_not_run():
    check_python("raise SystemExit('this was run')")
    check_python("from rgtrain.problems.rewards import reward_part\n\n\ndef brevity(completion):\n    return 1.0")


def test_blocks_keep_their_line_and_lose_their_indentation(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("1. One\n\n   ```bash\n   ls docs\n   ```\n\n~~~Text\n```bash\n~~~\n")
    assert list(blocks(page)) == [Block(page, 4, "bash", "ls docs"), Block(page, 8, "text", "```bash")]


def test_a_block_without_an_end_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\nls docs\n")
    with pytest.raises(Fault, match="no line closes"):
        list(blocks(page))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b # comment", [["a", "b"]]),
        ("a 'b c' \"d # e\" f\\ g", [["a", "b c", "d # e", "f g"]]),
        ("a \\\n  b", [["a", "b"]]),
        ("a && b || c; d | e & f", [["a"], ["b"], ["c"], ["d"], ["e"], ["f"]]),
        ("A=1 B='2 3' a", [["a"]]),
        ("A=1", []),
        ("a > out 2>&1 < in", [["a"]]),
        ("a $(b c) d", [["b", "c"], ["a", "SUBSTITUTED", "d"]]),
        ("a `b c`", [["b", "c"], ["a", "SUBSTITUTED"]]),
        ('a <(b) "$(c)"', [["b"], ["c"], ["a", "SUBSTITUTED", "SUBSTITUTED"]]),
        ("{ a; b; } > c", [["a"], ["b"]]),
        ("for x in 1 2; do a $x; done", [["a", "$x"]]),
        ("if a; then b; else c; fi", [["a"], ["b"], ["c"]]),
        ("a <<END\nb\nEND\nc", [["a"], ["c"]]),
        ("$ a\noutput\n$ b \\\n  c\noutput", [["a"], ["b", "c"]]),
        ("f() { a; }\nf", [["a"], ["f"]]),
        ("a ${X:-b c} d", [["a", "${X:-b c}", "d"]]),
    ],
)
def test_shell_text_is_divided_into_commands(text, words):
    assert [list(command.words) for command in parse_commands(text)[0]] == words


def test_a_command_knows_its_line():
    assert [command.line for command in parse_commands("a\n\n# b\nc \\\n d\ne 'f\ng'\nh")[0]] == [1, 4, 6, 8]
