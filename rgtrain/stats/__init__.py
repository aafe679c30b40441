"""Statistics of evaluations. All functions are pure, and importing them loads no torch."""

from rgtrain.stats.intervals import effective_size, share_interval, t_quantile
from rgtrain.stats.means import clustered_standard_error, mean
from rgtrain.stats.paired import adjusted_p_values, bootstrap_interval, sign_test
from rgtrain.stats.sampling import majority_at_k, pass_at_k

__all__ = [
    "adjusted_p_values",
    "bootstrap_interval",
    "clustered_standard_error",
    "effective_size",
    "majority_at_k",
    "mean",
    "pass_at_k",
    "share_interval",
    "sign_test",
    "t_quantile",
]
