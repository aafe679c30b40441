"""Declare every replaced name of verl, vLLM, torch, transformers and Ray, and check the installed versions."""
