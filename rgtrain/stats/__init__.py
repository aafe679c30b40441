"""Statistics of evaluations. All functions are pure, and importing them loads no torch."""

from rgtrain.stats.contrasts import Block, Contrast, crossed_contrast
from rgtrain.stats.counts import false_discovery_p_values, fisher_exact_gain
from rgtrain.stats.intervals import effective_size, mean_interval, share_interval, t_quantile, t_tail
from rgtrain.stats.means import clustered_standard_error, mean
from rgtrain.stats.paired import PairedSums, adjusted_p_values, difference_interval, mean_difference, sign_flip_test
from rgtrain.stats.sampling import majority_at_k, pass_at_k

__all__ = [
    "Block",
    "Contrast",
    "PairedSums",
    "adjusted_p_values",
    "clustered_standard_error",
    "crossed_contrast",
    "difference_interval",
    "effective_size",
    "false_discovery_p_values",
    "fisher_exact_gain",
    "majority_at_k",
    "mean",
    "mean_difference",
    "mean_interval",
    "pass_at_k",
    "share_interval",
    "sign_flip_test",
    "t_quantile",
    "t_tail",
]
