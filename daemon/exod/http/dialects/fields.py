"""Reads the fields of a request's body: tolerant where clients differ, strict where a value would be ignored.

Decides what a field may be called and how a value may be written. Fields that other servers know are ignored, or
read under the name that they have here. An unknown field with nearly the name of a known one is a typo, and
refused. A whole number may be written as a fraction, and as -1 where that means no limit. Pure. Raises FieldError,
which names the field.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, TypeVar

import msgspec

from exod.daemon_api.field_errors import field_problem
from exod.errors import RequestError
from exod.plain_text import printable
from exoengine.decoding import DecodingError, WrongShapeError, from_json

TYPO_CUTOFF: Final = 0.8
"""difflib's ratio: `temprature` and `max_token` are caught, `num_ctx` and `keep_alive` pass."""

LONGEST_TYPO: Final = 40
"""Longer names are not typos: the longest field has 21 characters, and difflib's cost grows with both lengths."""

MAX_FIELDS: Final = 64
"""Fields of the body itself: about twice as many as any known client sends."""

ALIASES: Final[Mapping[str, str]] = {
    "repeat_penalty": "repetition_penalty",
    "repeat_last_n": "repetition_context_size",
    "repetition_penalty_range": "repetition_context_size",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "max_new_tokens": "max_tokens",
}
"""Other servers' names (llama.cpp, Ollama, text-generation-webui, koboldcpp) for fields that there are here."""

IGNORED: Final = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_retention", "prompt_cache_options", "function_call", "verbosity", "prediction",
        "web_search_options", "audio", "min_tokens", "min_length", "top_a", "typical_p", "typical", "tfs",
        "tfs_z", "num_ctx", "num_keep", "num_batch", "num_gpu", "num_thread", "keep_alive", "models", "route",
        "provider", "transforms", "plugins", "usage", "session_id", "cache_prompt", "id_slot", "n_keep",
        "n_probs", "min_keep", "penalize_nl", "dynatemp_range", "dynatemp_exponent", "smoothing_factor",
        "smoothing_curve", "epsilon_cutoff", "eta_cutoff", "top_n_sigma", "no_repeat_ngram_size",
        "penalty_alpha", "temperature_last", "sampler_priority", "samplers", "sampler_seed", "stop_token_ids",
        "bad_words", "include_stop_str_in_output", "ignore_eos", "ban_eos_token", "skip_special_tokens",
        "spaces_between_special_tokens", "add_special_tokens", "detokenize", "priority", "use_beam_search",
        "length_penalty", "early_stopping", "truncate_prompt_tokens", "truncation_length", "prompt_logprobs",
        "return_token_ids", "return_tokens_as_token_ids", "structured_outputs", "logits_processors",
        "request_id", "best_of", "draft_model", "num_draft_tokens", "adapters", "role_mapping", "options",
        "format", "raw", "think", "enable_thinking_budget", "thinking_budget", "repetition_decay",
        "presence_context_size", "frequency_context_size", "timings_per_token", "speculative", "lora", "mode",
        "character", "continue_",
    }
)  # fmt: skip
"""Known to OpenAI's and other servers' clients, and without effect on the text that this server generates."""

IGNORED_FAMILIES: Final = (
    "dry_",
    "guided_",
    "mirostat",
    "xtc_",
    "dynatemp_",
    "rope_",
    "speculative",
    "kv_transfer",
)
"""Beginnings of names that belong to samplers or back ends of other servers."""

NO_LIMIT: Final = frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens"})
"""Fields in which -1 means the same as leaving them away."""

LONGEST_WHOLE: Final = 46
"""Characters of the longest number that `_WHOLE` takes."""

_WHOLE: Final = re.compile(rb"-?\d{1,20}(\.\d{1,20})?([eE]\+?\d{1,2})?")

_HALF_CHARACTER: Final = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
"""JSON escapes what is beyond 16 bits in two halves. A client that cuts a text between them sends one."""


class FieldError(RequestError):
    """A value in a request's body that is not allowed; `param` names its field."""

    def __init__(self, param: str, problem: str, code: str = "invalid_value") -> None:
        super().__init__(code, f"{param}: {problem}" if param else problem)
        self.param = param


Body = TypeVar("Body", bound=msgspec.Struct)


def read_fields(data: bytes, shape: type[Body]) -> Body:
    """The body as `shape`. Raises RequestError (FieldError where a field is to blame)."""
    try:
        given = from_json(data, dict[str, msgspec.Raw])
    except WrongShapeError:
        raise RequestError("invalid_json", "the body must be a JSON object") from None
    except DecodingError as error:
        raise _not_json(data, error) from None
    if len(given) > MAX_FIELDS:
        raise RequestError("invalid_json", f"the body may have {MAX_FIELDS} fields, not {len(given)}")
    known = {field.name: field.type for field in msgspec.structs.fields(shape)}
    renamed = _named_as_here(given, known)
    _refuse_typos({name for name in given if name not in known and name not in renamed.values()}, list(known))
    plain = {name: _plain(name, given[source], known[name]) for name, source in renamed.items()}
    try:
        return from_json(msgspec.json.encode(plain), shape)
    except WrongShapeError as error:
        field, problem = field_problem(error.cause)
        top = re.split(r"[.\[]", field, maxsplit=1)[0]
        if top in renamed and renamed[top] != top:  # the client is told by the name that it used
            field = renamed[top] + field[len(top) :]
        raise FieldError(field, problem) from None
    except DecodingError as error:
        raise _not_json(data, error) from None


def _not_json(data: bytes, error: DecodingError) -> RequestError:
    """What is wrong in the sender's terms: msgspec calls an empty body and half of a character truncated."""
    if not data.strip():
        return RequestError("invalid_json", "the body is empty; send a JSON object")
    problem = str(error)
    if "surrogate" in problem or _HALF_CHARACTER.search(data):
        problem = "it holds one half of a character, such as \\ud83d without the other; was a text cut in an emoji?"
    elif "truncated" in problem:
        problem = "it ends too early"
    return RequestError("invalid_json", f"the body is not valid JSON: {problem}")


def _named_as_here(given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, str]:
    """For each known field that was given, our name of it and the name that the client used."""
    renamed = {name: name for name in given if name in known}
    for alias, name in ALIASES.items():
        if alias in given and name in known and name not in renamed:
            renamed[name] = alias
    return renamed


def _refuse_typos(unknown: set[str], known: list[str]) -> None:
    """Ignores an unknown field, which belongs to another server. A name close to a known one is refused: a typo."""
    suspects = (name for name in unknown if name not in IGNORED and name not in ALIASES)
    for name in sorted(name for name in suspects if len(name) <= LONGEST_TYPO):
        if name.startswith(IGNORED_FAMILIES):
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=TYPO_CUTOFF)
        if close:
            raise FieldError(printable(name), f"there is no such field; did you mean {close[0]}?", "unknown_field")


def _plain(name: str, raw: msgspec.Raw, kind: Any) -> msgspec.Raw:
    """A whole number without fraction and exponent; null for a limit of -1."""
    text = memoryview(raw)
    if text.nbytes > LONGEST_WHOLE or not _WHOLE.fullmatch(text) or not _is_whole(kind):
        return raw
    number = Decimal(bytes(text).decode())
    if number != int(number):
        return raw
    if name in NO_LIMIT and number == -1:
        return msgspec.Raw(b"null")
    return msgspec.Raw(str(int(number)).encode())


def _is_whole(kind: Any) -> bool:
    """Does the field take whole numbers or null, and nothing else?"""
    inner = msgspec.inspect.type_info(kind)
    kinds = inner.types if isinstance(inner, msgspec.inspect.UnionType) else (inner,)
    return any(isinstance(one, msgspec.inspect.IntType) for one in kinds)
