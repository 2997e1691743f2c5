"""Every section and key of the configuration: its default and what is allowed. What each means is in reference.py.

Decides by single values; what concerns more than one key is checked in settings.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from exod.config import checks


class Key(msgspec.Struct, frozen=True):
    """One key: its default and the check that turns a TOML value into the configured one."""

    default: Any
    check: checks.Check


MOST_CONCURRENT: Final = 32
"""Ranks remember twice as many finished requests (FINISHED_KEPT of the engine's queue.py)."""

_GLOBS = checks.entries(
    checks.text(r"[A-Za-z0-9._:*?\[\]!-]{1,64}", "an interface name or glob"), "a list of names or globs"
)
_HOSTS = checks.entries(checks.text(r"[A-Za-z0-9._-]{1,253}", "a host's name without a port"), "a list of names")
_TOPIC_LEVELS = checks.text(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*", "topic levels such as exo/1")
_ORIGINS = checks.entries(
    checks.text(
        r"\*|[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9._:\[\]-]{1,260}", 'an origin such as "https://chat.example"'
    ),
    "a list of origins",
)

_FIXED: Final[dict[str, dict[str, Key]]] = {
    "cluster": {
        "name": Key("home", checks.text(r"[A-Za-z0-9._-]{1,63}", "1 to 63 letters, digits, '.', '_' or '-'")),
        "key_file": Key("", checks.path),
        "peers": Key([], checks.entries(checks.peer, 'a list of "host:port"')),
        "mdns": Key(True, checks.boolean),
    },
    "mesh": {
        "port": Key(52410, checks.whole(1, 65535)),
        "include": Key([], _GLOBS),
        "exclude": Key([], _GLOBS),
        "kinds": Key({}, checks.kinds),
        "degraded_ms": Key(5.0, checks.number(0.1, 10_000, "ms")),
        "recover_ms": Key(3.5, checks.number(0.1, 10_000, "ms")),
        "hold_up_s": Key(3.0, checks.number(0, 300, "s")),
        "min_mb_per_s": Key(0.0, checks.number(0, 10_000, "MB/s")),
        "seal": Key("control", checks.choice("control", "all")),
    },
    "engine": {
        "enabled": Key(True, checks.boolean),
        "model": Key("", checks.text(r"[^\x00-\x1f]{0,1024}", "a folder, a repo id, or embedded:count")),
        "ring_port": Key(52420, checks.whole(1, 65535)),
        "sync": Key("dynamic", checks.choice("dynamic", "safe", "fast")),
        "safe_context": Key(50_000, checks.whole(0, 100_000_000)),
        "watchdog_s": Key(2.0, checks.number(0.05, 3600, "s")),
        "split": Key("memory", checks.split),
        "parallel": Key("auto", checks.choice("auto", "pipeline", "tensor")),
        "nodes": Key("all", checks.choice("all", "fewest")),
        "transport": Key("auto", checks.choice("auto", "tcp", "rdma")),
        "max_context": Key(0, checks.whole(0, 100_000_000)),
        "kv_bits": Key(0, checks.one_of(0, 4, 8)),
        "kv_group_size": Key(64, checks.one_of(32, 64, 128)),
        "recovery_deadline_s": Key(60.0, checks.number(1, 3600, "s")),
        "max_concurrent": Key(8, checks.whole(1, MOST_CONCURRENT)),
        "prompt_cache": Key("25%", checks.amount),
        "spare": Key("auto", checks.choice("auto", "off")),
    },
    "api": {
        "host": Key("127.0.0.1", checks.api_host),
        "port": Key(52415, checks.whole(0, 65535)),
        "key_file": Key("", checks.path),
        "hosts": Key([], _HOSTS),
        "origins": Key([], _ORIGINS),
        "model_name": Key("", checks.text(r"[^\x00-\x1f\x7f]{0,200}", "up to 200 printable characters")),
        "commands": Key(True, checks.boolean),
        "tls_cert": Key("", checks.path),
        "tls_key": Key("", checks.path),
    },
    "mqtt": {
        "broker": Key("auto", checks.broker),
        "prefix": Key("exo/1", _TOPIC_LEVELS),
        "discovery_prefix": Key("homeassistant", _TOPIC_LEVELS),
        "commands": Key(False, checks.boolean),
        "ca_file": Key("", checks.path),
        "cert_file": Key("", checks.path),
        "key_file": Key("", checks.path),
    },
    "log": {
        "level": Key("info", checks.choice("debug", "info", "warning", "error")),
        "format": Key("auto", checks.choice("auto", "console", "json")),
        "file": Key("", checks.path),
        "max_mib": Key(10, checks.whole(1, 1024)),
        "keep": Key(5, checks.whole(1, 99)),
    },
    "debug": {
        "enabled": Key(False, checks.boolean),
        "rdma_stand_in": Key(False, checks.boolean),
    },
}


def keys_of_host(data_dir: Path, host_name: str) -> dict[str, dict[str, Key]]:
    """Every section and key, with the defaults for this host."""
    node = {"name": Key(host_name, checks.name), "data_dir": Key(str(data_dir), checks.path)}
    return {"node": node, **_FIXED}
