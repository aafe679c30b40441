"""The folder of a run records how it was started, without secrets."""

import json
import subprocess
import sys
import time

import pytest

from rgtrain import provenance
from rgtrain.paths import PROJECT_ROOT


def test_every_start_appends_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_grpo.py", "seed=2"])
    provenance.record(tmp_path)
    provenance.record(tmp_path)
    first, second = (json.loads(line) for line in (tmp_path / provenance.FILE).read_text().splitlines())
    assert first["commit"] == second["commit"]
    head = subprocess.run(["git", "-C", str(PROJECT_ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert first["commit"] == (head.stdout.strip() or None)
    assert first["command"].endswith("train_grpo.py seed=2")
    assert first["packages"]["verl"] == "0.9.1"
    assert {"torch", "reasoning-gym"} <= {name.replace("_", "-") for name in first["packages"]}


def test_the_version_that_python_imports_is_recorded(tmp_path, monkeypatch):
    for folder, version in (("first", "1.0"), ("second", "2.0")):
        info = tmp_path / folder / f"twice-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: twice\nVersion: {version}\n")
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / folder)])
    assert provenance.provenance()["packages"]["twice"] == "1.0"


@pytest.mark.parametrize(
    "text",
    [
        "base_url=http://user:SECRET@host/v1",
        "https://u:S@SECRET@host",
        "see https://SECRET@host/path",
        "WANDB_API_KEY=SECRET python train.py",
        "++hub.accessToken=SECRET",
        "{'api_key': 'SECRET', 'n': 1}",
        '"headers": {"Authorization": "Bearer SECRET"}',
        r"{\"password\": \"SECRET\"}",
        "Authorization: Basic SECRET",
        "--api-key SECRET --n 1",
        "['--hub-token', 'SECRET', '--n', '1']",
        "http://host/v1?token=SECRET&n=1",
        "password: 'SECRET word'",
    ],
)
def test_a_secret_is_masked_at_any_position(text):
    masked = provenance.mask_secrets(text)
    assert "SECRET" not in masked and "***" in masked
    assert provenance.mask_secrets(masked) == masked


@pytest.mark.parametrize(
    "token", ["hf_abcdefghijklmnopqrstu", "sk-proj-abcdefghijkl0123456789", "ghp_abcdefghijklmnopqrst"]
)
def test_a_token_of_a_known_form_is_masked_without_a_key(token):
    assert provenance.mask_secrets(f"push with {token}, then") == "push with ***, then"


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=64 pad_token_id=3",
        "loss_agg_mode=token-mean",
        "password: null",
        "runs/hf_step_120",
        "http://host/a@b",
    ],
)
def test_other_text_is_unchanged(text):
    assert provenance.mask_secrets(text) == text


def test_values_are_masked_by_key_or_form():
    tree = {"api_key": "x", "urls": ["http://a:b@c"], "token": None, "n": 1, "nested": {"HF_TOKEN": "y"}}
    masked = {"api_key": "***", "urls": ["http://***@c"], "token": None, "n": 1, "nested": {"HF_TOKEN": "***"}}
    assert provenance.masked_values(tree) == masked


def test_a_recorded_command_contains_no_secrets(tmp_path, monkeypatch):
    words = [
        "train.py",
        "--token",
        "SECRET word",
        "++env={API_KEY: 'SECRET'}",
        "url=http://a:SECRET@b",
        "+a.password=SECRET,SECRET",
        "n=1",
    ]
    monkeypatch.setattr(sys, "argv", words)
    provenance.record(tmp_path)
    line = (tmp_path / provenance.FILE).read_text()
    assert "SECRET" not in line and "n=1" in line


HARD_TO_MATCH = [
    "token",
    "token ",
    "token=",
    "auth\"'",
    "--",
    "--a-token ",
    "-- ",
    "://",
    "://a:",
    "@",
    "sk-",
    "hf_",
    "hf_a",
    "api_",
    "'",
    "bearer ",
    "password: '",
    "token = bearer ",
    '\\"',
    "\\",
    "a",
    "github_pat_",
    "://a@",
    "--a-token', ",
]


@pytest.mark.parametrize("unit", HARD_TO_MATCH)
def test_masking_takes_linear_time(unit):
    short, long = (_seconds(unit * (length // len(unit))) for length in (20_000, 160_000))
    # Quadratic time would grow by a factor of 64.
    assert long < 24 * max(short, 1e-3)


def _seconds(text: str) -> float:
    def once() -> float:
        started = time.process_time()
        provenance.mask_secrets(text)
        return time.process_time() - started

    return min(once() for _ in range(3))
