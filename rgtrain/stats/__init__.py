"""Statistics of evaluations. All functions are pure, and importing them loads no torch."""

from rgtrain.stats.intervals import effective_size, mean_interval, share_interval, t_quantile
from rgtrain.stats.means import clustered_standard_error, mean
from rgtrain.stats.paired import PairedSums, adjusted_p_values, difference_interval, mean_difference, sign_flip_test
from rgtrain.stats.sampling import majority_at_k, pass_at_k

__all__ = [
    "PairedSums",
    "adjusted_p_values",
    "clustered_standard_error",
    "difference_interval",
    "effective_size",
    "majority_at_k",
    "mean",
    "mean_difference",
    "mean_interval",
    "pass_at_k",
    "share_interval",
    "sign_flip_test",
    "t_quantile",
]
