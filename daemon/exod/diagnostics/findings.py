"""What `exoctl doctor` finds: a setting, a permission or a crash, each with what mends it. Pure.

Decides the texts and what counts as wrong; looks at nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from exod.alert_table import kind_of
from exod.daemon_api.shapes import CrashLine, Finding, NetworkCheck
from exod.model import Reason

FAST_SYNCH: Final = "MLX_METAL_FAST_SYNCH"

STRANGER_CURE: Final = (
    "if it belongs to this cluster, print the key with: exoctl cluster invite, on the node that has the right one, "
    "and take it over on the other with: exoctl cluster join --replace TOKEN"
)


def of_reason(reason: Reason, subject: str) -> Finding:
    kind = kind_of(reason.code)
    return Finding(reason.code, kind.severity, subject, reason.text, kind.cure)


def of_crashes(crashes: Iterable[CrashLine]) -> list[Finding]:
    return [Finding("crash_seen", "warning", "crash", crash.text, crash.cure) for crash in crashes]


def of_strangers(strangers: tuple[str, ...]) -> list[Finding]:
    text = "; ".join(strangers)
    return [Finding("stranger_refused", "warning", "cluster key", text, STRANGER_CURE)] if strangers else []


def of_api(host: str, is_local: bool, has_tls: bool) -> list[Finding]:
    """Bearer keys cross the network as they are where nothing encrypts them."""
    if is_local or has_tls:
        return []
    text = f"the HTTP API listens on {host} without TLS: all who can read that network read its keys and answers"
    cure = "set api.tls_cert and api.tls_key, or put a proxy with TLS before it and listen on 127.0.0.1"
    return [Finding("api_plain", "warning", "api.host", text, cure)]


def of_environment(environment: Mapping[str, str], where: str, cure: str) -> list[Finding]:
    """Of a process's or a job's variables. MLX takes an empty value and 0 for unset."""
    if environment.get(FAST_SYNCH, "").strip() in ("", "0"):
        return []
    text = (
        f"{FAST_SYNCH} is set in {where}: a GPU that waits for a peer then spins in a kernel and can wedge until a "
        "reboot"
    )
    return [Finding("fast_synch", "warning", FAST_SYNCH, text, cure)]


def of_refused_sends(peers: Iterable[str]) -> list[Finding]:
    """`peers`: to whom the system refused to send as Local Network privacy does."""
    names = sorted(set(peers))
    if not names:
        return []
    text = (
        f"macOS refuses to send to {', '.join(names)} (errno 65, no route to host): where ping works, "
        "Local Network privacy keeps exod from the network"
    )
    cure = (
        "allow it in System Settings, Privacy & Security, Local Network, and restart exod; or run it where that "
        "does not apply: from Terminal, or for the system with sudo exoctl service install --system"
    )
    return [Finding("local_network", "error", "Local Network", text, cure)]


def of_network(checks: Iterable[NetworkCheck]) -> list[Finding]:
    return [
        Finding(f"network_{check.name}", "warning", check.subject, check.text, check.cure)
        for check in checks
        if not check.ok
    ]


def of_worker(versions: Mapping[str, str], no_native: str, has_switch: bool) -> tuple[list[Finding], list[str]]:
    """What the rank's process says of its MLX: findings, and what is well. `no_native`: why it has no native group,
    in words, with the cure; empty where it has.
    """
    mlx = ", ".join(f"{name} {versions[name]}" for name in sorted(versions))
    well = [mlx, f"the switch of mlx_patches is {'' if has_switch else 'not '}in this MLX"]
    if not no_native:
        return [], [*well, "the native group is ready: steps may be fast"]
    text = f"{no_native}; every step is safe until then, which costs some speed"
    return [Finding("no_native_group", "warning", "mlx", text, "exoctl engine native build")], well
