"""Every replacement of a name of verl, vLLM, torch, transformers or Ray."""
