"""The HTTP application of an environment."""

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from rgtrain import __version__
from rgtrain.environments.problem_ids import UnknownProblem
from rgtrain.environments.service.nemo_gym import completion_of, summarise
from rgtrain.environments.service.request_guard import RequestGuard, ServiceLimits
from rgtrain.environments.service.service_messages import (
    ChatMessage,
    ErrorReply,
    HealthReply,
    LimitsReply,
    MetadataReply,
    NemoGymMetricsReply,
    NemoGymMetricsRequest,
    NemoGymRequest,
    NextRequest,
    ProblemReply,
    ProblemsReply,
    ReportReply,
    ReportRequest,
    ScoreReply,
    ScoresReply,
    ScoresRequest,
)
from rgtrain.environments.service.service_state import ServiceState
from rgtrain.environments.task_environment import (
    CompletionScore,
    EnvironmentProblem,
    GroupReport,
    SubmittedCompletion,
    TaskEnvironment,
)
from rgtrain.errors import ConfigError
from rgtrain.problems import load_entry

_DESCRIPTION = """\
Problems of a mixture with its held-out problems and curriculum, and rewards exactly as training computes them.
Completions are untrusted, and are judged in confined processes.
"""
_MEANINGS = {
    400: "The body is no JSON, or a value cannot be used.",
    401: "The token is missing or wrong.",
    404: "An id names no problem of this environment.",
    413: "The body, the batch or a completion is too large.",
    422: "The body has another form.",
    500: "The service failed.",
    503: "Too many requests are running.",
    504: "The request took too long.",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": meaning} for status, meaning in _MEANINGS.items()
}
_MAX_SHOWN_ERRORS = 5
_BEARER = {"type": "http", "scheme": "bearer", "description": "The token of the service, if it has one."}


class _TooLarge(ConfigError):
    """A request exceeds a limit."""


def build_service(
    environment: TaskEnvironment,
    state: ServiceState,
    *,
    token: str | None = None,
    limits: ServiceLimits | None = None,
    with_answers: bool = False,
) -> RequestGuard:
    """Build the application.

    Args:
        environment: The environment.
        state: Counts the reports.
        token: The token that requests must carry, or None.
        limits: The limits of the service.
        with_answers: Whether problems are given out with their expected answers.

    Returns:
        An ASGI application.
    """
    limits = limits or ServiceLimits()
    application = FastAPI(
        title="rgtrain environment",
        version=__version__,
        description=_DESCRIPTION,
        responses=_ERRORS,
        # Their pages load scripts from another host.
        docs_url=None,
        redoc_url=None,
    )
    _add_error_handlers(application)
    _add_problems(application, environment, limits, with_answers=with_answers)
    _add_scores(application, environment, state, limits)
    _add_nemo_gym(application, environment, limits)
    _describe_token(application)
    return RequestGuard(application, token=token, limits=limits)


def _add_problems(
    application: FastAPI, environment: TaskEnvironment, limits: ServiceLimits, *, with_answers: bool
) -> None:
    def replies(problems: Sequence[EnvironmentProblem]) -> ProblemsReply:
        return ProblemsReply(problems=[_problem_reply(problem, with_answers=with_answers) for problem in problems])

    @application.get("/health", summary="Whether the service runs", tags=["service"])
    async def health() -> HealthReply:
        return HealthReply()

    @application.get("/metadata", summary="Describe the environment and the limits", tags=["service"])
    async def metadata() -> MetadataReply:
        return _metadata(environment, limits)

    @application.get("/problems", summary="Problems by index", tags=["problems"])
    async def problems(
        index: Annotated[list[int], Query(min_length=1, description="Positions of problems; repeat it for a batch.")],
        split: Annotated[
            Literal["train", "validation"], Query(description="Training problems, or the held-out validation problems.")
        ] = "train",
    ) -> ProblemsReply:
        """Return problems by index. With a curriculum, a training problem also depends on the reports so far."""
        _check_batch(index, limits)
        size = len(environment) if split == "train" else len(environment.splits.validation)
        if wrong := [one for one in index if not 0 <= one < size]:
            raise ConfigError(f"index {wrong[0]} is out of range; give indices from 0 to {size - 1}")

        def find() -> list[EnvironmentProblem]:
            return [environment.problem(one) if split == "train" else environment.validation[one] for one in index]

        return replies(await asyncio.to_thread(find))

    @application.post("/problems/next", summary="The next training problems", tags=["problems"])
    async def next_problems(body: NextRequest) -> ProblemsReply:
        """Return the next training problems. Each is given out once, and after the last one they begin again."""
        _check_batch(range(body.count), limits)
        return replies(await asyncio.to_thread(environment.take, body.count))


def _add_scores(application: FastAPI, environment: TaskEnvironment, state: ServiceState, limits: ServiceLimits) -> None:
    @application.post("/scores", summary="Score completions", tags=["scores"])
    async def scores(body: ScoresRequest) -> ScoresReply:
        """Score completions exactly as training scores them."""
        _check_batch(body.completions, limits)
        submitted = [
            SubmittedCompletion(one.problem_id, one.text, one.num_tokens, one.finish_reason, one.thinking_begun)
            for one in body.completions
        ]
        return ScoresReply(scores=[_score_reply(score) for score in await _score(environment, submitted, limits)])

    @application.post("/reports", summary="Report the results of a training step", tags=["curriculum"])
    async def reports(body: ReportRequest) -> ReportReply:
        """Report the groups of a training step. The state is saved before the reply."""
        _check_batch(body.groups, limits)
        groups = [GroupReport(one.problem_id, one.accuracies, one.rewards) for one in body.groups]
        counted, metrics = await asyncio.to_thread(state.report, groups, report_id=body.report_id)
        return ReportReply(counted=counted, metrics=metrics)


def _add_nemo_gym(application: FastAPI, environment: TaskEnvironment, limits: ServiceLimits) -> None:
    tags: list[Any] = ["NeMo Gym"]

    @application.post("/seed_session", summary="Begin a rollout", tags=tags)
    async def seed_session(body: dict[str, Any]) -> dict[str, Any]:
        """Do nothing: a problem needs no session."""
        return {}

    @application.post("/verify", summary="Score a response", tags=tags, response_model=dict[str, Any])
    async def verify(body: NemoGymRequest) -> Response:
        """Score the model's response to a row of the inputs, and return the row with its reward and further numbers."""
        problem = await asyncio.to_thread(environment.find, body.problem_id)
        try:
            completion = completion_of(problem, body.response)
        except ValueError as error:
            raise ConfigError(f"{error}; send a response of OpenAI's Responses API") from error
        [score] = await _score(environment, [completion], limits)
        numbers = {
            "accuracy": score.accuracy,
            "solved": float(score.accuracy == 1),
            "answered": float(score.answer is not None),
            **{f"reward_{name}": value for name, value in score.parts.items()},
        }
        reply = body.model_dump() | numbers | {"reward": score.reward, "extracted_answer": score.answer}
        try:
            content = json.dumps(reply, allow_nan=False)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the row cannot be sent back as JSON ({error}); send plain JSON values") from error
        return Response(content, media_type="application/json")

    @application.post("/aggregate_metrics", summary="Summarise scores", tags=tags)
    async def aggregate_metrics(body: NemoGymMetricsRequest) -> NemoGymMetricsReply:
        """Return the means of all numbers in replies of `/verify`."""
        return NemoGymMetricsReply.model_validate(summarise(body.verify_responses))


async def _score(
    environment: TaskEnvironment, completions: Sequence[SubmittedCompletion], limits: ServiceLimits
) -> list[CompletionScore]:
    for number, one in enumerate(completions):
        if len(one.text) > limits.max_completion_chars:
            raise _TooLarge(
                f"completion {number} has {len(one.text)} characters; send at most {limits.max_completion_chars}"
            )
    return await environment.score_async(completions)


def _check_batch(batch: Sequence[Any], limits: ServiceLimits) -> None:
    if len(batch) > limits.max_batch:
        raise _TooLarge(f"the batch has {len(batch)} items; send at most {limits.max_batch} in a request")


def _problem_reply(problem: EnvironmentProblem, *, with_answers: bool) -> ProblemReply:
    answer = load_entry(problem.entry).get("answer") if with_answers else None
    return ProblemReply(
        id=problem.id,
        dataset=problem.dataset,
        level=problem.level,
        messages=[ChatMessage(**message) for message in problem.messages],
        question=problem.question,
        thinking_begun=problem.thinking_begun,
        answer=None if answer is None else str(answer),
    )


def _score_reply(score: CompletionScore) -> ScoreReply:
    return ScoreReply(
        reward=score.reward, parts=dict(score.parts), accuracy=score.accuracy, answer=score.answer, error=score.error
    )


def _metadata(environment: TaskEnvironment, limits: ServiceLimits) -> MetadataReply:
    data = environment.config.data
    return MetadataReply(
        version=__version__,
        datasets={spec.name: spec.weight for spec in environment.splits.training.mixture.specs},
        num_levels={name: len(ladder) for name, ladder in environment.curriculum.ladders.items()},
        seed=data.seed,
        num_training=len(environment),
        num_validation=len(environment.splits.validation),
        reward={name: weight for part in environment.reward for name, weight in part.part_weights.items()},
        needs_num_tokens=environment.needs_num_tokens,
        max_response_tokens=data.max_response_length,
        warnings=environment.warnings,
        limits=LimitsReply(**vars(limits)),
    )


def _add_error_handlers(application: FastAPI) -> None:
    def reply(status: int, message: str) -> JSONResponse:
        # Parts of a message may be the client's own text, with characters that UTF-8 cannot encode.
        return JSONResponse({"error": message.encode("ascii", "backslashreplace").decode()}, status_code=status)

    @application.exception_handler(RequestValidationError)
    async def wrong_form(request: Request, error: RequestValidationError) -> JSONResponse:
        # The rejected values are left out, because they may be as large as the body.
        found = [f"{'.'.join(map(str, one['loc']))[:100]}: {one['msg'][:200]}" for one in error.errors()]
        more = f" and {len(found) - _MAX_SHOWN_ERRORS} more" if len(found) > _MAX_SHOWN_ERRORS else ""
        return reply(422, f"{'; '.join(found[:_MAX_SHOWN_ERRORS])}{more}; see /openapi.json for the form")

    @application.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = {
            400: "the body cannot be read; send JSON in UTF-8 with few levels and without long numbers",
            404: "there is no such path; see /openapi.json",
            405: "the path takes another method; see /openapi.json",
        }
        return reply(error.status_code, message.get(error.status_code, str(error.detail)))

    @application.exception_handler(ConfigError)
    async def unusable(request: Request, error: ConfigError) -> JSONResponse:
        status = 404 if isinstance(error, UnknownProblem) else 413 if isinstance(error, _TooLarge) else 400
        return reply(status, str(error))

    @application.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return reply(500, "the service failed; its log has the reason")


def _describe_token(application: FastAPI) -> None:
    """Add the token to the OpenAPI description. The guard checks it, so FastAPI does not know about it."""
    make = application.openapi

    def described() -> dict[str, Any]:
        description = make()
        description.setdefault("components", {})["securitySchemes"] = {"token": _BEARER}
        # A service without a token takes requests without one.
        description["security"] = [{"token": []}, {}]
        return description

    vars(application)["openapi"] = described
