"""What each key of the configuration means, for people: docs/configuration.md and the sample file are made from it.

`python -m exod.config.reference` prints the document. Which keys there are, their defaults and what is allowed is
decided in keys.py; a test compares the two tables.
"""

from __future__ import annotations

from typing import Any, Final

from exod.config.checks import RejectedError
from exod.config.keys import Key
from exod.config.settings import CONFIG_FILE_NAME, every_key

SECTIONS: Final = {
    "node": "This machine.",
    "cluster": "The cluster, and how its nodes find each other.",
    "mesh": "Which paths are measured, and when one is left for another.",
    "engine": "The model, and how it is run.",
    "api": "The HTTP API and the page.",
    "mqtt": "Health topics.",
    "log": "What is written where.",
    "debug": "Faults on purpose, for tests.",
}

MEANINGS: Final[dict[str, dict[str, str]]] = {
    "node": {
        "name": "How this node is called on every screen. Default: the host's name.",
        "data_dir": "Identity, cluster key, control socket, events and logs. Default: the platform's data folder.",
    },
    "cluster": {
        "name": "The cluster's name: nodes of another name are not joined.",
        "key_file": "The cluster's key, mode 0600. Default: cluster.key in data_dir; a first start makes it.",
        "peers": "Nodes to dial beside those that multicast DNS finds, as host:port.",
        "mdns": "Announce this node and find others by multicast DNS.",
    },
    "mesh": {
        "port": "UDP for probes and TCP for the control plane.",
        "include": "Interfaces to use, as names or globs. Empty: all that are eligible.",
        "exclude": "Interfaces to leave out, as names or globs.",
        "kinds": "Overrides of an interface's kind: thunderbolt, ethernet, wifi, vpn, loopback, other.",
        "degraded_ms": "A path slower than this, in ms, is degraded and left for a better one.",
        "recover_ms": "A degraded path must be faster than this, in ms, before it is up again.",
        "hold_up_s": "How long a better path must stay better before it is taken, in seconds.",
        "min_mb_per_s": "What the ring must move over a path, or it is left for another. "
        "0: by its kind (Thunderbolt 2, Ethernet 1, Wi-Fi 0.5, VPN 0.05).",
        "seal": "Which traffic between ranks carries a MAC. control: all but that of graphs (fast steps). "
        "all: none goes through graphs, so every step is safe and there is no tensor group.",
    },
    "engine": {
        "enabled": "Does this node host a rank?",
        "model": "A folder, a Hugging Face repository id, or embedded:count (the demo model). "
        "Empty: the model that another node or a command names; where none does, the demo model.",
        "ring_port": "The first port that the ring listens on.",
        "sync": "May a GPU wait for another rank? dynamic decides by what is measured.",
        "safe_context": "With more tokens in the KV cache than this, every step is safe.",
        "watchdog_s": "A GPU that waits for longer than this, in seconds, counts as hung.",
        "split": "Who holds how many layers: by memory, evenly, or a list of layer counts.",
        "parallel": "Each node some of the layers (pipeline), or of each layer a part (tensor).",
        "nodes": "Which nodes host the model: all, or as few as hold it (fewest), and the others stand by.",
        "transport": "What graphs communicate over: RDMA where it is proven, else TCP; rdma says why not.",
        "max_context": "The longest prompt with its answer, in tokens. 0: what the model allows.",
        "kv_bits": "Bits of a key or value in the KV cache: 4 or 8; 0 keeps them as they are.",
        "kv_group_size": "How many quantised values share a scale; must divide the size of a head.",
        "recovery_deadline_s": "How long a client waits while the engine recovers, in seconds.",
        "max_concurrent": "How many requests are answered at once; the others wait, and clients take turns.",
        "prompt_cache": "What the KV caches of finished requests may occupy: a share of memory, or bytes.",
        "spare": "auto keeps a second process ready that replaces a rank's process at once (about 100 MiB), "
        "where 2 GiB of memory are available; off keeps none.",
    },
    "api": {
        "host": "The address to listen on. Anything but loopback needs key_file.",
        "port": "The port to listen on.",
        "key_file": "Bearer keys, one a line. Empty: no key, for this host alone.",
        "hosts": "Host headers that are allowed beside addresses, localhost and this host's own names.",
        "origins": "Origins of web pages that may use the API. Default: loopback pages only.",
        "model_name": "What clients call the model. Empty: its folder's last part, or its repository id.",
        "commands": "May the page load, unload, drain and renegotiate?",
        "tls_cert": "A PEM file: the certificate and its chain. Together with tls_key the API speaks TLS.",
        "tls_key": "A PEM file: the certificate's private key. Both are read again when they change.",
    },
    "mqtt": {
        "broker": "auto, embedded, off, or mqtt://user:password@host:port (mqtts for TLS).",
        "prefix": "The first levels of every topic.",
        "discovery_prefix": "Where Home Assistant looks for devices.",
        "commands": "May a message ask this node to renegotiate? Home Assistant then shows a button.",
        "ca_file": "For mqtts: the authority that signed the broker's certificate. Default: the system's.",
        "cert_file": "For mqtts: this client's certificate, where the broker wants one.",
        "key_file": "The key of cert_file.",
    },
    "log": {
        "level": "The least that is logged.",
        "format": "auto is console on a terminal and json elsewhere.",
        "file": "Where the log goes. Default: standard error, for a service a file in data_dir.",
        "max_mib": "A log file is rotated at this size.",
        "keep": "How many rotated files are kept.",
    },
    "debug": {
        "enabled": "Allow exoctl debug (faults on a path or of this node, pinning a path).",
        "rdma_stand_in": "With debug.enabled: RDMA is played over TCP, with JACCL's faults (waits without end).",
    },
}

_HOST_DEFAULTS: Final = {
    ("node", "name"): '"this host\'s name"',
    ("node", "data_dir"): '"the platform\'s data folder"',
}
"""Defaults that differ from host to host are named, not shown."""

_INTRODUCTION: Final = f"""\
# Configuration
Made from the program by `python -m exod.config.reference`; a test compares.

One TOML file, `{CONFIG_FILE_NAME}`: `--config FILE`, else `$EXOD_CONFIG`, else the platform's folder
(`~/Library/Application Support/exod/` on macOS, `~/.config/exod/` on Linux; `exoctl config path` prints it).
Every key has a default, so no file is needed. `exoctl config init` writes one with every key and its default as
a comment, `exoctl config check` tells whether it is right, `exoctl config show` what is in force and where each
value comes from. A running exod reads it at its next start.

`EXOD_<SECTION>__<KEY>` in the environment overrides the file: `EXOD_API__PORT=52416`. A relative path in the
file is meant from the file's folder. An unknown key or a bad value stops the start with the file, the key, what
was found and what is allowed.
"""


def allowed(key: Key) -> str:
    """What the key's check says is allowed."""
    try:
        key.check(object())
    except RejectedError as error:
        return str(error)
    raise AssertionError("a check takes anything")


def toml_value(value: Any) -> str:
    """A default as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml_value(name)} = {toml_value(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return str(value)


def document() -> str:
    """docs/configuration.md."""
    parts = [_INTRODUCTION]
    for section, keys in every_key().items():
        parts.append(
            f"## [{section}]\n{SECTIONS[section]}\n\n| key | default | allowed | what it does |\n|---|---|---|---|"
        )
        for name, key in keys.items():
            default = _HOST_DEFAULTS.get((section, name), toml_value(key.default)).strip('"')
            shown = f"`{default}`" if (section, name) not in _HOST_DEFAULTS and default else default or "(empty)"
            row = (f"`{name}`", shown, allowed(key), MEANINGS[section][name])
            parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
        parts.append("")
    return "\n".join(parts)


def sample() -> str:
    """A configuration file with every key as a comment: what is uncommented is set."""
    lines = ["# exod: every key with its default. Uncomment what is to be changed, then: exoctl config check"]
    for section, keys in every_key().items():
        lines += ["", f"[{section}]  # {SECTIONS[section]}"]
        for name, key in keys.items():
            lines += [f"# {MEANINGS[section][name]}", f"#{name} = {toml_value(key.default)}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")
