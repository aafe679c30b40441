"""Sharded training checkpoints -> the Hugging Face format that transformers and vLLM load."""

from rgtrain.checkpoints.exporting import DTYPES, export, exported

__all__ = ["DTYPES", "export", "exported"]
