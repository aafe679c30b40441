"""Hydra's choices of `model=` that are no files: any model's folder or hub name.

Hydra asks this source after all folders of configuration files, so a choice of that name is preferred. It answers for
words of the command line, `defaults` lists, sweeps and completion alike.
"""

from pathlib import Path

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from rgtrain.models.embedded_model import EMBEDDED_MODEL
from rgtrain.models.model_lookup import CONFIG, is_hub_name
from rgtrain.paths import PROJECT_ROOT, path_from_here

_GROUP = "model"
_EMBEDDED = f"models/{EMBEDDED_MODEL}"


def folder_or_hub_name(given: str) -> str | None:
    """Return the value of `actor_rollout_ref.model.path` for a word after `model=` that is no choice.

    Args:
        given: A folder, relative to the current folder or to the project's root, or a hub name ORG/NAME.

    Returns:
        The folder or the hub name. None if there is no such folder and `given` has not the form of a hub name.
    """
    folder = path_from_here(given)
    if folder.exists():
        return str(folder)
    # The first use unpacks it.
    if str(Path(given)) in (_EMBEDDED, str(PROJECT_ROOT / _EMBEDDED)):
        return str(PROJECT_ROOT / _EMBEDDED)
    return given if is_hub_name(given) else None


class ModelSource(ConfigSource):
    """Answers `model=FOLDER` and `model=ORG/NAME` with a configuration that sets the model's path only."""

    @staticmethod
    def scheme() -> str:
        """Return the scheme of the search path's entry."""
        return "models"

    def available(self) -> bool:
        """Return True, because the source needs no folder."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Return whether a path is that of the group `model`."""
        return config_path.strip("/") == _GROUP

    def is_config(self, config_path: str) -> bool:
        """Return whether a path below `model/` is a model's folder or has the form of a hub name."""
        given = _given(config_path)
        return bool(given) and folder_or_hub_name(given) is not None

    def load_config(self, config_path: str) -> ConfigResult:
        """Return the configuration of a path that `is_config` accepts."""
        path = folder_or_hub_name(_given(config_path))
        return ConfigResult(
            provider=self.provider,
            path=self.full_path(),
            config=OmegaConf.create({"actor_rollout_ref": {"model": {"path": path}}}),
            header={"package": "_global_"},
        )

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return the folders in models/ for completion."""
        if not self.is_group(config_path) or results_filter == ObjectType.GROUP:
            return []
        return sorted({f"models/{path.parent.name}" for path in (PROJECT_ROOT / "models").glob(f"*/{CONFIG}")})


def _given(config_path: str) -> str:
    """Return the word after `model=`, and an empty text for the path of another group."""
    group, _, given = config_path.partition("/")
    return given if group == _GROUP else ""
