"""Convert a GGUF file, the format of llama.cpp, to a Hugging Face model folder."""

from rgtrain.checkpoints.gguf.gguf_conversion import convert_gguf

__all__ = ["convert_gguf"]
