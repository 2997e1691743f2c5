"""One rank of the pipeline: `python -m exoengine.worker --socket PATH [--orphan-deadline-s 60]`.

The main thread is the only one that touches MLX: it loads, forms groups and generates, and sees the daemon's
commands between steps. The control thread (process/control_thread.py) talks to the daemon and can abort a group at
any time. Weights, caches and requests outlive a group; the process outlives its daemon for a while.

Decides: which command is acted on in which state.
"""

from __future__ import annotations

import argparse
import gc
import os
import select
import signal
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exoengine.process.shared_state import SharedState, State
from exoengine.process.spare import Spare
from exoengine.protocol import (
    NOTHING_MEASURED,
    PROTOCOL_VERSION,
    Abort,
    Aborted,
    Begin,
    Cancel,
    EdgeSeen,
    Form,
    Formed,
    FromWorker,
    Hello,
    Leave,
    Left,
    LinkHealth,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Prepare,
    Prepared,
    ToWorker,
)  # fmt: skip

if TYPE_CHECKING:
    from exoengine.generate.loop import Generations
    from exoengine.model.loading import HeldLayers, LoadedModel
    from exoengine.native.module import NativeModule

ORPHAN_DEADLINE_S: Final = 60.0
TERM_DEADLINE_S: Final = 10.0
"""What a SIGTERM leaves for the step under way: well within launchd's ExitTimeOut of 30 s."""


def _collect_everything() -> None:
    """What is frozen as well: nothing of the last model would be collected otherwise."""
    gc.unfreeze()
    gc.collect()


class Worker:
    """The main thread's view. `hello` may be called from the control thread."""

    def __init__(self, socket_path: Path, orphan_deadline_s: float, native: NativeModule) -> None:
        from exoengine.model.text_thread import TextThread
        from exoengine.process.control_thread import ControlThread, Mailbox
        from exoengine.ring.group import RingGroup

        self.shared = SharedState()
        self._native = native
        self._group = RingGroup(native)
        self._mailbox = Mailbox(self._group.wake_up)
        self._control = ControlThread(
            socket_path,
            self.shared,
            self._mailbox,
            self._abort,
            self._watch_edge,
            self.hello,
            orphan_deadline_s,
        )
        self._texts = TextThread(self._emit)
        self._control.on_text = self._texts.ask
        self._tell = self._control.emit
        self._model: LoadedModel | None = None
        self._asked: Load | None = None
        """What `_model` was loaded for."""
        self._step_costs = NOTHING_MEASURED
        self._load_s = 0.0
        self._held: HeldLayers | None = None
        self._generations: Generations | None = None
        self._prepared: Prepare | None = None
        self._formed: Prepare | None = None
        self._leaving = False

    def run(self) -> None:
        self._control.start()
        threading.Thread(target=self._await_term, name="signals", daemon=True).start()
        while not self._leaving:
            self._group.drain_wake()
            message = self._mailbox.take()
            if message is not None:
                self._act(message)
            elif self._formed is not None:
                self._turn()
            else:
                select.select([self._group.wake], [], [])
        self._group.leave()
        self._emit(Left())
        self._control.close()

    def hello(self) -> Hello:
        """Without the requests: the control thread knows them better."""
        from exoengine.model.gpu_memory import recommended_bytes
        from exoengine.ring import rdma
        from exoengine.ring.rendezvous import VERSION as RING_VERSION
        from mlx_patches.switch import find_switch

        model, plan = self._model, self._formed or self._prepared
        return Hello(
            protocol=PROTOCOL_VERSION,
            pid=os.getpid(),
            versions={name: metadata.version(name) for name in ("mlx", "mlx-lm")} | {"ring": str(RING_VERSION)},
            fingerprint=model.summary.fingerprint if model else None,
            plan_hash=plan.plan_hash if plan else None,
            attempt=plan.attempt if plan else 0,
            formed=self._formed is not None,
            requests=(),
            native=self._native.why_not,
            load=self._asked,
            load_s=self._load_s,
            layer_s=self._held.layer_s if self._held else 0.0,
            has_switch=find_switch() is not None,
            recommended_bytes=recommended_bytes(),
            wired_bytes=model.wired_bytes if model else 0,
            answers_texts=True,
            keeps_waiting=True,
            step_costs=self._step_costs,
            edge_costs=self._group.edge_costs,
            no_rdma=rdma.why_not(),
            over_rdma=self._group.over_rdma,
        )

    def _abort(self, code: str, text: str) -> None:
        """From any thread. The main thread may wait in MLX for ever where it waits over RDMA: the daemon is told
        from here, and ends this process.
        """
        plan, over_rdma = self._formed or self._prepared, self._group.over_rdma
        self._group.abort(code, text)
        if over_rdma and plan is not None:
            self._emit(Aborted(plan.plan_hash, plan.attempt, code, text, -1, is_spent=True))

    def _watch_edge(self) -> None:
        """From the control thread: bytes that the next rank's machine does not acknowledge end the group, before a
        step's deadline does.
        """
        plan, standing_s = self._formed, self._group.stalled()
        if plan is not None and (cable_s := self._group.stalled_cable()) is not None:
            self._abort("cable_silent", f"a further cable has had nothing acknowledged for {cable_s:.1f} s")
        if plan is None or standing_s is None:
            return
        right = (plan.rank + 1) % plan.size
        self._emit(EdgeSeen(plan.plan_hash, plan.attempt, right, "silent", 0, standing_s))
        self._abort("edge_silent", f"rank {right} has acknowledged nothing for {standing_s:.1f} s")

    def _emit(self, message: FromWorker) -> None:
        self._control.emit((message,))

    def _await_term(self) -> None:
        """SIGTERM is blocked in every thread and taken here, so that it works while MLX holds the main thread."""
        signal.sigwait({signal.SIGTERM})
        while self._group.is_deaf:
            signal.sigwait({signal.SIGTERM})
        self._control.leaving(TERM_DEADLINE_S)
        self._mailbox.put(Leave(TERM_DEADLINE_S))

    # --- commands ---------------------------------------------------------------------------------------

    def _act(self, message: ToWorker) -> None:
        match message:
            case Load():
                self._load(message)
            case Prepare():
                self._prepare(message)
            case Form():
                self._form(message)
            case Abort():
                self._act_on_abort()
            case Begin():
                if self._generations is not None:
                    self._generations.begin(message)
            case Cancel(request_id):
                if self._generations is not None:
                    self._generations.cancel(request_id)
            case LinkHealth(healthy, reason):
                if self._generations is not None:
                    self._generations.policy.set_link(healthy, reason)
            case Leave():
                self._leave()

    def _load(self, message: Load) -> None:
        from exoengine.generate.loop import Generations
        from exoengine.measure.step_costs import measure
        from exoengine.model.loading import HeldLayers, LoadCalledOffError, load
        from exoengine.model_files.model_folder import ModelFolderError

        self._part("replaced", "another model is loaded")
        self._forget_model()
        self._set("loading")
        begun = time.monotonic()
        self.shared.begin("loading", message.sync.load_deadline_s)

        def note(done: int, total: int) -> None:
            self._emit(LoadProgress(done, total))
            if self._mailbox.ends_loading():
                raise LoadCalledOffError

        held = self._held = self._held or HeldLayers()
        try:
            self._model = load(message, note, held, self._native.get() if message.parts > 1 else None)
            self._step_costs = measure(self._model.stage)
        except LoadCalledOffError:
            self._set("empty")
            return
        except ModelFolderError as error:
            self._held = None
            self._set("empty")
            self._emit(LoadFailed(message.folder, error.code, str(error)))
            return
        finally:
            self.shared.end()
        model = self._model
        self._generations = Generations(
            model, self._group, self.shared, self._tell, message.sync, message.serving, self._step_costs
        )
        self._asked = message
        self._texts.use(model.tokenizer, model.max_context_tokens, model.kv_room)
        self.shared.memory_bytes = model.weight_bytes
        gc.collect()
        gc.freeze()  # a collection after a fault must not walk through what stays for ever
        self._load_s = time.monotonic() - begun
        self._set("loaded")
        self._emit(
            Loaded(
                folder=message.folder,
                layers=(model.stage.first, model.stage.last),
                total_layers=model.stage.total,
                fingerprint=model.summary.fingerprint,
                weight_bytes=model.weight_bytes,
                load_s=self._load_s,
                max_context_tokens=model.max_context_tokens,
                layer_s=held.layer_s,
                wired_bytes=model.wired_bytes,
                warning=model.warning,
                part=message.part,
                parts=message.parts,
                step_costs=self._step_costs,
            )
        )

    def _forget_model(self) -> None:
        self._step_costs = NOTHING_MEASURED
        self._model = self._generations = self._asked = None
        self._texts.use(None)
        _collect_everything()

    def _prepare(self, message: Prepare) -> None:
        """Leaves the group at a step's end, if a step is under way, and answers when it is left."""
        self._prepared = message
        if self._formed is None:
            self._answer_prepare()
        elif self._generations is not None:
            self._generations.pause_wanted = True

    def _answer_prepare(self) -> None:
        assert self._prepared is not None
        self._control.settled()
        self._group.leave()
        self._set("prepared")
        self._emit(Prepared(self._prepared.plan_hash, self._prepared.attempt))

    def _form(self, message: Form) -> None:
        from exoengine.generate.sync_mode import graph_wait_s
        from exoengine.ring.ring_plan import Cable, FormError, RingConnection, RingPlan

        plan, generations = self._prepared, self._generations
        if plan is None or (plan.plan_hash, plan.attempt) != (message.plan_hash, message.attempt):
            return  # a newer Prepare has come, or none: the daemon knows from our answers
        if generations is None or self._model is None:
            self._emit(Aborted(plan.plan_hash, plan.attempt, "no_model", "no model is loaded on this rank", -1))
            return
        self._set("forming")
        begun = time.monotonic()
        self.shared.begin("forming the group", message.deadline_s + 1.0)
        try:
            self._group.form(
                RingPlan(
                    plan_hash=plan.plan_hash,
                    attempt=plan.attempt,
                    rank=plan.rank,
                    size=plan.size,
                    hosts=plan.hosts,
                    key=plan.key,
                    connect_from=plan.connect_from,
                    accept_from=plan.accept_from,
                    connect_interface=plan.connect_interface,
                    listen_interface=plan.listen_interface,
                    across=tuple(
                        RingConnection(one.rank, one.connects, one.host, one.source, one.interface)
                        for one in plan.across
                    ),
                    cables=tuple(Cable(one.rank, one.interface, one.near, one.far) for one in plan.cables),
                    all_sealed=generations.policy.settings.seal == "all",
                    rdma=plan.rdma,
                ),
                begun + message.deadline_s,
                graph_wait_s(generations.policy.settings),
                lambda rank, fault, moved, seconds: self._emit(
                    EdgeSeen(plan.plan_hash, plan.attempt, rank, fault, moved, seconds)
                ),
                thorough=generations.is_idle and not generations.has_work,
            )
        except FormError as error:
            self._lost(error.code, str(error))
            return
        finally:
            self.shared.end()
        if self._model.is_divided:
            self._model.regroup(self._group.of_parts(plan.rank, self._model.parts))
        self._formed, self._prepared = plan, None
        generations.joined(plan.rank, plan.size)
        self._set("ready")
        group = self._group
        self._emit(
            Formed(plan.plan_hash, plan.attempt, generations.next_step, group.edge_costs, group.further_cables)
        )

    def _act_on_abort(self) -> None:
        """The control thread has shut the connections down already; here the group is dropped."""
        if self._formed is not None:
            self._lost("told", "the daemon gave the group up")
        else:
            self._group.leave()

    def _leave(self) -> None:
        if self._formed is not None and self._generations is not None and not self._generations.is_idle:
            self._generations.pause_wanted = True
            self._prepared = None
            self._leave_after_pause = True
        else:
            self._leaving = True
            self._set("leaving")

    # --- turns ------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        from exoengine.generate.loop import Paused
        from exoengine.ring.message_ring import RingLostError

        generations = self._generations
        assert generations is not None
        lost: tuple[str, str] | None = None
        try:
            if self._group.abort_reason is not None:
                raise RingLostError(self._group.abort_reason.text)
            self._set("generating" if not generations.is_idle or generations.has_work else "ready")
            if self._formed is not None and self._formed.size == 1 and not generations.has_work:
                self._rest_alone()
            else:
                generations.turn(self._group.wake)
        except Paused:
            self._paused()
        except RingLostError as error:
            lost = ("peer_lost", str(error))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            lost = ("engine", str(error).strip().partition("\n")[0])
        if lost is not None:
            self._lost(*lost)

    def _rest_alone(self) -> None:
        """A single rank without a request."""
        assert self._generations is not None
        if self._generations.pause_wanted:
            self._paused()
        else:
            select.select([self._group.wake], [], [])

    def _paused(self) -> None:
        """All ranks are at the same step's end and leave the group."""
        self._control.settled()
        if self._leave_after_pause:
            self._drop()
            self._leaving = True
            self._set("leaving")
        elif self._prepared is not None:
            self._drop()
            self._answer_prepare()
        else:
            self._part("paused", "the ranks leave the group for another plan")

    def _lost(self, code: str, text: str) -> None:
        """A fault: the group is gone, everything else stays."""
        reason = self._group.abort_reason
        if reason is not None:
            code, text = reason.code, reason.text
        if code == "engine" and self._generations is not None:
            self._generations.failed(text)
            if self._formed is not None and self._formed.size == 1:
                self._generations.joined(0, 1)
                return
        self._part(code, text)
        if self._leave_after_pause:
            self._leaving = True
        elif self._prepared is not None:
            self._answer_prepare()

    def _part(self, code: str, text: str) -> None:
        plan, step = self._formed or self._prepared, self._generations.next_step if self._generations else -1
        spent = code == "rdma_spent" or (self._group.over_rdma and code != "paused")
        was_formed = self._drop()
        if plan is not None and (was_formed or self.shared.state == "forming"):
            self._set("aborted")
            self._emit(Aborted(plan.plan_hash, plan.attempt, code, text, step, spent))
            if not was_formed:
                self._prepared = None

    def _drop(self) -> bool:
        was_formed, self._formed = self._formed is not None, None
        if was_formed and self._generations is not None:
            self._generations.parted()
            self._generations.pause_wanted = False
        if self._model is not None:
            self._model.regroup(None)
        self._group.leave()
        return was_formed

    def _set(self, state: State) -> None:
        self.shared.state = state

    _leave_after_pause = False


def _begin_mlx() -> None:
    """Imports MLX and has it compute once, in a thread that then ends.

    MLX raises what failed in one of its streams (a weight that cannot be read) in the midst of whatever the thread
    that came first hands it next. A task that was just counted as under way then never runs, and after a few faults
    an evaluation waits for ever for one of these to end (`wait_for_one` in MLX's scheduler). Any other thread is
    told where it waits instead.
    """

    def compute() -> None:
        import mlx.core as mx

        mx.eval(mx.add(mx.array(1), mx.array(1), stream=mx.cpu))

    first = threading.Thread(target=compute, name="first")
    first.start()
    first.join()


def main() -> None:
    parser = argparse.ArgumentParser(prog="exoengine.worker")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--orphan-deadline-s", type=float, default=ORPHAN_DEADLINE_S)
    parser.add_argument("--native", type=Path, help="where native groups are built and found")
    parser.add_argument("--spare", action="store_true", help="wait on standard input until a worker is wanted")
    arguments = parser.parse_args()
    spare = Spare() if arguments.spare else None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which then tells its workers
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _begin_mlx()
    from exoengine.native.build import cache_in
    from exoengine.native.module import NativeModule

    native = NativeModule(arguments.native or cache_in(arguments.socket.parent))
    native.begin()
    if spare is not None:
        native.get()
        spare.wait()
    Worker(arguments.socket, arguments.orphan_deadline_s, native).run()
    sys.stdout.flush()
    os._exit(0)  # MLX's threads may still wait for a neighbour that is gone


if __name__ == "__main__":
    main()
