"""Where the project lies."""

from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
CONFIGS = PROJECT_ROOT / "configs"


def project_path(path: str | Path) -> Path:
    """`path`, relative to the project's root unless it is absolute (`~` is expanded)."""
    return PROJECT_ROOT / Path(path).expanduser()
