import itertools
import random
from collections import Counter

import pytest

from rgtrain.stats import majority_at_k, mean, pass_at_k


@pytest.mark.parametrize(("num_right", "k", "chance"), [(0, 2, 0), (1, 1, 0.25), (1, 2, 0.5), (2, 2, 5 / 6), (3, 2, 1)])
def test_pass_at_k_for_four_answers_agrees_with_a_calculation_by_hand(num_right, k, chance):
    assert pass_at_k(num_right, num_samples=4, k=k) == pytest.approx(chance)


def test_pass_at_k_is_the_mean_over_all_choices_of_k_answers():
    right = [True, False, False, True, False, False]
    chosen = [any(subset) for subset in itertools.combinations(right, 3)]
    assert pass_at_k(2, num_samples=6, k=3) == pytest.approx(mean(chosen))


@pytest.mark.parametrize("k", [0, 4])
def test_a_k_outside_its_range_is_refused(k):
    with pytest.raises(ValueError, match="with 3 answers give 1 to 3"):
        pass_at_k(1, num_samples=3, k=k)
    with pytest.raises(ValueError, match="with 3 answers give 1 to 3"):
        majority_at_k(["1", "1", "2"], right=[True, True, False], k=k)


def majority_by_counting(answers, right, k):
    """Compute majority@k by its definition, in which every choice of k answers votes."""
    verdicts = dict(zip(answers, right, strict=True))
    won = []
    for votes in itertools.combinations(answers, k):
        counts = Counter(vote for vote in votes if vote is not None)
        best = [vote for vote, count in counts.items() if count == max(counts.values())]
        won.append(sum(verdicts[vote] for vote in best) / len(best) if best else 0)
    return mean(won)


@pytest.mark.parametrize("seed", range(30))
def test_majority_at_k_is_the_mean_over_all_choices_of_k_votes(seed):
    chance = random.Random(seed)
    answers = [chance.choice(["7", "8", "9", None]) for _ in range(7)]
    right = [answer == "7" for answer in answers]
    for k in range(1, 8):
        assert majority_at_k(answers, right=right, k=k) == pytest.approx(majority_by_counting(answers, right, k))


def test_majority_at_1_is_the_accuracy_and_missing_answers_have_no_vote():
    assert majority_at_k(["7", "8", None, None], right=[True, False, False, False], k=1) == 0.25
    assert majority_at_k([None, None], right=[False, False], k=2) == 0
