"""The machine that a process runs on: processors, accelerators, vLLM's settings for them, and orphan cleanup."""
