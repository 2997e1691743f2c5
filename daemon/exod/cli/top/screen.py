"""`exoctl top`: the cluster live in a terminal, with a key for every verb. Each verb asks before it acts.

Decides where things stand and which key does what. At 80 x 24 everything that matters is seen; what does not fit
scrolls. Texts are made in panels.py, the daemon is asked in feed.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Label, RichLog, Static

from exod.cli.base.client import DaemonClient
from exod.cli.top import panels
from exod.cli.top.feed import Feed, Look

MAX_EVENTS: Final = 500
"""Lines of the log that can be scrolled back to."""

QUESTIONS: Final = {
    "renegotiate": "Agree on a new mesh plan? A running answer goes on after a short pause.",
    "engine_drain": "Stop taking requests? Running answers end, new ones are refused.",
    "engine_unload": "Unload the model? Running answers are ended.",
    "engine_load": "Load which model? Running answers of the present one are ended.",
}


class Question(ModalScreen[str | None]):
    """A verb asks: the answer is a model's name ("" where none is asked for), or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "yes", "Yes", show=False),
        Binding("n,escape", "no", "No", show=False),
    ]

    def __init__(self, text: str, *, asks_model: bool) -> None:
        super().__init__()
        self._text = text
        self._asks_model = asks_model

    def compose(self) -> ComposeResult:
        with Vertical(id="question"):
            yield Label(self._text)
            if self._asks_model:
                yield Input(placeholder="a folder, a repository id, or embedded:count", max_length=1024)
                yield Label("Enter: load it   Esc: leave it")
            else:
                yield Label("y: do it   n: leave it")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip() or None)

    def action_yes(self) -> None:
        if not self._asks_model:
            self.dismiss("")

    def action_no(self) -> None:
        self.dismiss(None)


class Top(App[None]):
    """`connect` opens a connection to the daemon."""

    TITLE = "exod"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: auto; max-height: 5; padding: 0 1; }
    #mesh { height: auto; max-height: 45%; padding: 0 1; border-top: solid $primary-darken-2; }
    #engine { height: auto; max-height: 9; padding: 0 1; border-top: solid $primary-darken-2; }
    #events { height: 1fr; min-height: 3; padding: 0 1; border-top: solid $primary-darken-2; }
    #told { height: auto; max-height: 2; padding: 0 1; color: $warning; }
    Question { align: center middle; }
    #question { width: 70; max-width: 90%; height: auto; padding: 1 2; background: $surface; }
    #question { border: thick $primary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("r", "ask('renegotiate')", "Renegotiate"),
        Binding("p", "preflight", "Preflight"),
        Binding("d", "ask('engine_drain')", "Drain"),
        Binding("l", "ask('engine_load')", "Load"),
        Binding("u", "ask('engine_unload')", "Unload"),
    ]

    def __init__(self, connect: Callable[[], DaemonClient]) -> None:
        super().__init__()
        self._feed = Feed(connect, self._from_thread(self._seen), self._from_thread(self._failed))
        self._memory = panels.RttMemory()
        self._names: dict[str, str] = {}

    def compose(self) -> ComposeResult:
        yield Static("asking exod", id="head", markup=False)
        with VerticalScroll(id="mesh"):
            yield Static(id="paths", markup=False)
        with VerticalScroll(id="engine"):
            yield Static(id="ranks", markup=False)
        # Its own least width is 78, of which 80 columns with a border of ours would hide the last two.
        yield RichLog(id="events", max_lines=MAX_EVENTS, min_width=1, wrap=True, markup=False)
        yield Static(id="told", markup=False)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self._feed.start()

    def on_unmount(self) -> None:
        self._feed.stop()

    def _from_thread(self, function: Callable[[Any], None]) -> Callable[[Any], None]:
        """`function` for a thread of the feed; it does not wait, and after the end it does nothing."""

        def called(value: Any) -> None:
            self.call_later(function, value)

        return called

    def _seen(self, look: Look) -> None:
        self._memory.add(look.status)
        self._names = {node.id: node.name for node in look.status.nodes}
        width = self.size.width - 4
        self.query_one("#head", Static).update(panels.head(look.status))
        self.query_one("#paths", Static).update(panels.mesh(look.status, self._memory, width))
        self.query_one("#ranks", Static).update(panels.engine(look.engine))
        log = self.query_one("#events", RichLog)
        for event in look.events:
            log.write(panels.event(event, self._names))

    def _failed(self, text: str) -> None:
        """What is on the screen is old: it goes, so that nobody takes it for true."""
        self.query_one("#head", Static).update(panels.clean(text))
        self.query_one("#paths", Static).update("")
        self.query_one("#ranks", Static).update("")

    def _tell(self, text: str) -> None:
        self.query_one("#told", Static).update(panels.clean(text))

    def action_preflight(self) -> None:
        self._act("preflight")

    def action_ask(self, verb: str) -> None:
        asks_model = verb == "engine_load"

        def answered(answer: str | None) -> None:
            if answer is not None:
                self._act(verb, **({"model": answer} if asks_model else {}))

        self.push_screen(Question(QUESTIONS[verb], asks_model=asks_model), answered)

    def _act(self, verb: str, **args: Any) -> None:
        self._tell(f"{verb.removeprefix('engine_')}: under way")
        self._feed.act(verb, self._from_thread(self._tell), **args)
