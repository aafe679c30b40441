"""verl's bootstrap of validation metrics, with one array operation in place of a loop."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Estimates = list[tuple[float, float]]


def in_one_operation(original: Callable[..., _Estimates]) -> Callable[..., _Estimates]:
    """Wrap verl's `bootstrap_metric`, which a validation calls for each problem, metric and number of samples.

    Args:
        original: verl's function, which reduces one resample at a time.

    Returns:
        The function to use. It draws the same resamples, so the results are equal up to rounding.
    """

    @wraps(original)
    def bootstrap_metric(
        data: Sequence[Any],
        subset_size: int,
        reduce_fns: Sequence[Callable[..., Any]],
        n_bootstrap: int = 1000,
        seed: int = 42,
    ) -> _Estimates:
        is_finite = all(isinstance(value, int | float) and math.isfinite(value) for value in data)
        if not is_finite or not all(reduce in (np.max, np.min) for reduce in reduce_fns):
            return original(data, subset_size, reduce_fns, n_bootstrap=n_bootstrap, seed=seed)
        values = np.array(data, dtype=np.float64)
        if (values == values[0]).all():
            return [(float(values[0]), 0.0) for _ in reduce_fns]
        resamples = values[_resampled(len(values), subset_size, n_bootstrap, seed)]
        reduced = [reduce(resamples, axis=1) for reduce in reduce_fns]
        return [(float(np.mean(one)), float(np.std(one))) for one in reduced]

    return bootstrap_metric


# A validation has the same sizes for all problems and metrics.
@lru_cache(maxsize=32)
def _resampled(num_values: int, subset_size: int, num_resamples: int, seed: int) -> NDArray[np.intp]:
    """Return the positions of the values in each resample, in the form [num_resamples, subset_size]."""
    return np.random.RandomState(seed).choice(num_values, size=(num_resamples, subset_size), replace=True)
