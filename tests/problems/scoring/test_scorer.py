import asyncio
import json
import os
import pickle
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import reasoning_gym
from hypothesis import given, settings
from hypothesis import strategies as st
from support.make_problems import NAMES

from rgtrain.errors import ConfigError
from rgtrain.problems import DatasetSpec, Score, Scorer, build_mixture, dump_entry, load_entry
from rgtrain.problems.mixture import ProblemSource
from rgtrain.problems.scoring import EXECUTING, MAX_ANSWER_CHARS

# Metadata keys of an example answer, for entries without an answer.
POSSIBLE_ANSWERS = ("possible_answer", "example_answer", "example_correct_answer")
# Typical wrong answers of models. None is code, so they can be judged in this process.
PLAIN_ANSWERS = ("0", "-3/4", "banana", "x + 1", "A B C", "[[1, 2], [3, 4]]", "True", "1 2 3\n4 5 6", "sin(x)/x")
FOREVER = "exec('while True: pass')"


def source(name, **params):
    return ProblemSource(DatasetSpec(name, params=params), seed=0, size=100)


def honest_answer(problem):
    """Return the right answer, or an example answer of Reasoning Gym, or None if the problem has neither."""
    found = [problem.entry["answer"], *(problem.entry["metadata"].get(key) for key in POSSIBLE_ANSWERS)]
    answer = next((answer for answer in found if answer is not None), None)
    return json.dumps(answer) if isinstance(answer, dict) else answer


def without_seconds(scores):
    return [score._replace(seconds=0.0) for score in scores]


@pytest.fixture(scope="module")
def strict_scorer():
    """A scorer with low limits on time and memory."""
    with Scorer(num_workers=2, timeout_s=1.5, memory_mb=64) as scorer:
        yield scorer


@pytest.fixture(scope="module")
def countdown():
    return source("countdown")[0].entry


@pytest.fixture(scope="module")
def sums():
    return [source("chain_sum")[index].entry for index in range(20)]


def in_this_process(dataset, answer, entry):
    """Return the score of Reasoning Gym without the Scorer."""
    try:
        return float(dataset.score_answer(answer, entry)), None
    except Exception as error:
        return 0.0, f"exception: {type(error).__name__}"


@pytest.mark.parametrize("answers", ["honest", "plain"])
def test_scores_are_those_of_reasoning_gym_in_every_dataset(problems, scorer, answers):
    cases = []
    for name, (first, second, *_) in problems.items():
        honest = [honest_answer(first), honest_answer(second)]
        cases += [
            (name, text, first.entry) for text in (filter(None, honest) if answers == "honest" else PLAIN_ANSWERS)
        ]
    datasets = {name: reasoning_gym.create_dataset(name, seed=0, size=10) for name in problems}
    # A scorer may modify its entry.
    expected = [in_this_process(datasets[name], text, pickle.loads(pickle.dumps(entry))) for name, text, entry in cases]
    scores = scorer.score_many((text, entry) for _, text, entry in cases)
    differing = [
        (name, text, score, own)
        for (name, text, _), score, own in zip(cases, scores, expected, strict=True)
        if (score.accuracy, score.error) != own
    ]
    assert differing == []


def test_only_two_datasets_have_neither_an_answer_nor_an_example(problems):
    assert {name for name, made in problems.items() if honest_answer(made[0]) is None} == {"boxnet", "rush_hour"}


@pytest.mark.parametrize("answer", [None, "", " ", "\n\t "])
def test_missing_and_blank_answers_score_0_in_every_dataset(answer, problems, scorer):
    assert scorer.score_many((answer, made[0].entry) for made in problems.values()) == [Score(0.0)] * len(problems)


def test_an_answer_that_is_too_long_scores_0_with_an_error(scorer, sums):
    longest = sums[0]["answer"].rjust(MAX_ANSWER_CHARS, "0")
    assert scorer.score(longest, sums[0]).error is None
    assert scorer.score(longest + " ", sums[0]) == Score(0.0, error="too long: over 100000 characters")


@pytest.mark.parametrize(
    ("name", "answer", "error"),
    [
        ("prime_factorization", "two times three", "ValueError"),
        ("game_of_life", "{}", "KeyError"),
        ("coin_flip", "1e309", "OverflowError"),
        ("complex_arithmetic", "1.7e308+1.7e308j", "OverflowError"),
        ("propositional_logic", "¬" * 1100 + "P", "RecursionError"),
        ("n_queens", "exit()", "SystemExit"),
        ("n_queens", "(_ for _ in ()).throw(KeyboardInterrupt)", "KeyboardInterrupt"),
    ],
)
def test_an_exception_of_the_scorer_is_the_error_of_its_answer(name, answer, error, scorer):
    entry = source(name)[0].entry
    before, hostile, after = without_seconds(
        scorer.score_many((text, entry) for text in ("no answer", answer, "no answer"))
    )
    assert hostile == Score(0.0, error=f"exception: {error}")
    assert before == after


@pytest.mark.parametrize(
    ("name", "answer", "error"),
    [
        ("countdown", "9**9**9**9", "timeout"),
        ("countdown", FOREVER, "timeout"),
        ("coin_flip", "1e100000000", "timeout"),
        ("rubiks_cube", "R1000000", "timeout"),
        ("n_queens", "__import__('os')._exit(0)", "crash"),
        ("n_queens", "__import__('ctypes').string_at(0)", "crash"),
        ("n_queens", "__import__('os').closerange(0, 100)", "crash"),
        ("n_queens", "bytearray(8 << 30)", "memory"),
        ("n_queens", "[[0] * 10**6 for _ in range(10**6)]", "memory"),
        ("countdown", "exec('[[0] * 10**6 for _ in range(10**6)]')", "memory"),
        ("spiral_matrix", "range(10**10)", "memory"),
    ],
)
def test_an_answer_that_hangs_crashes_or_exhausts_memory_does_not_affect_others(
    name, answer, error, strict_scorer, sums
):
    entry = source(name)[0].entry
    pairs = [(text, one) for one in sums for text in (one["answer"], "no")]
    scores = strict_scorer.score_many([*pairs[:20], (answer, entry), *pairs[20:]])
    assert scores.pop(20)._replace(seconds=0.0) == Score(0.0, error=error)
    assert [(score.accuracy, score.error) for score in scores] == [(1.0, None), (0.0, None)] * len(sums)


def test_only_the_hanging_answers_of_a_batch_time_out(strict_scorer):
    entry = source("coin_flip")[0].entry
    answers = ["0.25", "1e100000000", "0.5", "0.75"] * 2
    errors = [score.error for score in strict_scorer.score_many((answer, entry) for answer in answers)]
    assert errors == [None, "timeout", None, None] * 2


REBINDING = (
    "[d.__class__.__setattr__(d.__class__, 'score_answer', lambda *a: 1.0) "
    "for d in __import__('gc').get_objects() if hasattr(d, 'score_answer') and hasattr(d, 'config')]"
)
BUILTINS = "__import__('builtins').__dict__.update(float=lambda _: 1.0, len=lambda _: 0)"


@pytest.mark.parametrize("name", sorted(EXECUTING))
def test_an_answer_that_corrupts_its_process_does_not_affect_others(name, scorer):
    entry = source(name)[0].entry
    poison = [REBINDING, f"exec({REBINDING!r})", BUILTINS, f"exec({BUILTINS!r})"]
    answers = [str(entry["answer"]), "garbage"]
    before = scorer.score_many((answer, entry) for answer in answers)
    scorer.score_many((answer, entry) for answer in poison * 2)
    after = scorer.score_many((answer, entry) for answer in answers * 4)
    assert without_seconds(after) == without_seconds(before) * 4
    assert before[0].accuracy == 1.0 > before[1].accuracy


def test_scores_come_in_input_order(scorer):
    gcd, queens = source("gcd"), source("n_queens")
    pairs = [(made[i].entry["answer"] if i % 3 else None, made[i].entry) for i in range(9) for made in (gcd, queens)]
    scores = scorer.score_many(iter(pairs))
    assert [score.accuracy for score in scores] == [float(i % 3 > 0) for i in range(9) for _ in range(2)]


def test_an_empty_list_of_answers_has_no_scores(scorer):
    assert scorer.score_many([]) == []


def test_answers_can_be_submitted_one_by_one(scorer, sums, countdown):
    futures = [scorer.submit(entry["answer"], entry) for entry in sums]
    futures += [scorer.submit("1", countdown), scorer.submit(None, countdown), scorer.submit("exit()", countdown)]
    done, _ = wait(futures, timeout=30)
    assert len(done) == len(futures)
    assert [future.result().accuracy for future in futures[: len(sums)]] == [1.0] * len(sums)


def test_a_hanging_answer_does_not_delay_later_answers(strict_scorer, sums, countdown):
    hanging = strict_scorer.submit(FOREVER, countdown)
    assert [strict_scorer.submit(entry["answer"], entry).result(timeout=30).accuracy for entry in sums] == [1.0] * len(
        sums
    )
    assert not hanging.done()
    assert hanging.result(timeout=30).error == "timeout"


def test_an_event_loop_can_wait_for_scores(scorer, sums):
    async def judge_all():
        return await asyncio.gather(*(asyncio.wrap_future(scorer.submit(one["answer"], one)) for one in sums))

    assert [score.accuracy for score in asyncio.run(judge_all())] == [1.0] * len(sums)


def test_a_cancelled_wait_does_not_affect_other_answers(strict_scorer, sums, countdown):
    async def give_up():
        return await asyncio.wait_for(asyncio.wrap_future(strict_scorer.submit(FOREVER, countdown)), timeout=0.1)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(give_up())
    assert [score.accuracy for score in strict_scorer.score_many((one["answer"], one) for one in sums)] == [1.0] * len(
        sums
    )


def test_threads_can_share_a_scorer(scorer, problems):
    pairs = [(honest_answer(made[0]), made[0].entry) for made in problems.values()] * 2
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda pair: scorer.score(*pair), pairs))
    assert without_seconds(together) == without_seconds(scorer.score_many(pairs))


def test_the_seconds_of_a_score_are_measured(strict_scorer, countdown):
    for answer, least in ((FOREVER, 1.5), ("1", 0.0)):
        started = time.monotonic()
        assert least < strict_scorer.score(answer, countdown).seconds < time.monotonic() - started


def test_workers_killed_from_outside_are_replaced_and_their_answers_judged(sums):
    with Scorer(num_workers=2) as scorer:
        for worker in scorer._pool._workers:
            os.kill(worker.pid, signal.SIGKILL)
        scores = scorer.score_many((entry["answer"], entry) for entry in sums)
    assert [score.accuracy for score in scores] == [1.0] * len(sums)


def test_thousands_of_answers_are_judged(scorer, sums):
    pairs = [(str(number), entry) for entry in sums for number in random.Random(0).sample(range(10**4), 150)]
    scores = scorer.score_many(pairs)
    assert [score.accuracy == 1 for score in scores] == [answer == entry["answer"] for answer, entry in pairs]


def one_decimal_place():
    problem = source("decimal_arithmetic", min_num_decimal_places=1, max_num_decimal_places=1, precision=6)[0]
    return problem, str(float(problem.entry["answer"]) + 0.05)


def numbers_too_small():
    return source("puzzle24", min_value=5)[0], "4*3*2*1"


def eight_days_for_nine():
    made = source("time_intervals", task_types=["date"], max_date_difference_days=10)[0]
    days = int(made.entry["answer"].split()[0])
    return made, f"{days + 1} days"


@pytest.mark.parametrize(
    ("make", "accuracy", "by_default"),
    [(one_decimal_place, 1.0, 0.0), (numbers_too_small, 0.01, 1.0), (eight_days_for_nine, 0.9, 0.99)],
)
def test_an_entry_contains_the_parameters_of_its_dataset(make, accuracy, by_default, scorer):
    problem, answer = make()
    entry = load_entry(dump_entry(problem.entry))
    without = entry | {"metadata": entry["metadata"] | {"source_params": {}}}
    assert scorer.score(answer, entry).accuracy == pytest.approx(accuracy)
    assert scorer.score(answer, without).accuracy == pytest.approx(by_default)


def test_an_entry_keeps_lists_and_tuples_in_parameters(scorer):
    for operators in (["+", "-"], ("+", "-")):
        entry = load_entry(dump_entry(source("countdown", operators=operators)[0].entry))
        assert entry["metadata"]["source_params"] == {"operators": operators}
        assert scorer.score(entry["answer"], entry).accuracy == 1.0


def test_validation_is_scored_against_its_own_entry(scorer):
    spec = DatasetSpec("spell_backward", params={"min_word_len": 6})
    first, second = (build_mixture([spec], seed=seed, size=1)[0] for seed in (0, 1))
    assert first.index == second.index
    assert scorer.score(second.entry["answer"], second.entry).accuracy == 1.0
    assert scorer.score(second.entry["answer"], first.entry).accuracy < 1.0


def test_scoring_does_not_change_later_problems(scorer):
    made = source("codeio")
    before = [made[index].question for index in range(5)]
    other = source("codeio", difficulty=6)[0]
    scorer.score(other.entry["answer"], other.entry)
    assert [made[index].question for index in range(5)] == before


@pytest.mark.parametrize("answer", ["1", None, ""])
@pytest.mark.parametrize(
    "entry",
    [
        {"question": "?", "answer": "1"},
        {"question": "?", "answer": "1", "metadata": {}},
        {"question": "?", "answer": "1", "metadata": {"source_dataset": "no_such_dataset"}},
    ],
)
def test_an_entry_with_an_unknown_dataset_raises(entry, answer, scorer):
    with pytest.raises(KeyError):
        scorer.score(answer, entry)


def test_an_entry_whose_parameters_its_dataset_refuses_raises(scorer, sums):
    metadata = {"source_dataset": "chain_sum", "source_params": {"min_terms": -1}}
    with pytest.raises(ConfigError, match="dataset 'chain_sum' refuses"):
        scorer.score("1", {"question": "?", "answer": "1", "metadata": metadata})
    assert scorer.score(sums[0]["answer"], sums[0]).accuracy == 1.0


def test_a_scorer_outside_of_a_with_block_raises(sums):
    scorer = Scorer(num_workers=1)
    with pytest.raises(RuntimeError, match="inside a with block"):
        scorer.score("1", sums[0])
    with scorer:
        assert scorer.score(sums[0]["answer"], sums[0]).accuracy == 1.0
    with pytest.raises(RuntimeError, match="inside a with block"):
        scorer.score("1", sums[0])


def test_unfinished_answers_raise_if_the_scorer_is_closed(countdown):
    with Scorer(num_workers=1, timeout_s=100) as scorer:
        hanging = [scorer.submit(FOREVER, countdown) for _ in range(2)]
        time.sleep(0.2)
    for future in hanging:
        with pytest.raises(RuntimeError, match="closed while answers were waiting"):
            future.result(timeout=10)


def test_a_killed_scoring_server_is_an_error_not_a_score(countdown):
    with Scorer(num_workers=1, timeout_s=100) as scorer:
        hanging = scorer.submit(FOREVER, countdown)
        scorer._pool._server._process.kill()
        with pytest.raises(RuntimeError, match="the scoring server"):
            hanging.result(timeout=30)
        with pytest.raises(RuntimeError):
            scorer.score("1", countdown)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": 0}, "the scorer's num_workers is 0; give a whole number from 1 up"),
        ({"timeout_s": 0}, "the scorer's timeout_s is 0; give seconds above 0"),
        ({"timeout_s": "5"}, "the scorer's timeout_s is '5'; give seconds above 0"),
        ({"memory_mb": 1.5}, "the scorer's memory_mb is 1.5; give a whole number from 1 up"),
        ({"allow_unconfined": "yes"}, "the scorer's allow_unconfined is 'yes'; give true or false"),
        ({"timeout": 5}, "the scorer has no setting 'timeout'; did you mean 'timeout_s'"),
    ],
)
def test_unusable_settings_are_refused_with_the_reason(settings, message):
    with pytest.raises(ConfigError, match=message):
        Scorer(**settings)


@settings(max_examples=500)
@given(name=st.sampled_from(NAMES), answer=st.text(max_size=60))
def test_any_text_has_a_score_in_0_to_1_or_an_error(problems, strict_scorer, name, answer):
    score = strict_scorer.score(answer, problems[name][0].entry)
    assert 0.0 <= score.accuracy <= 1.0
    assert score.error is None or score.accuracy == 0.0


CODE = (
    "(",
    ")",
    "[",
    "]",
    "**",
    "*",
    "9",
    "1e9",
    "x",
    "sin",
    ".",
    "__",
    "exec",
    "import",
    "'",
    '"',
    " ",
    ",",
    "-",
    "\n",
)


@settings(max_examples=300)
@given(name=st.sampled_from(sorted(EXECUTING)), answer=st.lists(st.sampled_from(CODE), max_size=12).map("".join))
def test_any_code_has_a_score_in_0_to_1_or_an_error(problems, strict_scorer, name, answer):
    score = strict_scorer.score(answer, problems[name][0].entry)
    assert 0.0 <= score.accuracy <= 1.0
    assert score.error is None or score.accuracy == 0.0
