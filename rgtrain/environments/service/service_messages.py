"""The requests and replies of the service, from which its OpenAPI description is made."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_MAX_ID_CHARS = 300
ProblemIdText = Annotated[
    str, Field(max_length=_MAX_ID_CHARS, description="The id of a problem, as `/problems` gives it.")
]


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("the text has half of a surrogate pair, which UTF-8 cannot encode") from error
    return text


_Text = Annotated[str, AfterValidator(_encodable)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Accuracy = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Message(BaseModel):
    # An unknown field is most likely a misspelt one, which would otherwise be ignored without notice.
    model_config = ConfigDict(extra="forbid")


class ChatMessage(_Message):
    """A message of a chat prompt."""

    role: str = Field(description="`system`, `developer`, `user` or `assistant`.")
    content: str = Field(description="The text.")


class ProblemReply(_Message):
    """A problem."""

    id: str = Field(description="Names the problem in later requests, also after a restart of the service.")
    dataset: str = Field(description="The dataset of the mixture.")
    level: int | None = Field(description="The level in the dataset's curriculum, if it has one.")
    messages: list[ChatMessage] = Field(description="The chat prompt, whose last message is the question.")
    question: str = Field(description="The question without the prompt around it.")
    thinking_begun: bool = Field(
        description="Whether the chat template of the environment's model opens a think block after the messages."
    )
    answer: str | None = Field(
        default=None, description="The expected answer. Only a service that runs with `--with-answers` gives it."
    )


class ProblemsReply(_Message):
    """Problems in the order of the request."""

    problems: list[ProblemReply] = Field(description="The problems.")


class NextRequest(_Message):
    """A request for the next training problems."""

    count: int = Field(default=1, ge=1, le=1_000_000, description="Number of problems.")


class CompletionRequest(_Message):
    """A completion to score."""

    problem_id: ProblemIdText
    text: _Text = Field(description="The completion, without special tokens.")
    num_tokens: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000_000,
        description="Its length in tokens. `/metadata` says whether the reward needs it.",
    )
    finish_reason: str | None = Field(
        default=None, max_length=100, description="The reason for its end, such as `stop` or `length`."
    )
    thinking_begun: bool | None = Field(
        default=None, description="Whether the prompt ended with an opening think tag; by default as the problem says."
    )


class ScoresRequest(_Message):
    """Completions to score. Completions of one problem are scored as a group."""

    completions: list[CompletionRequest] = Field(min_length=1, description="The completions.")


class ScoreReply(_Message):
    """The score of a completion."""

    reward: float = Field(description="The weighted sum of the parts.")
    parts: dict[str, float] = Field(description="The unweighted value of each part of the reward.")
    accuracy: float = Field(description="The dataset's score of the answer, from 0 to 1.")
    answer: str | None = Field(description="The answer that was found in the completion.")
    error: str | None = Field(description="The reason why the answer could not be judged, such as `timeout`.")


class ScoresReply(_Message):
    """Scores in the order of the request."""

    scores: list[ScoreReply] = Field(description="The scores.")


class GroupRequest(_Message):
    """The results of all completions of one problem."""

    problem_id: ProblemIdText
    accuracies: list[_Accuracy] = Field(min_length=1, description="The accuracy of each completion.")
    rewards: list[_Finite] = Field(min_length=1, description="The reward of each completion.")


class ReportRequest(_Message):
    """The groups of one training step, by which the curriculum chooses later problems."""

    groups: list[GroupRequest] = Field(min_length=1, description="The groups of the step.")
    report_id: str | None = Field(
        default=None,
        max_length=100,
        description="A name of the report. A report whose name was counted before changes nothing, so that a request "
        "whose reply was lost can be sent again.",
    )


class ReportReply(_Message):
    """The effect of a report."""

    counted: bool = Field(description="False if a report of the same `report_id` was counted before.")
    metrics: dict[str, float] = Field(description="The metrics of the curriculum after the report.")


class HealthReply(_Message):
    """The state of the service."""

    status: Literal["ok"] = Field(default="ok", description="Always `ok`; a service that does not run does not reply.")


class LimitsReply(_Message):
    """The limits of the service."""

    max_body_bytes: int = Field(description="The largest body of a request.")
    max_batch: int = Field(description="The most problems, completions or groups in a request.")
    max_completion_chars: int = Field(description="The longest completion in characters.")
    max_concurrent: int = Field(description="The most requests at a time; others get the status 503.")
    deadline_s: float = Field(description="Seconds until a request gets the status 504.")


class MetadataReply(_Message):
    """A description of the environment."""

    version: str = Field(description="The version of rgtrain.")
    datasets: dict[str, float] = Field(description="The weight of each dataset of the mixture.")
    num_levels: dict[str, int] = Field(description="The number of levels of each dataset with a curriculum.")
    seed: int = Field(description="The seed of the problems.")
    num_training: int = Field(description="Number of training problems; after the last one, they repeat.")
    num_validation: int = Field(description="Number of validation problems.")
    reward: dict[str, float] = Field(description="The weight of each part of the reward.")
    needs_num_tokens: bool = Field(description="Whether each completion needs `num_tokens`.")
    max_response_tokens: int = Field(description="The longest completion in tokens, as parts of the reward assume it.")
    warnings: list[str] = Field(description="Minor problems of the datasets.")
    limits: LimitsReply = Field(description="The limits of the service.")


class ErrorReply(_Message):
    """An error."""

    error: str = Field(description="The given value, the allowed values and the fix, in one line.")


class NemoGymRequest(BaseModel):
    """A row of NeMo Gym's inputs with the model's response."""

    model_config = ConfigDict(extra="allow")

    responses_create_params: dict[str, Any] = Field(description="The request that the model answered.")
    response: dict[str, Any] = Field(description="The model's response in the form of OpenAI's Responses API.")
    problem_id: ProblemIdText


class NemoGymMetricsRequest(BaseModel):
    """Replies of `/verify`, to be summarised."""

    verify_responses: list[dict[str, Any]] = Field(description="The replies.")


class NemoGymMetricsReply(BaseModel):
    """A summary of replies of `/verify`."""

    group_level_metrics: list[dict[str, int | float]] = Field(description="The mean of each number by task.")
    agent_metrics: dict[str, float] = Field(description="The mean of each number over all replies.")
    key_metrics: dict[str, float] = Field(description="The same as `agent_metrics`.")
