"""Takes secrets and names of people out of a text that leaves this host. Pure.

What is known (this cluster's key, tokens and API keys, this user's names, the names of hosts and nodes) is replaced
wherever it stands; what only looks like a secret (keys in hexadecimal, passwords in addresses, tokens, e-mail
addresses, serial numbers, hardware addresses) by its shape. Each name becomes one stand-in (`node1`) in the whole
report, so that it can still be followed. Addresses of the network stay: a report is about them.

Rather too much is taken out than too little: a word that is also somebody's name goes, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

SECRET: Final = "[secret]"
PERSON: Final = "[person]"

SHORTEST_NAME: Final = 3
"""Names of fewer letters stand in too many other words."""

_WORDS_OF_NO_ONE: Final = frozenset(
    {"root", "admin", "user", "exod", "localhost", "local", "the", "mac", "studio", "mini"}
)
"""Names that name nobody, and that texts are full of."""

_SHAPES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"-----BEGIN [A-Z ]+-----.*?(-----END [A-Z ]+-----|\Z)", re.DOTALL), SECRET),
    (re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{64}(?![0-9A-Fa-f])"), SECRET),
    (re.compile(r"(?<=://)[^/\s@\"']+@"), f"{SECRET}@"),
    (re.compile(r"(?i)(?<=bearer )[\w.~+/=-]{8,}"), SECRET),
    (re.compile(r"\b(?:hf|sk|ghp|gho|xox[abp])[-_][\w-]{16,}"), SECRET),
    (re.compile(r"\bexod1?[-_:][\w-]{40,}={0,2}"), SECRET),
    (
        re.compile(
            r"(?i)((?:password|passwd|passphrase|secret|api[_-]?key)[\"']?\s*[:=]\s*)"
            r"(\"[^\"]*\"|'[^']*'|[^\s,;}]+)"
        ),
        rf'\1"{SECRET}"',
    ),
    (re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), PERSON),
    (re.compile(r"(?i)(serial[ _-]?(?:number|num)?[^\n:=]{0,12}[:=]\s*\"?)[A-Z0-9]{6,}"), rf"\1{SECRET}"),
    (re.compile(r"(\"device_name_key\"\s*:\s*\")(?!Mac|iMac)[^\"]*"), rf"\1{PERSON}"),
    (re.compile(r"[\w.-]+(?:’s|'s|s)(?= ?-?(?:MacBook|Mac|iMac|iPhone|iPad)\b)"), PERSON),
    (re.compile(r"\b((?:MacBook|Mac|iMac)[\w -]*? (?:von|de|di|van|do|af) )[\w-]+"), rf"\1{PERSON}"),
)
"""What looks like a secret or a person, wherever it stands."""

_HARDWARE_ADDRESS: Final = re.compile(r"\b([0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){2})((?::[0-9a-fA-F]{2}){3})\b")


class Redaction:
    """`secrets` are replaced as they stand. `people` and `hosts` are names; each host has one stand-in."""

    def __init__(self, secrets: Iterable[str] = (), people: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
        self._literal = [one for one in sorted(set(secrets), key=len, reverse=True) if one.strip()]
        named = {
            one: f"node{place}" for place, one in enumerate(dict.fromkeys(_bare(one) for one in hosts), start=1)
        }
        words = [(one, PERSON) for one in people] + list(named.items())
        self._words = [
            (re.compile(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", re.IGNORECASE), stand_in)
            for word, stand_in in sorted(words, key=lambda pair: -len(pair[0]))
            if len(word) >= SHORTEST_NAME and word.lower() not in _WORDS_OF_NO_ONE
        ]
        self._hardware: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        for secret in self._literal:
            text = text.replace(secret, SECRET)
        for shape, stand_in in _SHAPES:
            text = shape.sub(stand_in, text)
        for name, stand_in in self._words:
            text = name.sub(stand_in, text)
        return _HARDWARE_ADDRESS.sub(self._hardware_address, text)

    def _hardware_address(self, match: re.Match[str]) -> str:
        """The maker's half stays; the other is numbered, so that equal ones can be seen to be equal."""
        known = self._hardware.setdefault(match[0].lower(), f":xx:xx:{len(self._hardware) + 1:02d}")
        return match[1] + known


Redact = Callable[[str], str]


def _bare(host: str) -> str:
    """A host's name without its domain."""
    return host.removesuffix(".").partition(".local")[0]
