"""Running an evaluation, from its configuration to its results."""

import dataclasses
import functools
import re
import shutil
from pathlib import Path

import pytest
from support.chat_server import KEY, serving
from support.endpoint_evaluation import endpoint_config
from support.evaluated import answers_of, plan_of, write_results

from rgtrain.checkpoints.trained_problems import TRAINED_PROBLEMS
from rgtrain.errors import ConfigError
from rgtrain.evaluation import runner
from rgtrain.evaluation.engine_interface import Completion
from rgtrain.evaluation.evaluation_config import EvaluationConfig
from rgtrain.evaluation.evaluation_plan import opened_plan
from rgtrain.evaluation.judged_answers import Answer
from rgtrain.evaluation.results import ResultsFolder, read_answers
from rgtrain.evaluation.runner import (
    Tally,
    _belongs_to,
    _training_overlap,
    answer_all,
    answer_pending,
    evaluate,
    find_pending,
)
from rgtrain.evaluation.summary import identity_of, identity_with_limit
from rgtrain.jobs import watchdog


@pytest.mark.parametrize("change", [{"problem": 99}, {"repeat": 7}, {"fingerprint": "0" * 32}])
def test_an_answer_to_another_problem_is_reported_with_its_line_and_asked_for_again(config, answers, change):
    folder, plan = ResultsFolder(config.results_folder), plan_of(config)
    with folder.writing(identity_of(config, plan)) as writer:
        for answer in [*answers[:4], dataclasses.replace(answers[4], **change), answers[5]]:
            writer.add(answer)
    with folder.writing(identity_of(config, plan), belongs=_belongs_to(plan, config)) as writer:
        assert [problem.prompted.number for problem in find_pending(plan, writer, num_samples=1)] == [4]
        assert re.fullmatch(
            r"line 5 of .*results\.jsonl is not usable \(answer . to problem \d+ does not belong to this evaluation\)",
            *writer.dropped,
        )


def test_a_stalled_evaluation_is_reported_and_not_ended(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(runner, "_REPORT_AFTER_S", 1)
    monkeypatch.setattr(watchdog, "_LOOK_EVERY_SECONDS", 0.1)
    with serving(seconds=3) as server:
        config = endpoint_config(tmp_path, server.base_url, eval_repeats=1, endpoint={"timeout_s": 60})
        evaluate(config, command=["x"])
    out, traces = capfd.readouterr()
    assert "answering has stood still for 1 s at answer" in out or "answering has stood still for 1 s; stack" in out
    assert "most recent call first" in traces
    assert ResultsFolder(config.results_folder).summary.is_file()


def test_the_problems_that_the_model_was_trained_on_are_counted(config, tiny_model, tmp_path):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = dataclasses.replace(config, model_path=str(model))
    with opened_plan(config) as plan:
        assert _training_overlap(plan).startswith("problems seen in training: unknown")
    trained = [plan.prompted[number].problem.digest for number in (0, 3)]
    (model / TRAINED_PROBLEMS).write_text("".join(f"{digest}\n" for digest in [*trained, "0" * 16]))
    with opened_plan(config) as plan:
        assert _training_overlap(plan) == "problems seen in training: 2 of 6"
        assert not plan.thinking_begun


def test_a_chat_template_that_opens_thinking_is_noticed(config, tiny_model, tmp_path):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    (model / "chat_template.jinja").write_text(template)
    with opened_plan(dataclasses.replace(config, model_path=str(model))) as plan:
        assert plan.thinking_begun


class FailsAtTheEnd:
    """An engine that answers every prompt once and then fails with an error that is not its own."""

    def generate(self, prompts, sampling):
        for position in range(len(prompts)):
            yield position, Completion("<answer>1</answer>", 1, "stop")
        raise RuntimeError("out of memory")

    def close(self):
        pass


def test_answers_before_any_failure_of_the_engine_are_judged_and_kept(config):
    plan = dataclasses.replace(plan_of(config), start=lambda seed, num_refused: FailsAtTheEnd())
    folder = ResultsFolder(config.results_folder)
    config = dataclasses.replace(config, scorer={"num_workers": 1})
    writing = folder.writing(identity_of(config, plan))
    with pytest.raises(RuntimeError, match="out of memory"), writing as writer:
        answer_pending(config, plan, writer)
    assert len(read_answers(folder.results)) == 6
    assert not folder.received.exists()


class AlwaysAnswers:
    """An engine that answers every prompt, in rounds of one sample per prompt."""

    def generate(self, prompts, sampling):
        for sample in range(max(prompt.num_samples for prompt in prompts)):
            for position, prompt in enumerate(prompts):
                if sample < prompt.num_samples:
                    yield position, Completion(f"<answer>{sample}</answer>", 1, "stop")

    def close(self):
        pass


def test_answers_are_drafts_if_the_prompt_opens_thinking_that_is_never_closed(config, scorer):
    folder, plan = ResultsFolder(config.results_folder), dataclasses.replace(plan_of(config), thinking_begun=True)
    with folder.writing(identity_of(config, plan)) as writer:
        pending = find_pending(plan, writer, num_samples=1)
        tally = Tally(num_wanted=6, num_judged=0, num_received=0)
        judged = list(answer_all(pending, AlwaysAnswers(), scorer, writer, sampling=config.sampling, tally=tally))
    assert {received.answer for received, _ in judged} == {None}


def test_received_answers_get_the_missing_repeat_numbers_in_order(config, answers, scorer):
    folder, plan = ResultsFolder(config.results_folder), plan_of(config)
    with folder.writing(identity_of(config, plan)) as writer:
        writer.add(dataclasses.replace(answers[0], repeat=1))
        pending = find_pending(plan, writer, num_samples=3)
        tally = Tally(num_wanted=18, num_judged=1, num_received=1)
        judged = list(answer_all(pending, AlwaysAnswers(), scorer, writer, sampling=config.sampling, tally=tally))
        assert find_pending(plan, writer, num_samples=3) == pending
    numbers = {(received.prompted.number, received.repeat): received.answer for received, _ in judged}
    assert numbers == {(0, 0): "0", (0, 2): "1"} | {(n, r): str(r) for n in range(1, 6) for r in range(3)}


def test_a_limit_can_be_raised_and_keeps_the_answers(config):
    folder = write_results(*limited(config, 1))
    plan, whole = plan_of(config), identity_of(config, plan_of(config))
    assert [item.number for item in plan_of(dataclasses.replace(config, limit=1)).prompted] == [0, 4]
    settings = {
        "belongs": _belongs_to(plan, config),
        "with_limit": functools.partial(identity_with_limit, config, plan),
    }
    with folder.writing(whole, **settings) as writer:
        assert (len(writer.answers), writer.dropped) == (2, [])
        pending = find_pending(plan, writer, num_samples=1)
    assert [problem.prompted.number for problem in pending] == [1, 2, 3, 5]
    with pytest.raises(ConfigError, match=r"differs in limit \(null there, 1 now\)"):
        write_results(*limited(config, 1))


def test_a_raised_limit_does_not_hide_another_difference(config):
    folder = write_results(*limited(config, 1))
    other = dataclasses.replace(config, max_tokens=7)
    plan = plan_of(other)
    writing = folder.writing(identity_of(other, plan), with_limit=functools.partial(identity_with_limit, other, plan))
    message = r"another evaluation, which differs in max_tokens \(16 there, 7 now\); give"
    with pytest.raises(ConfigError, match=message), writing:
        pass


def limited(config: EvaluationConfig, limit: int) -> tuple[EvaluationConfig, list[Answer]]:
    """Return the evaluation with this limit, and right answers to its problems."""
    config = dataclasses.replace(config, limit=limit)
    return config, answers_of(config, [1] * len(plan_of(config).prompted))
