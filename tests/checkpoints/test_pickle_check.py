"""A resume refuses files that would run code when loaded."""

import functools
import io
import os
import pickle
import random
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoint_files import tiny_model, write_checkpoint

from rgtrain.checkpoints.pickle_check import check_pickles
from rgtrain.errors import ConfigError

# All files that verl loads from a checkpoint of an algorithm with a critic.
LOADED = [f"{role}/{part}_world_size_1_rank_0.pt" for role in ("actor", "critic") for part in ("model", "optim")]
LOADED += ["actor/extra_state_world_size_1_rank_0.pt", "critic/extra_state_world_size_1_rank_0.pt", "data.pt"]


def benign_checkpoint(folder: Path) -> Path:
    """Save values of all types that verl saves."""
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(max, 0.1))
    random_state = {"cpu": torch.get_rng_state(), "numpy": np.random.get_state(), "random": random.getstate()}
    for role in ("actor", "critic"):
        (folder / role).mkdir(parents=True)
        contents = {"model": model.state_dict(), "optim": optimizer.state_dict()}
        contents["extra_state"] = {"lr_scheduler": scheduler.state_dict(), "rng": random_state}
        for part, content in contents.items():
            torch.save(content, folder / role / f"{part}_world_size_1_rank_0.pt")
    sampler = {"_sampler_iter_state": None, "fetcher_state": {"x": np.int64(3)}, "num_yielded": 2}
    plain = [{1}, 2j, b"bytes", bytearray(b"x"), 2**80, None, (True, 1.5), "text", OrderedDict(x=1), Counter("x")]
    torch.save({**sampler, "plain": plain}, folder / "data.pt")
    return folder


class Calls:
    """An object whose pickle calls `function` when it is loaded."""

    def __init__(self, function: Callable, *args: Any):
        self._call = function, args

    def __reduce__(self):
        return self._call


def payloads(proof: Path) -> dict[str, Any]:
    write = Calls(Path.write_text, proof, "ran")
    return {
        "a call": write,
        "a shell": Calls(os.system, f"touch {proof}"),
        "eval": Calls(eval, f"open({str(proof)!r}, 'w')"),
        "getattr": Calls(getattr, proof, "touch"),
        "partial": Calls(functools.partial, os.system, f"touch {proof}"),
        "map": Calls(list, Calls(map, os.system, [f"touch {proof}"])),
        "a nested pickle": Calls(pickle.loads, pickle.dumps(write)),
        "torch's own loader": Calls(torch.load, str(proof)),
        "numpy's loader": Calls(np.load, str(proof)),
    }


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_sharded_model_passes(tmp_path, replicas):
    actor = write_checkpoint(tmp_path / "global_step_1", tiny_model(), world_size=2, num_replicas=replicas)
    check_pickles(actor.parent)


@pytest.mark.parametrize("name", LOADED)
def test_a_file_that_would_run_code_is_refused_by_name_before_a_resume(tmp_path, name):
    folder = benign_checkpoint(tmp_path / "global_step_1")
    check_pickles(folder)
    proof = tmp_path / "proof"
    for way, content in payloads(proof).items():
        torch.save({"value": content}, folder / name)
        with pytest.raises(ConfigError, match=f"{Path(name).name}' could run its author's code .*it uses"):
            check_pickles(folder)
        assert not proof.exists(), way


def test_the_refused_files_do_run_code_when_loaded(tmp_path):
    proof = tmp_path / "proof"
    for way in ("a call", "a shell", "eval", "map", "a nested pickle"):
        torch.save({"value": payloads(proof)[way]}, tmp_path / "data.pt")
        torch.load(tmp_path / "data.pt", weights_only=False)
        assert proof.exists(), way
        proof.unlink()


def old_format(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def bare_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def later_protocol(content: Any, path: Path) -> None:
    torch.save(content, path, pickle_protocol=4)


def script(content: Any, path: Path) -> None:
    torch.save(content, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].split('/')[0]}/constants.pkl", pickle.dumps(content))


def link_to_a_pipe(content: Any, path: Path) -> None:
    os.mkfifo(path.with_suffix(".pipe"))
    path.symlink_to(path.with_suffix(".pipe"))


@pytest.mark.parametrize("write", [old_format, bare_pickle, later_protocol, script, link_to_a_pipe])
def test_a_format_that_torch_save_does_not_write_is_refused(tmp_path, write):
    folder = benign_checkpoint(tmp_path / "global_step_1")
    (folder / "data.pt").unlink()
    write({"value": Calls(Path.touch, tmp_path / "proof")}, folder / "data.pt")
    with pytest.raises(ConfigError, match="data.pt'"):
        check_pickles(folder)
    assert not (tmp_path / "proof").exists()


# Set attribute "x" of Parameter to 1, call an OrderedDict, use a dotted name, use a Python 2 name.
MALICIOUS_PICKLES = (
    b"\x80\x02ctorch.nn.parameter\nParameter\n(NX\x01\x00\x00\x00xK\x01dtb.",
    b"\x80\x02ccollections\nOrderedDict\n)R)R.",
    b"\x80\x04\x8c\x0bcollections\x8c\x18OrderedDict.__reduce__.x\x93.",
    b"\x80\x02c__builtin__\nopen\n)R.",
)


@pytest.mark.parametrize("structure", MALICIOUS_PICKLES)
def test_a_structure_that_torch_never_writes_is_refused(tmp_path, structure):
    path = tmp_path / "data.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", structure)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    with pytest.raises(ConfigError, match="data.pt'"):
        check_pickles(tmp_path)
    assert not hasattr(torch.nn.Parameter, "x")


def test_a_linked_part_of_a_checkpoint_is_checked_too(tmp_path):
    folder = benign_checkpoint(tmp_path / "global_step_1")
    (folder / "actor").rename(tmp_path / "elsewhere")
    (folder / "actor").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    check_pickles(folder)
    torch.save({"value": Calls(print, "ran")}, tmp_path / "elsewhere" / "optim_world_size_1_rank_0.pt")
    with pytest.raises(ConfigError, match="optim_world_size_1_rank_0.pt' could run its author's code"):
        check_pickles(folder)


@pytest.mark.parametrize("malicious_first", [True, False])
@pytest.mark.parametrize("junk", ["", "before", "after"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_pickles_is_refused_or_runs_no_code(tmp_path, malicious_first, junk):
    proof, path = tmp_path / "proof", tmp_path / "global_step_1" / "data.pt"
    path.parent.mkdir()
    pickles = [pickle.dumps({"value": Calls(Path.touch, proof)}, 2), pickle.dumps({"value": 3}, 2)]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number, structure in enumerate(pickles if malicious_first else reversed(pickles)):
            archive.writestr("archive/data.pkl", structure)
            if not number:
                archive.writestr("archive/version", "3\n")
                archive.writestr("archive/byteorder", "little")
    parts = {"": [content.getvalue()], "before": [b"PK\x03\x04" * 9, content.getvalue()]}
    parts["after"] = [content.getvalue(), b"x" * 100]
    path.write_bytes(b"".join(parts[junk]))
    try:
        check_pickles(path.parent)
    except ConfigError:
        return
    assert torch.load(path, weights_only=False) == {"value": 3}
    assert not proof.exists()


def test_every_truncation_of_a_file_is_reported_with_its_name(tmp_path):
    folder = benign_checkpoint(tmp_path / "global_step_1")
    content = (folder / "data.pt").read_bytes()
    for length in range(0, len(content), 37):
        (folder / "data.pt").write_bytes(content[:length])
        with pytest.raises(ConfigError, match="data.pt' (is damaged and cannot be read|was not written by torch.save)"):
            check_pickles(folder)
