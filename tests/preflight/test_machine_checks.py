"""A machine or container with too little memory or temporary space is reported before the start."""

from pathlib import Path

import pytest
from support.experiments import small_with_model

from rgtrain.config.run_config import RunConfig
from rgtrain.errors import ConfigError
from rgtrain.preflight import machine_checks
from rgtrain.preflight.machine_checks import check_machine


def test_too_little_temporary_space_is_warned_about_or_refused(tiny_model, tmp_path, monkeypatch):
    config = RunConfig.of(small_with_model(tiny_model, tmp_path / "run"))
    free = {"/dev/shm": 64_000_000, "/tmp": 50_000_000_000}
    monkeypatch.setattr(machine_checks, "_free_bytes", lambda folder: free[str(folder)])
    (warning,) = check_machine(config, temporary=Path("/tmp"))
    assert (
        warning.startswith("/dev/shm has 64 MB free, so Ray keeps its objects in /tmp") and "--shm-size=8g" in warning
    )
    free["/tmp"] = 500_000_000
    with pytest.raises(
        ConfigError,
        match="/dev/shm has 64 MB free and /tmp has 500 MB free, but Ray needs .*--shm-size=8g, or set TMPDIR",
    ):
        check_machine(config, temporary=Path("/tmp"))
    free["/dev/shm"] = 8_000_000_000
    assert check_machine(config, temporary=Path("/tmp")) == []
    free["/tmp"] = 5_000_000
    with pytest.raises(ConfigError, match="/tmp has 5 MB free, but the run's temporary files need 268 MB; set TMPDIR"):
        check_machine(config, temporary=Path("/tmp"))


def test_too_little_memory_is_warned_about(tiny_model, tmp_path):
    config = RunConfig.of(small_with_model(tiny_model, tmp_path / "run"))
    (warning,) = check_machine(config, memory=2_000_000_000)
    assert "this machine or its container allows 2 GB" in warning
    assert check_machine(config, memory=64_000_000_000) == []


@pytest.mark.parametrize(
    "words", [["hardware=8x80gb"], ["ray_kwargs.ray_init.address=other:6379"], ["trainer.nnodes=2"]]
)
def test_a_run_for_other_machines_is_not_checked_against_this_one(tiny_model, tmp_path, words):
    config = RunConfig.of(small_with_model(tiny_model, tmp_path / "run", *words))
    assert check_machine(config, shared_memory=tmp_path / "none", temporary=tmp_path / "none", memory=1) == []


def test_a_trl_beside_which_verl_builds_no_model_is_refused(tiny_model, tmp_path, monkeypatch):
    config = RunConfig.of(small_with_model(tiny_model, tmp_path / "run"))
    package = tmp_path / "trl"
    package.mkdir()
    (package / "__init__.py").write_text("from .trainer import GRPOTrainer\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"TRL is installed in {package}, .* uninstall it with `pip uninstall trl`"):
        check_machine(config)
    (package / "experimental" / "ppo").mkdir(parents=True)
    check_machine(config)
