from rgtrain.training.metrics import Rollout, by_dataset


def rollout(dataset: str, group: str, reward: float, **counts: int) -> Rollout:
    return Rollout(dataset, group, reward, {"acc": reward, "response_length": 4.0}, hash((group, reward)), **counts)


BATCH = [
    rollout("chain_sum", "a", 1.0, num_held_out=2),
    rollout("chain_sum", "a", 0.0, num_held_out=2),
    rollout("chain_sum", "b", 0.0),
    rollout("chain_sum", "b", 0.0),
    rollout("gcd", "c", 1.0, num_too_long=1),
    rollout("gcd", "c", 1.0, num_too_long=1),
]


def test_means_are_taken_by_dataset():
    metrics = by_dataset(BATCH)
    assert (metrics["train/chain_sum/reward"], metrics["train/gcd/acc"]) == (0.25, 1.0)


def test_a_group_whose_completions_all_earn_the_same_has_no_signal():
    metrics = by_dataset(BATCH)
    assert (metrics["train/chain_sum/zero_signal"], metrics["train/gcd/zero_signal"]) == (0.5, 1.0)


def test_a_group_of_equal_completions_is_identical():
    metrics = by_dataset([*BATCH, rollout("gcd", "d", 0.5)])
    assert (metrics["train/chain_sum/identical"], metrics["train/gcd/identical"]) == (0.5, 0.5)


def test_a_group_with_equal_accuracies_has_no_signal_even_if_rewards_differ():
    rewards = [0.9, 1.0]
    group = [Rollout("gcd", "a", reward, {"acc": 1.0}, 0) for reward in rewards]
    assert by_dataset(group)["train/gcd/zero_signal"] == 1.0


def test_replaced_problems_are_counted_once_per_prompt():
    metrics = by_dataset(BATCH)
    assert (metrics["data/replaced_held_out"], metrics["data/replaced_too_long"]) == (2, 1)


def test_scoring_failures_are_summed_rather_than_averaged():
    failed = [Rollout("gcd", "a", 0.0, {"acc": 0.0, "num_timeout": float(index < 3)}, 0) for index in range(8)]
    metrics = by_dataset(failed)
    assert (metrics["train/gcd/num_timeout"], metrics["train/gcd/num_scored"]) == (3, 8)
