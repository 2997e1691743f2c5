"""One request as a rank knows it: its tokens, its text so far, and what the daemon is sent about it.

Decides: when an answer is finished, from its tokens alone, so that every rank finds the same. Where the prompt is
to be scored, its tokens from the second on count as the answer's first tokens; the real answer follows them. No
MLX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from exoengine.model.answer_text import TextStep
from exoengine.model.chat_prompt import PromptError, too_long
from exoengine.model.grammar import GrammarError
from exoengine.protocol import Finished, FromWorker, GenerationRequest, LikelyToken, RequestFailed, TokenOut
from exoengine.ring.pass_log import PassLog
from exoengine.ring.step_messages import NO_LIKELIHOOD, Likelihood

if TYPE_CHECKING:
    from exoengine.model.grammar import AnswerMask
    from exoengine.model.text import Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]


class Generation:
    """A request that was accepted. `prompt` and `tokens` together are the sequence that goes through the model."""

    def __init__(
        self, order: int, request: GenerationRequest, prompt: list[int], max_context_tokens: int,
        tokenizer: Tokenizer, emit: Callable[[FromWorker], None], thinks: bool = False,
        mask: AnswerMask | None = None,
    ) -> None:  # fmt: skip
        """`thinks`: the prompt has opened the model's reasoning. `mask` says what the answer's tokens may be."""
        self.order, self.request = order, request
        self.prompt = prompt[:1] if request.scores_prompt else prompt
        self.given = prompt[len(self.prompt) :]
        """The answer's first tokens, which are not drawn: those of a prompt that is scored."""
        self.max_tokens = min(request.max_tokens, max_context_tokens - len(prompt)) + len(self.given)
        self.tokens: list[int] = []
        self.likelihoods: list[Likelihood] = []
        """Of each token, where the request asks for them."""
        self.cancelled = False
        """It was cancelled; this takes effect on all ranks at the same step."""
        self.alone = False
        """A batch that it was in failed: from then on it is run in no batch."""
        self.finished: FinishReason | None = None
        self.pass_log: PassLog | None = None
        """How its tokens were cut into passes so far. None until it is opened."""
        self.cached_tokens = 0
        self.prefill_s = 0.0
        self.decode_s = 0.0
        self._tokenizer = tokenizer
        self._emit = emit
        self._mask = mask
        self._text = tokenizer.answer_text(request, thinks)
        self._given_text = tokenizer.pieces.decoder(keep_first_space=False)
        if self.max_tokens <= 0:
            self._finish("length", TextStep(""))

    @property
    def mask(self) -> Callable[[int, int], Any] | None:
        """In the form that the sampler needs: for the answer's token of an index, over so many logits."""
        mask = self._mask
        if mask is None:
            return None
        return lambda index, width: mask.at(self.tokens[len(self.given) : index], width)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)

    def sequence(self, start: int, count: int) -> Sequence[int]:
        """Tokens [start, start + count) of prompt and answer, without joining the two."""
        end, boundary = start + count, len(self.prompt)
        return [*self.prompt[start:end], *self.tokens[max(0, start - boundary) : max(0, end - boundary)]]

    def recent(self, count: int) -> Sequence[int]:
        """The last `count` tokens of prompt and answer."""
        start = max(0, self.length - count)
        return self.sequence(start, self.length - start)

    def adopt(self, tokens: Sequence[int], likelihoods: Sequence[Likelihood] = ()) -> None:
        """Adds the tokens that the daemon or another rank has beyond this rank's. `likelihoods` may be shorter."""
        for index in range(len(self.tokens), len(tokens)):
            self.add(tokens[index], likelihoods[index] if index < len(likelihoods) else NO_LIKELIHOOD)

    def add(self, token: int, likelihood: Likelihood = NO_LIKELIHOOD) -> None:
        """One more token that all ranks have completed; it may be the last."""
        if self.finished is not None:
            return
        index = len(self.tokens)
        self.tokens.append(token)
        if self.request.sampling.logprobs >= 0:
            self.likelihoods.append(likelihood)
        if index < len(self.given):
            self._add_given(index, token, likelihood)
        elif token in self._tokenizer.eos:
            self._emit(self._token_out(index, token, TextStep("", shows=False), likelihood))
            self._finish("stop", self._text.finish(cut=False))
        else:
            self._add_text(index, token, likelihood)

    def _add_given(self, index: int, token: int, likelihood: Likelihood) -> None:
        """One of the prompt's own tokens, and with the first of them the prompt's very first."""
        first = self._given_text.add(self.prompt[0]) if index == 0 else ""
        self._emit(self._token_out(index, token, TextStep(first + self._given_text.add(token)), likelihood))
        if len(self.tokens) >= self.max_tokens:
            self._finish("length", TextStep(""))

    def _add_text(self, index: int, token: int, likelihood: Likelihood) -> None:
        step = self._text.add(token)
        self._emit(self._token_out(index, token, step, likelihood))
        if step.stopped:
            self._finish("stop", TextStep(""))
        elif len(self.tokens) >= self.max_tokens:
            last = self._text.finish(cut=True)
            self._finish("stop" if last.stopped else "length", last)

    def cancel(self) -> None:
        if self.finished is None:
            self._finish("cancelled", self._text.finish(cut=True))

    def _token_out(self, index: int, token: int, step: TextStep, likelihood: Likelihood) -> TokenOut:
        piece = self._tokenizer.pieces.piece
        top: tuple[LikelyToken, ...] = tuple((other, logprob, piece(other)) for other, logprob in likelihood.top)
        return TokenOut(
            request_id=self.request.request_id,
            index=index,
            token=token,
            text=step.text,
            logprob=likelihood.logprob,
            top_logprobs=top,
            piece=piece(token) if step.shows else b"",
            head=piece(self.prompt[0]) if index == 0 and self.given else b"",
            reasoning=step.reasoning,
            calls=step.calls,
        )

    def _finish(self, reason: FinishReason, last: TextStep) -> None:
        self.finished = reason
        self._emit(
            Finished(
                request_id=self.request.request_id,
                reason=reason,
                text=last.text,
                prompt_tokens=len(self.prompt) + len(self.given),
                cached_tokens=self.cached_tokens,
                completion_tokens=max(0, len(self.tokens) - len(self.given)),
                prefill_s=self.prefill_s,
                decode_s=self.decode_s,
                reasoning=last.reasoning,
                calls=last.calls,
                stop_string=self._text.stop_string if reason == "stop" else "",
                reasoning_tokens=self._text.thought_tokens,
            )
        )


def accept(
    order: int, request: GenerationRequest, tokens: Sequence[int], tokenizer: Tokenizer, vocab_size: int,
    max_context_tokens: int, emit: Callable[[FromWorker], None],
) -> Generation | RequestFailed:  # fmt: skip
    """Why a request is refused. Every rank finds the same, before anything is computed."""
    if (request.messages is None) == (request.prompt is None):
        return RequestFailed(request.request_id, "bad_request", "exactly one of messages and prompt must be set")
    if request.max_tokens < (0 if request.scores_prompt else 1):
        return RequestFailed(request.request_id, "bad_request", "max_tokens must be at least 1")
    try:
        prompt, thinks = tokenizer.prompt(request, max_context_tokens)
        mask = tokenizer.answer_mask(request, thinks, vocab_size)
    except PromptError as error:
        return RequestFailed(request.request_id, error.code, str(error))
    except GrammarError as error:
        return RequestFailed(request.request_id, "bad_grammar", str(error))
    except RecursionError:
        return RequestFailed(request.request_id, "bad_request", "a schema or an option is nested too deeply")
    if not prompt:
        return RequestFailed(request.request_id, "empty_prompt", "prompt: it has no tokens")
    for field, named in (("prompt", prompt), ("logit_bias", list(request.sampling.logit_bias))):
        strange = next((token for token in named if not 0 <= token < (vocab_size or token + 1)), None)
        if strange is not None:
            text = f"{field}: token {strange} is not in the model's vocabulary of {vocab_size}"
            return RequestFailed(request.request_id, "bad_token", text)
    if len(prompt) >= max_context_tokens:
        return RequestFailed(
            request.request_id,
            "context_length_exceeded",
            too_long(len(prompt), max_context_tokens),
        )
    generation = Generation(order, request, prompt, max_context_tokens, tokenizer, emit, thinks, mask)
    generation.adopt(tokens)
    return generation
