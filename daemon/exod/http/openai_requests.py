"""Reads the bodies of `/v1/chat/completions` and `/v1/completions` into a GenerationRequest.

Decides what is allowed: every wrong value is a FieldError that names the field, and so is a wish that cannot be met
(tools, several choices, images), because an answer that silently ignores it would be a wrong answer. Fields that
only other servers know are ignored, unless one is so close to a known name that it must be a typo. Pure.

Defaults where a client says nothing: temperature 0, as mlx_lm's server has it (the same prompt gives the same
answer); as many tokens as the model's context allows; a seed drawn afresh for each request.
"""

from __future__ import annotations

import difflib
import secrets
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from exod.daemon_api.field_errors import field_problem
from exod.daemon_api.interface import DEFAULT_MAX_TOKENS, DEFAULT_MODEL, MAX_TOKENS_LIMIT
from exod.errors import RequestError
from exoengine.decoding import DecodingError, WrongShapeError, from_json
from exoengine.protocol import ChatMessage, GenerationRequest, Sampling

DEFAULT_TEMPERATURE: Final = 0.0

TYPO_CUTOFF: Final = 0.8
"""difflib's ratio: `temprature`, `max_token` and `repeat_penalty` are caught, `num_ctx` and `keep_alive` pass."""

LONGEST_TYPO: Final = 40
"""Longer names are no slip of a finger: the longest field has 21 characters, and difflib's cost grows with both."""

MAX_FIELDS: Final = 64
"""Of the body itself: about twice as many as the most talkative client sends."""

MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_LOGIT_BIASES: Final = 1024

IGNORED: Final = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
        "tool_choice",
        "function_call",
        "reasoning_effort",
        "verbosity",
        "top_logprobs",
        "best_of",
    }
)
"""Known to OpenAI's clients, and without effect on the text that this server generates."""


class FieldError(RequestError):
    """A value in a request's body that is not allowed; `param` names its field."""

    def __init__(self, param: str, problem: str, code: str = "invalid_value") -> None:
        super().__init__(code, f"{param}: {problem}" if param else problem)
        self.param = param


class Ask(msgspec.Struct, frozen=True):
    """A request as the endpoint needs it."""

    model: str
    stream: bool
    include_usage: bool
    generation: GenerationRequest


Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Repetition = Annotated[float, msgspec.Meta(gt=0, le=10)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS_LIMIT)]
TopK = Annotated[int, msgspec.Meta(ge=-1, le=1_000_000)]
Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Stop = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Bias = Annotated[float, msgspec.Meta(ge=-100, le=100)]


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class TypeOnly(msgspec.Struct):
    type: str


class SharedBody(msgspec.Struct, kw_only=True):
    """What both endpoints understand. null means the same as leaving a field away."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    stop: str | Annotated[list[Stop], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: TopK | None = None
    min_p: Fraction | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Repetition | None = None
    logit_bias: Annotated[dict[int, Bias], msgspec.Meta(max_length=MAX_LOGIT_BIASES)] | None = None
    n: int | None = None


class Part(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[Any] | None = None


class ChatBody(SharedBody, kw_only=True):
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: TypeOnly | None = None
    modalities: list[str] | None = None


class CompletionBody(SharedBody, kw_only=True):
    prompt: str | list[Any]
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


Body = TypeVar("Body", bound=SharedBody)


def read_chat(data: bytes) -> Ask:
    """Raises RequestError (FieldError where a field is to blame)."""
    body = _decode(data, ChatBody)
    for field, wish in (("tools", body.tools), ("functions", body.functions)):
        if wish:
            raise FieldError(field, "this server calls no tools; leave it away", "unsupported_value")
    if body.response_format is not None and body.response_format.type != "text":
        raise FieldError("response_format.type", 'only "text" is supported', "unsupported_value")
    if body.modalities is not None and body.modalities != ["text"]:
        raise FieldError("modalities", 'only ["text"] is supported', "unsupported_value")
    if body.top_logprobs and not body.logprobs:
        raise FieldError("top_logprobs", "needs logprobs = true")
    messages = tuple(_message(message, f"messages[{at}]") for at, message in enumerate(body.messages))
    logprobs = (body.top_logprobs or 0) if body.logprobs else -1
    max_tokens = body.max_completion_tokens or body.max_tokens or DEFAULT_MAX_TOKENS
    return _ask(body, "chatcmpl", max_tokens, logprobs, messages=messages)


def read_completion(data: bytes) -> Ask:
    """Raises RequestError (FieldError where a field is to blame)."""
    body = _decode(data, CompletionBody)
    if body.echo:
        raise FieldError("echo", "the prompt is not repeated; only false is supported", "unsupported_value")
    if body.suffix:
        raise FieldError("suffix", "text before a suffix is not supported", "unsupported_value")
    if body.best_of not in (None, 1):
        raise FieldError("best_of", "only 1 is supported", "unsupported_value")
    logprobs = -1 if body.logprobs is None else body.logprobs
    max_tokens = body.max_tokens or DEFAULT_MAX_TOKENS
    return _ask(body, "cmpl", max_tokens, logprobs, prompt=_prompt(body.prompt))


def _decode(data: bytes, shape: type[Body]) -> Body:
    try:
        fields = from_json(data, dict[str, msgspec.Raw])
    except WrongShapeError:
        raise RequestError("invalid_json", "the body must be a JSON object") from None
    except DecodingError as error:
        raise RequestError("invalid_json", f"the body is not valid JSON: {error}") from None
    if len(fields) > MAX_FIELDS:
        raise RequestError("invalid_json", f"the body may have {MAX_FIELDS} fields, not {len(fields)}")
    _refuse_typos(fields.keys() - IGNORED, shape)
    try:
        return from_json(data, shape)
    except WrongShapeError as error:
        field, problem = field_problem(error.cause)
        raise FieldError(field, problem) from None
    except DecodingError as error:
        raise RequestError("invalid_json", f"the body is not valid JSON: {error}") from None


def _refuse_typos(given: set[str], shape: type[SharedBody]) -> None:
    """An unknown field is another server's, and ignored; one that nearly is a known name must be a typo."""
    known = [field.name for field in msgspec.structs.fields(shape)]
    for name in sorted(name for name in given.difference(known) if len(name) <= LONGEST_TYPO):
        close = difflib.get_close_matches(name, known, n=1, cutoff=TYPO_CUTOFF)
        if close:
            raise FieldError(name, f"there is no such field; did you mean {close[0]}?", "unknown_field")


def _message(message: Message, place: str) -> ChatMessage:
    if message.tool_calls:
        raise FieldError(f"{place}.tool_calls", "this server calls no tools", "unsupported_value")
    role = "system" if message.role == "developer" else message.role
    return ChatMessage(role, _content(message.content, f"{place}.content"))


def _content(content: str | list[Part] | None, place: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise FieldError(place, "a message needs a text")
    texts = []
    for at, part in enumerate(content):
        if part.type != "text":
            raise FieldError(
                f"{place}[{at}].type", f"only text is supported, not {part.type[:40]}", "unsupported_value"
            )
        if part.text is None:
            raise FieldError(f"{place}[{at}].text", "is missing")
        texts.append(part.text)
    return "".join(texts)


def _prompt(prompt: str | list[Any]) -> str | tuple[int, ...]:
    """A text, a list of token ids, or a list that holds exactly one of these."""
    match prompt:
        case str():
            return prompt
        case [str() as only] | [[*_] as only] if not isinstance(only, list) or _are_tokens(only):
            return only if isinstance(only, str) else tuple(only)
        case [_, *_] if _are_tokens(prompt):
            return tuple(prompt)
        case [str(), str(), *_]:
            raise FieldError("prompt", "one prompt a request is supported", "unsupported_value")
    raise FieldError("prompt", "expected a text, or a list of token ids that are 0 or more")


def _are_tokens(items: list[Any]) -> bool:
    return bool(items) and all(type(item) is int and 0 <= item < 2**31 for item in items)


def _ask(
    body: SharedBody,
    kind: str,
    max_tokens: int,
    logprobs: int,
    *,
    messages: tuple[ChatMessage, ...] | None = None,
    prompt: str | tuple[int, ...] | None = None,
) -> Ask:
    if body.n not in (None, 1):
        raise FieldError("n", "one choice a request is supported", "unsupported_value")
    options = body.stream_options
    return Ask(
        model=body.model or DEFAULT_MODEL,
        stream=bool(body.stream),
        include_usage=bool(options and options.include_usage),
        generation=GenerationRequest(
            request_id=f"{kind}-{secrets.token_hex(12)}",
            max_tokens=max_tokens,
            messages=messages,
            prompt=prompt,
            stop=_stops(body.stop),
            sampling=_sampling(body, logprobs),
        ),
    )


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    if isinstance(stop, str):
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise FieldError("stop", f"expected 1 to {MAX_STOP_CHARS} characters")
        return (stop,)
    return tuple(stop or ())


def _sampling(body: SharedBody, logprobs: int) -> Sampling:
    temperature = DEFAULT_TEMPERATURE if body.temperature is None else body.temperature
    top_p = 1.0 if body.top_p is None else body.top_p
    if top_p == 0:  # the smallest nucleus holds the most likely token alone
        temperature, top_p = 0.0, 1.0
    return Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=secrets.randbelow(2**32) if body.seed is None else body.seed % 2**63,
        logit_bias=body.logit_bias or {},
        logprobs=logprobs,
    )
