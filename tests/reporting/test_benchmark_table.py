from rgtrain.reporting.benchmark_table import benchmark_figures, benchmark_table


def records(*values: float, prompts: str) -> list[dict]:
    """Return records with the keys of lm-evaluation-harness that figures are made from."""
    return [
        {"metrics": ["accuracy", "has_answer"], "accuracy": value, "has_answer": 1.0, "prompt_hash": prompt}
        for value, prompt in zip(values, prompts, strict=True)
    ]


def test_benchmarks_have_intervals_instead_of_an_error_of_0():
    figures = benchmark_figures({"rg_math": records(0, 0, 0, 0, 0, prompts="abcde")})
    assert [line.split(maxsplit=3) for line in benchmark_table(figures).splitlines()[2:]] == [
        ["rg_math", "accuracy", "5", "0.0 (0.0 to 43.4)"],
        ["rg_math", "has_answer", "5", "100.0 (56.6 to 100.0)"],
    ]


def test_equal_prompts_of_a_benchmark_are_one_question():
    [accuracy, _] = benchmark_figures({"rg_math": records(0, 0, 0, 1, 1, 1, prompts="aaabbb")})
    [once, _] = benchmark_figures({"rg_math": records(0, 1, prompts="ab")})
    assert (accuracy.num_problems, accuracy.num_questions, accuracy.mean) == (6, 2, 0.5)
    assert accuracy.interval == once.interval
    assert "6 (2 distinct)" in benchmark_table([accuracy])
