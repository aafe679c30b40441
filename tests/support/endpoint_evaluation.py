"""Configure an evaluation of the model behind the tests' chat server."""

from pathlib import Path

import yaml
from support.chat_server import MODEL

from rgtrain.evaluation.evaluation_config import EvaluationConfig, load_config

NUM_PROBLEMS = 60


def endpoint_config(folder: Path, base_url: str, **changes) -> EvaluationConfig:
    """Write `folder`/endpoint.yaml for the server at `base_url`, with `changes` to its values, and load it."""
    datasets = [{"dataset": "chain_sum", "size": NUM_PROBLEMS // 2}, {"dataset": "ab", "size": NUM_PROBLEMS // 2}]
    values = {
        "model_path": f"openai://{MODEL}",
        "base_url": base_url,
        "output_dir": str(folder / "results"),
        "max_tokens": 16,
        "temperature": 1.0,
        "eval_repeats": 2,
        "endpoint": {"max_concurrent": 16, "timeout_s": 1},
        "categories": [{"category": "mixed", "datasets": datasets}],
    }
    path = folder / "endpoint.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return load_config(path)
