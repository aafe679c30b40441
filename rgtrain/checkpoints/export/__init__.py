"""Export sharded training checkpoints to the Hugging Face format that transformers and vLLM load."""

from rgtrain.checkpoints.export.exporting import DTYPES, export

__all__ = ["DTYPES", "export"]
