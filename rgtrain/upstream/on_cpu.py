"""Prepare verl for a machine without an accelerator. Through VERL_USE_EXTERNAL_MODULES, verl imports this first."""

from rgtrain.upstream.replacements import apply

apply("platform")
