"""Loaded by verl first thing in every process on a machine without an accelerator, by VERL_USE_EXTERNAL_MODULES."""

from rgtrain.upstream.replacements import apply

apply("platform")
