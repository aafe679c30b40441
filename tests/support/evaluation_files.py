"""Write evaluation files."""

from pathlib import Path

import yaml

SUMS = {"dataset": "chain_sum", "size": 4}


def write_evaluation_file(folder: Path, *, model: Path, **changes) -> Path:
    """Write an evaluation of four sums, with `changes` to its values. The value "absent" removes a key."""
    values = {
        "model_path": str(model),
        "output_dir": str(folder / "results"),
        "max_tokens": 16,
        "temperature": 0,
        "categories": categories_of(SUMS),
    }
    values = {key: value for key, value in (values | changes).items() if value != "absent"}
    path = folder / "evaluation.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def categories_of(*datasets: dict) -> list[dict]:
    """Return a list of one category that has these datasets."""
    return [{"category": "arithmetic", "datasets": list(datasets)}]
