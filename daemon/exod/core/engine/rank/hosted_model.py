"""The model that this node's rank is to host: looked for, known, or why it cannot be hosted.

Decides what the rank's worker is to hold of it under a plan, when a failure is worth another try, and when one is
over. Never looks at a disk: the shell resolves the model. Times are monotonic seconds.
"""

from __future__ import annotations

from typing import Final

from exod.core.engine.engine_events import EmitEvent, ModelFacts, ResolveModel, StopSearch
from exod.core.engine.layer_split import DoesNotFitError, layer_spans, shortage
from exod.core.engine.parallel_mode import tensor_parts
from exod.core.engine.rank.model_download import ModelDownload
from exod.model import MeshPlan, NodeId
from exoengine.protocol import Load, Serving, SyncSettings

FAILED_RETRY_FIRST_S: Final = 1.0
FAILED_RETRY_S: Final = 60.0
"""What failed for a moment (a disk that was away, a hub that did not answer) is tried again while clients still
wait for it. Each failure doubles the pause: a folder that stays bad is looked at once a minute: people mend it
while we run."""

RETRY_MOMENT_S: Final = 2.0
"""A retry that fails again mostly does so at once. For so long the failure is still what a request meets; a load
that goes on after that is one to wait for."""


class HostedModel:
    def __init__(self, me: NodeId, sync: SyncSettings, serving: Serving) -> None:
        self._me = me
        self._sync, self._serving = sync, serving
        self.facts: ModelFacts | None = None
        self._resolving = ""
        self.download = ModelDownload()
        self.failure: tuple[str, str] | None = None
        """Code and text."""
        self.retry_at: float | None = None
        self._retry_pause_s = FAILED_RETRY_FIRST_S
        self._retried_at: float | None = None
        """When it was tried again by itself; None where that has an answer."""
        self.lasting_failure: tuple[str, str] | None = None
        """Code and text. It lasts while the same is tried again, until the layers are held or another model is
        wanted: what an alert tells, once."""

    # --- looking for it -------------------------------------------------------------------------------------

    def resolve(self, model: str) -> list[ResolveModel]:
        """The command to look for it, once."""
        if self._resolving == model:
            return []
        self._resolving = model
        return [ResolveModel(model)]

    @property
    def is_searching(self) -> bool:
        return bool(self._resolving)

    def progress(self, model: str, done_bytes: int, total_bytes: int) -> list[EmitEvent]:
        """So much of it is downloaded. Others hear of it with the next report, in a second at most."""
        return self.download.progress(model, done_bytes, total_bytes) if model == self._resolving else []

    def found(self, facts: ModelFacts) -> bool:
        """False where another one is looked for by now."""
        if facts.model != self._resolving:
            return False
        self._resolving, self.facts, self.failure = "", facts, None
        return True

    def not_found(self, model: str) -> bool:
        """False where another one is looked for by now."""
        if model != self._resolving:
            return False
        self._resolving = ""
        self.download.forget()
        return True

    def forget(self) -> list[StopSearch]:
        """Another model, or none, is wanted: a search is called off."""
        wanted, self._resolving = self._resolving, ""
        self.facts = None
        self.failure_is_over()
        self.download.forget()
        return [StopSearch()] if wanted else []

    # --- failures -------------------------------------------------------------------------------------------

    def fail(self, code: str, text: str, now: float) -> None:
        """It cannot be hosted."""
        self._retried_at = None
        self.failure = self.lasting_failure = (code, text)
        self.retry_at = now + self._retry_pause_s
        self._retry_pause_s = min(2 * self._retry_pause_s, FAILED_RETRY_S)

    def give_up(self, code: str, text: str) -> None:
        """It cannot be hosted, and is not tried again by itself."""
        self._retried_at = None
        self.failure = self.lasting_failure = (code, text)
        self.retry_at = None

    def clear_failure(self) -> None:
        """Under another plan it is tried at once: another share of the layers may fit."""
        self.failure = self.retry_at = self._retried_at = None

    def retry_if_due(self, now: float) -> None:
        if self.retry_at is not None and now >= self.retry_at:
            self.try_again()
            self._retried_at = now

    def try_again(self) -> None:
        """What failed may have been mended meanwhile: the folder is looked at anew."""
        self._retried_at = None
        if self.failure is not None:
            self.retry_at = self.failure = self.facts = None

    def shown_failure(self, now: float) -> tuple[str, str] | None:
        """Code and text of what a request meets: the failure, and for a moment while that is tried again."""
        retries = self._retried_at is not None and now - self._retried_at < RETRY_MOMENT_S
        return self.lasting_failure if retries and not self.download.total_bytes else self.failure

    def failure_is_over(self) -> None:
        self.lasting_failure = self._retried_at = None
        self._retry_pause_s = FAILED_RETRY_FIRST_S

    # --- this rank's share ----------------------------------------------------------------------------------

    def span(self, plan: MeshPlan | None) -> tuple[int, int] | None:
        """The layers that the plan gives this rank; None while unknown. ValueError where they cannot be divided."""
        if plan is None or self.facts is None or self._me not in plan.ring:
            return None
        return layer_spans(plan, self.facts.sizes)[plan.ring.index(self._me)]

    def parts(self, plan: MeshPlan | None) -> int:
        """Of how many parts each layer is, one on each rank; 1 in a pipeline, and while that is unknown. ValueError
        where the plan asks for what cannot be.
        """
        parts = tensor_parts(plan, self.facts.sizes) if plan is not None and self.facts is not None else 1
        if parts > 1 and self._sync.seal == "all":
            raise ValueError('engine.parallel = "tensor" cannot be: this node has mesh.seal = "all"; change either')
        return parts

    def share(self, plan: MeshPlan) -> Load | None:
        """What the plan asks this rank's worker to hold; None while the model is unknown. ValueError where the
        layers cannot be divided, DoesNotFitError where the plan's nodes cannot hold them.
        """
        span, facts = self.span(plan), self.facts
        if span is None or facts is None:
            return None
        if text := shortage(plan, facts.sizes):
            raise DoesNotFitError(text)
        context = plan.context
        parts = self.parts(plan)
        return Load(
            facts.folder,
            *span,
            self._sync,
            context.max_tokens,
            context.kv_bits,
            context.kv_group_size,
            part=plan.ring.index(self._me) % parts,
            parts=parts,
            serving=self._serving,
        )
