"""`exoctl chat`: the model from the terminal, streaming; without a prompt, a conversation.

Decides what is typed where: the answer goes to standard output and nothing else does, so that it can be piped;
figures and what the cluster is busy with go to standard error, for people only. Temperature 0 unless said. The
model's text is stripped of control characters, so that it cannot drive the terminal.
"""

from __future__ import annotations

import sys
import time
import unicodedata
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from exod.cli.base.options import Commands, Shell, UsageError
from exod.cli.base.values import number, whole
from exod.errors import ExitCode, ExodError

if TYPE_CHECKING:
    from exod.daemon_api.interface import GenerationEnd

HELP = "/reset forgets the conversation, /quit or Ctrl-D ends it, Ctrl-C ends an answer"


MAX_TOKENS: Final = 10_000_000
MAX_SEED: Final = 2**63 - 1
"""What the daemon takes."""


def register(commands: Commands) -> None:
    parser = commands.add("chat", chat)
    parser.add_argument("words", nargs="*", metavar="PROMPT", help="what to ask; without it, a conversation")
    parser.add_argument("--system", metavar="TEXT", help="a system instruction before the conversation")
    parser.add_argument("--model", metavar="NAME", help="only if this model is loaded")
    parser.add_argument("--max-tokens", type=whole(1, MAX_TOKENS), metavar="N", help="a bound for each answer")
    parser.add_argument(
        "--temperature", type=number(0, 2), metavar="T", default=0.0, help="default: 0, the likeliest"
    )
    parser.add_argument("--seed", type=whole(0, MAX_SEED), metavar="N", help="makes a sampled answer repeatable")


def chat(
    shell: Shell,
    words: list[str],
    system: str | None,
    model: str | None,
    max_tokens: int | None,
    temperature: float,
    seed: int | None,
) -> ExitCode:
    """Talk to the model, streaming. Standard input is the prompt where it is no terminal."""
    wishes: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    conversation = Conversation(shell, system, wishes)
    prompt = " ".join(words) if words else None
    if prompt is None and not sys.stdin.isatty():
        prompt = _given().strip()
        if not prompt:
            raise UsageError("there is no prompt: neither as an argument nor on standard input")
    if prompt is not None:
        conversation.ask(prompt)
        return ExitCode.OK
    return _converse(conversation)


def _given() -> str:
    """All of standard input."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise UsageError("standard input is no text in UTF-8") from None


class Conversation:
    """The messages so far, and one answer at a time."""

    def __init__(self, shell: Shell, system: str | None, wishes: dict[str, Any]) -> None:
        self._shell = shell
        self._wishes = wishes
        self._first = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, str]] = list(self._first)
        self._for_people = sys.stderr.isatty() and not shell.as_json

    def clear(self) -> None:
        self._messages = list(self._first)

    def ask(self, text: str) -> None:
        """Prints the answer as it comes. An answer that was cut short is not remembered. Raises ExodError."""
        self._messages.append({"role": "user", "content": text})
        try:
            answer = self._answer()
        except BaseException:
            self._messages.pop()
            raise
        self._messages.append({"role": "assistant", "content": answer})

    def _answer(self) -> str:
        import msgspec

        from exod.daemon_api.interface import GenerationDelta, GenerationEnd, KeepAlive, TextDelta

        decoder: msgspec.json.Decoder[GenerationDelta] = msgspec.json.Decoder(GenerationDelta)
        pieces: list[str] = []
        started = time.monotonic()
        first_after_s = 0.0
        thought = False
        end: GenerationEnd | None = None
        with self._shell.daemon() as daemon:
            for delta in daemon.stream("generate", decoder, messages=self._messages, **self._wishes):
                match delta:
                    case KeepAlive() if delta.text:
                        self._note(delta.text)
                    case TextDelta() | GenerationEnd():
                        if not first_after_s:
                            self._note("")
                            first_after_s = time.monotonic() - started
                        thought = self._think(delta.reasoning, thought)
                        if delta.text and thought:
                            thought = self._think_no_more()
                        pieces.append(delta.text)
                        self._print(delta.text)
                        if isinstance(delta, GenerationEnd):
                            end = delta
        self._finish("".join(pieces), end, first_after_s)
        return "".join(pieces)

    def _print(self, text: str) -> None:
        if not self._shell.as_json:
            sys.stdout.write("".join(char if _is_printable(char) else "�" for char in text))
            sys.stdout.flush()

    def _think(self, text: str, before: bool) -> bool:
        """What the model thinks, dimmed and for people only; says whether it does."""
        if text and self._for_people:
            shown = "".join(char if _is_printable(char) else "�" for char in text)
            sys.stderr.write(self._shell.paint().styled(shown, "dim"))
            sys.stderr.flush()
        return before or bool(text)

    def _think_no_more(self) -> bool:
        """A line of its own before what is said."""
        if self._for_people:
            sys.stderr.write("\n\n")
            sys.stderr.flush()
        return False

    def _note(self, text: str) -> None:
        """A passing word in place: gone when the answer goes on."""
        if self._for_people:
            sys.stderr.write(f"\r\x1b[K{self._shell.paint().plain(text)}" if text else "\r\x1b[K")
            sys.stderr.flush()

    def _finish(self, text: str, end: GenerationEnd | None, first_after_s: float) -> None:
        if self._shell.as_json:
            usage = end.usage if end else None
            reason = end.finish_reason if end else None
            self._shell.show_value({"text": text, "finish_reason": reason, "usage": usage})
            return
        print(flush=True)
        if end is None or not self._for_people:
            return
        from exod.cli.base.paint import ms, rate

        usage = end.usage
        words = [f"{usage.completion_tokens} tokens"]
        if usage.decode_s > 0 and usage.completion_tokens > 1:
            words.append(rate(usage.completion_tokens / usage.decode_s))
        words.append(f"first after {ms(first_after_s * 1000)}")
        words += ["ended by its length"] if end.finish_reason == "length" else []
        print(self._shell.paint().styled(", ".join(words), "dim"), file=sys.stderr)


def _is_printable(char: str) -> bool:
    return char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs")


def _converse(conversation: Conversation) -> ExitCode:
    """Reads a line and prints the answer, until the end of input. An error is printed and does not end it."""
    with suppress(ImportError):
        import readline  # noqa: F401 - importing it gives input() line editing and a history of what was typed
    print(HELP, file=sys.stderr)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print(file=sys.stderr)
            return ExitCode.OK
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return ExitCode.OK
        match line:
            case "":
                continue
            case "/quit" | "/exit":
                return ExitCode.OK
            case "/reset" | "/clear":
                conversation.clear()
                print("(forgotten)", file=sys.stderr)
            case _ if line.startswith("/"):
                print(HELP, file=sys.stderr)
            case _:
                _ask(conversation, line)


def _ask(conversation: Conversation, line: str) -> None:
    try:
        conversation.ask(line)
    except KeyboardInterrupt:
        print("\n(ended)", file=sys.stderr)
    except ExodError as error:
        print(f"\nexoctl: {error}", file=sys.stderr)
