"""Recognise the folder of a supervised run."""

from pathlib import Path

# The configuration of verl's SFT trainer, in the run's folder. A run of another kind has no such file.
SFT_CONFIG = "sft_trainer.yaml"
# The exported model, in the run's folder. It is written atomically at the end.
MODEL_FOLDER = "huggingface"


def is_supervised(run_dir: Path) -> bool:
    """Return whether a run's folder is that of supervised fine-tuning."""
    return (run_dir / SFT_CONFIG).is_file()
