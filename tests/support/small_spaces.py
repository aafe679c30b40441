"""Parameters with which a dataset has few distinct problems."""

# chain_sum then has 200 distinct questions.
ONE_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
