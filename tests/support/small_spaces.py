"""Parameters that leave a dataset few different problems."""

# 200 different questions of chain_sum in all.
ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
