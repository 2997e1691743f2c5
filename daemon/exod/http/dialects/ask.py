"""What every dialect of the API reads a body into: one or more generations, and the form of their answers.

Decides the defaults where a client says nothing: temperature 0, as mlx_lm's server has it (the same prompt
gives the same answer); as many tokens as the model's context allows; a seed drawn afresh for each request. Pure
but for the seed and the ids.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Final

import msgspec

from exod.daemon_api.interface import DEFAULT_MAX_TOKENS, MAX_TOKENS_LIMIT
from exod.http.dialects.fields import FieldError
from exoengine.protocol import GenerationRequest, Sampling

DEFAULT_TEMPERATURE: Final = 0.0

MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_LOGIT_BIASES: Final = 1024

MAX_CHOICES: Final = 128
"""Answers that one request may ask for: OpenAI's limit for `n`. Where the queue is full they are generated one
after another, so other requests still get their turns."""

Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Repetition = Annotated[float, msgspec.Meta(gt=0, le=10)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS_LIMIT)]
TopK = Annotated[int, msgspec.Meta(ge=-1, le=1_000_000)]
Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Stop = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = str | Annotated[list[Stop], msgspec.Meta(max_length=MAX_STOPS)]
Bias = Annotated[float, msgspec.Meta(ge=-100, le=100)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
"""Of any vocabulary; the worker knows its model's. What passes on a request holds 64 bits at most."""
Choices = Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)]
Window = Annotated[int, msgspec.Meta(ge=-1, le=MAX_TOKENS_LIMIT)]

DEFAULT_WINDOW_TOKENS: Final = 20
"""How far back the repetition penalty looks: mlx-lm's default."""

MAX_WINDOW_TOKENS: Final = 4096
"""The most that it may look back: the penalty is computed again for each token."""


class Ask(msgspec.Struct, frozen=True):
    """A request as the endpoint needs it: a generation for each choice."""

    model: str
    stream: bool
    generations: tuple[GenerationRequest, ...]
    request_id: str
    include_usage: bool = False
    echoes: tuple[str, ...] = ()
    """What each choice's text begins with."""
    extra: Any = None
    """The fields of the request that the dialect's answer repeats."""


class SamplingBody(msgspec.Struct, kw_only=True):
    """The fields that all endpoints accept. null means the same as leaving a field out."""

    model: str | None = None
    stream: bool | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: TopK | None = None
    min_p: Fraction | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Repetition | None = None
    repetition_context_size: Window | None = None
    logit_bias: Annotated[dict[TokenId, Bias], msgspec.Meta(max_length=MAX_LOGIT_BIASES)] | None = None


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def read_stops(stop: str | list[str] | None) -> tuple[str, ...]:
    if isinstance(stop, str):
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise FieldError("stop", f"expected 1 to {MAX_STOP_CHARS} characters")
        return (stop,)
    return tuple(stop or ())


def read_sampling(body: SamplingBody, logprobs: int = -1) -> Sampling:
    temperature = DEFAULT_TEMPERATURE if body.temperature is None else body.temperature
    top_p = 1.0 if body.top_p is None else body.top_p
    if top_p == 0:  # the smallest nucleus holds the most likely token alone
        temperature, top_p = 0.0, 1.0
    return Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_context_size == 0 else body.repetition_penalty or 1.0,
        repetition_context_tokens=_window(body.repetition_context_size),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=secrets.randbelow(2**32) if body.seed is None else body.seed % 2**63,
        logit_bias=body.logit_bias or {},
        logprobs=logprobs,
    )


def _window(size: int | None) -> int:
    """Other servers use 0 for no penalty and -1 for the whole context."""
    if size is None or size == 0:
        return DEFAULT_WINDOW_TOKENS
    return MAX_WINDOW_TOKENS if size < 0 else min(size, MAX_WINDOW_TOKENS)


def several(request: GenerationRequest, prompts: tuple[Any, ...], n: int) -> tuple[GenerationRequest, ...]:
    """`n` choices for each of `prompts`, each drawn with its own seed. A chat has one prompt, which is not read."""
    count = len(prompts) * n
    if count > MAX_CHOICES:
        raise FieldError("n", f"{len(prompts)} prompts with {n} choices each are more than {MAX_CHOICES}")
    if count == 1:
        return (msgspec.structs.replace(request, prompt=prompts[0]),)
    return tuple(
        msgspec.structs.replace(
            request,
            request_id=f"{request.request_id}-{at}",
            prompt=prompts[at // n],
            sampling=msgspec.structs.replace(request.sampling, seed=(request.sampling.seed + at % n) % 2**63),
        )
        for at in range(count)
    )


def limit(*wishes: int | None) -> int:
    """The first limit that was named."""
    return next((wish for wish in wishes if wish is not None), DEFAULT_MAX_TOKENS)
