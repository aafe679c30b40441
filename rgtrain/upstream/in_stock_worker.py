"""Prepare verl's own engines for a CPU and for other attentions than flash-attn, for the engine `verl`.

verl imports this module in every worker, as `model.external_lib`.
"""

from rgtrain.upstream.replacements import apply

apply("worker")
apply("stock_worker")
