"""Every shell command that exod tells a person stands in a table with where it is known from.

A text with a command that is in no row fails: somebody would run it. Commands of ours (`exoctl …`) must be ones
that the parser knows.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from exod.cli.main import build

ROOT = Path(__file__).parents[2]

BOTH = frozenset({"darwin", "linux"})
MAC, LINUX = frozenset({"darwin"}), frozenset({"linux"})

TABLE = {
    # Thunderbolt: networksetup(8) and ifconfig(8) of macOS; what the service and the bridge are called is fixed.
    'sudo networksetup -setmanual "{}" 10.254.0.1 255.255.255.252': (MAC, "networksetup(8)"),
    'sudo networksetup -setnetworkserviceenabled "{}" on': (MAC, "networksetup(8)"),
    'sudo networksetup -setnetworkserviceenabled "{}" off': (MAC, "networksetup(8)"),
    'sudo networksetup -setdhcp "{}"': (MAC, "networksetup(8)"),
    "sudo ifconfig {} create": (MAC, "ifconfig(8), bridge parameters; lost at a restart"),
    "sudo ifconfig {} addm {} up": (MAC, "ifconfig(8), bridge parameters; lost at a restart"),
    "sudo ipconfig set {} DHCP": (MAC, "ipconfig(8)"),
    # Linux: iproute2 and systemd.
    "sudo ip route replace {}/32 dev {} src {}": (LINUX, "ip-route(8)"),
    "sudo ip address add 10.254.0.1/30 dev {}": (LINUX, "ip-address(8)"),
    "journalctl -u exod": (LINUX, "journalctl(1)"),
    "journalctl --user -u exod": (LINUX, "journalctl(1)"),
    "loginctl enable-linger {}": (LINUX, "loginctl(1)"),
    "loginctl enable-linger": (LINUX, "loginctl(1)"),
    # Installing. CI installs the wheel; uv's manual has --force.
    "brew install python@3.13": (MAC, "Homebrew's formula python@3.13"),
    "xcode-select --install": (MAC, "xcode-select(1)"),
    "make setup PYTHON=python3.13": (MAC, "the Makefile"),
    "make setup PYTHON=/path/to/python3.11": (LINUX, "the Makefile"),
    "make setup-cross": (BOTH, "the Makefile"),
    "make setup": (BOTH, "the Makefile"),
    "uv tool install --force .": (BOTH, "uv's manual, tools"),
    "pip install --force-reinstall --no-deps {}": (BOTH, "pip's manual, pip install"),
    "pip install {}": (BOTH, "pip's manual, pip install"),
    "uv pip install --python {} {}": (BOTH, "uv's manual, uv pip install; uv makes environments without pip"),
    "uv pip install --python {} --reinstall-package {} {}": (BOTH, "uv's manual, uv pip install"),
    "sudo apt install g++": (LINUX, "apt(8); CI installs the same package"),
    "sudo defaults write com.apple.network.local-network AllowedEthernetLocalNetworkAddresses -array {}": (
        MAC,
        "Apple's TN3179, from macOS 15.5",
    ),
    "sudo defaults write com.apple.network.local-network AllowedWiFiLocalNetworkAddresses -array {}": (
        MAC,
        "Apple's TN3179, from macOS 15.5",
    ),
    "sudo pmset -c sleep 0": (MAC, "pmset(1): -c is on mains"),
    # Files, ports, variables: POSIX, or the same on both.
    "chmod 600 {}": (BOTH, "POSIX"),
    "chmod o= {}": (BOTH, "POSIX"),
    "sudo chown -R $(id -un) {}": (BOTH, "POSIX"),
    "sudo lsof -nP -iUDP:5353": (BOTH, "lsof(8)"),
    "lsof -i :{}": (BOTH, "lsof(8)"),
    "openssl rand -hex 32 > {}": (BOTH, "openssl-rand(1)"),
    "unset {}": (BOTH, "POSIX"),
    'kill -0 "$2"': (BOTH, "POSIX; of the shell that ends a hosted broker, which nobody types"),
    'kill "$2"': (BOTH, "POSIX; of the shell that ends a hosted broker, which nobody types"),
    "unset CXX": (BOTH, "POSIX"),
    "launchctl unsetenv": (MAC, "launchctl(1)"),
}

IN_THE_DOCUMENT = {
    "brew install python@3.13 uv": "Homebrew's formulae python@3.13 and uv",
    "uv tool install --python python3.13 .": "uv's manual, tools; CI installs the wheel of the same folder",
    "launchctl bootout gui/$(id -u)/com.exod.agent || launchctl bootout user/$(id -u)/com.exod.agent": (
        "launchctl(1)"
    ),
    "rm ~/Library/LaunchAgents/com.exod.agent.plist": "rm(1); what `exoctl service install` writes",
    "rm -r ~/Applications/exod.app ~/Library/Logs/exod": "rm(1); what `exoctl service install` writes",
    "rm ~/Library/Application\\ Support/exod/launcher.conf": "rm(1); what `exoctl service install` writes",
}
"""Lines to type of docs/first-hour.md that are not exoctl's, with where each is known from."""

PROGRAMS = (
    "apt|apt-get|arp|brew|caffeinate|chflags|chgrp|chmod|chown|codesign|csrutil|curl|dd|defaults|diskutil"
    "|dns-sd|docker|dscacheutil|dscl|ethtool|firewall-cmd|git (?:clone|pull)|hostnamectl|ifconfig"
    "|install_name_tool|ip (?:address|addr|link|neigh|route|rule)|ipconfig|iptables|iw|journalctl|kill"
    "|killall|launchctl|ln -|loginctl|lsof|mkdir|modprobe|mount|mv|ndp|netstat|networkctl|networksetup"
    "|nft|nmcli|nohup|npm|nvram|open -|openssl|otool|pfctl|ping -|pip3?|pipx|pkill|plutil|pmset|ps -"
    "|python3? -|reboot|renice|resolvectl|rm|route (?:-n|add|delete)|rsync|scp|scutil|security|sed -"
    "|shutdown -|softwareupdate|spctl|ssh|ssh-keygen|swapoff|sysctl|sysdiagnose|system_profiler|systemctl"
    "|systemsetup|tailscale (?:up|down|set)|tar|tccutil|tcpdump|touch|ufw|umount|unset"
    "|uv (?:tool|pip|venv|sync|run)|wget|xattr|xcode-select|xcrun|yum"
)
COMMAND = re.compile(
    rf"(?<![\w/.-])(?:sudo (?!exoctl)|(?:{PROGRAMS})(?= [-/~$.\w\"'{{])|make (?:setup|run|test|launcher|dist)\b)"
)
ENDS = re.compile(r"$|[;,)`.:]| \(| where ")
OURS = re.compile(r"(?<![\w/.-])exoctl((?: [a-z-]+| --[a-z-]+)*)")

NO_TEXTS = {"launchd/formula.py"}
"""A program in another language, not something a person is told to type."""


class Text(NamedTuple):
    file: str
    line: int
    text: str

    @property
    def platforms(self) -> frozenset[str]:
        name = Path(self.file).stem
        if name in {"darwin", "launchd", "app_bundle", "thunderbolt_advice", "mac_findings"}:
            return MAC
        return LINUX if name in {"linux", "systemd"} else BOTH


def texts() -> Iterator[Text]:
    """Every string of the program that is no docstring; `{}` stands for what is filled in."""
    for folder in ("daemon", "engine", "launchd"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if str(path.relative_to(ROOT)) in NO_TEXTS:
                continue
            tree = ast.parse(path.read_text())
            skipped: set[int] = set()
            for node in ast.walk(tree):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    skipped.add(id(node.value))
                if isinstance(node, ast.JoinedStr):
                    skipped |= {id(value) for value in node.values}
            for node in ast.walk(tree):
                if id(node) in skipped:
                    continue
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield Text(str(path.relative_to(ROOT)), node.lineno, node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = [str(one.value) if isinstance(one, ast.Constant) else "{}" for one in node.values]
                    yield Text(str(path.relative_to(ROOT)), node.lineno, "".join(parts))
    yield from other_texts()


def other_texts() -> Iterator[Text]:
    """Lines of what is shown and is not Python: the page, the launcher's errors, the installed units."""
    for folder in ("daemon", "launchd"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".js", ".html", ".c", ".template"}:
                name = str(path.relative_to(ROOT))
                yield from (
                    Text(name, number, line) for number, line in enumerate(path.read_text().splitlines(), 1)
                )


def unknown_commands(text: str) -> list[tuple[str, frozenset[str]]]:
    """Commands in this text that no row has (with no platform), and those that a row has, with its platforms."""
    found = []
    place = 0
    ours = [match.span() for match in OURS.finditer(text)]
    while (match := COMMAND.search(text, place)) is not None:
        if any(start < match.start() < end for start, end in ours):
            place = match.end()  # `exoctl model rm` removes a model, not a file
            continue
        rest = text[match.start() :]
        rows = [row for row in TABLE if rest.startswith(row) and ENDS.match(rest, len(row))]
        row = max(rows, key=len, default="")
        found.append((row or rest[:80], TABLE[row][0] if row else frozenset()))
        place = match.start() + max(len(row), 1)
    return found


TEXTS = list(texts())


def test_every_command_in_a_text_stands_in_the_table() -> None:
    strangers = [
        f"{one.file}:{one.line}: {command}"
        for one in TEXTS
        for command, platforms in unknown_commands(one.text)
        if not platforms
    ]
    assert strangers == []


def test_a_command_is_told_on_the_platform_that_has_it() -> None:
    for one in TEXTS:
        for command, platforms in unknown_commands(one.text):
            assert platforms & one.platforms, f"{one.file}:{one.line}: {command}"


def test_every_row_of_the_table_is_told_somewhere() -> None:
    told = {command for one in TEXTS for command, _ in unknown_commands(one.text)}
    assert set(TABLE) - told == set()


def test_no_route_is_ever_added_on_a_mac() -> None:
    """It makes the kernel keep this Mac's own hardware address for the peer: frames go to ourselves."""
    for one in TEXTS:
        assert not re.search(r"route (-n )?(add|delete)(?! \{\}/32 dev)", one.text), f"{one.file}:{one.line}"


@pytest.mark.parametrize(
    "text",
    [
        "mend it: sudo route -n add -host 10.0.0.2 -interface bridge0",
        "mend it: sudo rm -rf /",
        "pip install something",
        "run `sudo ifconfig bridge0 down`",
        "chmod 600 {} && curl",
        "to look again: tccutil reset All com.exod.launcher",
        "first rm -r ~/Applications/exod.app",
        "exoctl model rm x, or rm -r {}",
        "xattr -d com.apple.quarantine {}",
        "then `csrutil disable`, and restart",
        "python3 -m pip install exod",
        "mend it: ifconfig bridge0 down",
        "sysctl -w iogpu.wired_limit_mb=1",
        "launchctl kickstart -k gui/501/com.exod.agent",
    ],
)
def test_a_planted_command_is_found(text: str) -> None:
    assert any(not platforms for _, platforms in unknown_commands(text))


def test_commands_of_ours_are_ones_that_there_are() -> None:
    _, commands = build()
    for one in TEXTS:
        for match in OURS.finditer(one.text):
            words = [word for word in match[1].split() if not word.startswith("-")]
            if not words or (words[0] not in commands.names and not one.text.strip().startswith("exoctl ")):
                continue  # prose about exoctl
            where = f"{one.file}:{one.line}: {match[0]}"
            assert words[0] in commands.names, where
            group = commands.groups.get(words[0])
            if group is not None and len(words) > 1:
                assert words[1] in group.names, where


def test_every_line_to_type_in_the_document_is_ours_or_stands_in_the_table() -> None:
    text = (ROOT / "docs" / "first-hour.md").read_text()
    blocks = re.findall(r"^(<!-- screen: .+? -->\n)?```\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE)
    lines = [line for screen, block in blocks if not screen for line in block.splitlines()]
    typed = [line.partition(" #")[0].strip() for line in lines]
    assert {one for one in typed if not one.startswith("exoctl ")} == set(IN_THE_DOCUMENT)
