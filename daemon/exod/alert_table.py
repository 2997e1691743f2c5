"""Every alert that exod can raise: its severity, how long its cause must last, what it means and what cures it.

One row per code. Health, events, MQTT, metrics, `exoctl doctor`, the page and docs/alerts.md all read this table,
so they cannot say different things; `python -m exod.alert_table` prints docs/alerts.md. A test looks
for codes that have no row.

An alert is raised when its cause has lasted for its grace and LASTING_S (alerts.py), and cleared once, when the
cause is gone.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Severity = Literal["warning", "error"]

_LINKS: Final = "exoctl links shows every path, why it is not used, and the command that mends it"
_ENGINE: Final = "exoctl engine status shows each rank; exoctl engine load MODEL loads another model"
_HOST: Final = "look at that host: its power, its network, exoctl status there"


class AlertKind(msgspec.Struct, frozen=True):
    severity: Severity
    grace_s: float
    """Seconds that the cause must last before it is a reason of the health."""
    meaning: str
    cure: str
    """What a person does first."""


ALERTS: Final[dict[str, AlertKind]] = {
    # An agreement takes 0.3 s at most where nothing is wrong, and a node that starts joins within two seconds.
    "no_path": AlertKind("warning", 1.0, "A pair of nodes has no usable path.", _LINKS),
    "ends_disagree": AlertKind(
        "warning", 1.0, "The two ends of a link have not confirmed the same path.", "run exoctl links on both ends"
    ),
    # The first plan waits a second for further nodes: with less, every start would raise it for a few ms.
    "mesh_not_agreed": AlertKind(
        "warning",
        2.0,
        "No plan is in force, or it is suspended. The text says what is missing.",
        _LINKS,
    ),
    "node_suspect": AlertKind("warning", 1.0, "A node has stopped answering on all paths.", _HOST),
    "node_down": AlertKind("warning", 0.0, "A node is down and did not say goodbye.", _HOST),
    "node_unheard": AlertKind(
        "warning",
        1.0,
        "A node of the ring is not heard here, though its neighbours in the ring hear it.",
        "look for a cable or a firewall between the two; exoctl links on both",
    ),
    "node_left_out": AlertKind(
        "warning",
        2.0,
        "A node is up and not in the ring. The text says why.",
        "mend what the text names; exoctl links",
    ),
    # A node whose identity was renewed may be known under the old one for a moment.
    "name_twice": AlertKind(
        "warning",
        5.0,
        "Two live nodes have one name. Screens show the beginning of the id beside it.",
        "give each node a name of its own: node.name in its configuration",
    ),
    "address_twice": AlertKind(
        "warning",
        2.0,
        "Two live hosts hold one address. On cables this counts where it does not work.",
        "give one of the two another address; look for a second DHCP server",
    ),
    "version_skew": AlertKind(
        "error",
        1.0,
        "A peer speaks another version of exod's protocols. The text has both versions.",
        "upgrade exod on the host that the text names, and restart it",
    ),
    "identity_twin": AlertKind(
        "error",
        0.0,
        "Two hosts run exod with one identity: a data folder was copied. The one that came later does not join.",
        "on the host that has the copy: exoctl cluster renew-identity, then restart exod there",
    ),
    "other_key": AlertKind(
        "warning",
        0.0,
        "A node with another cluster key was refused, or refused this one.",
        "exoctl cluster invite where the right key is, exoctl cluster join --replace on the other, then restart "
        "exod there; or another cluster.name for one of them",
    ),
    "peers_unheard": AlertKind(
        "warning",
        0.0,
        "No node that cluster.peers names has answered within 30 s of the start.",
        "exoctl netcheck says what answers there; exod must run there, and TCP and UDP port 52410 be open",
    ),
    "wishes_differ": AlertKind(
        "warning",
        2.0,
        "The nodes' configurations name different models.",
        "set one engine.model on all nodes, or run exoctl engine load MODEL",
    ),
    "draining": AlertKind(
        "warning",
        0.0,
        "The cluster was drained: no request is admitted.",
        "exoctl engine load MODEL ends it",
    ),
    # A switch away from a slow link takes about as long as an agreement: 0.3 s.
    "link_slow": AlertKind(
        "warning", 0.5, "The path in use is slower than mesh.degraded_ms, and so is every other one.", _LINKS
    ),
    "link_degraded": AlertKind("warning", 0.0, "The path in use loses over 20% of its datagrams.", _LINKS),
    # Loss that a switch is about to leave behind does not count.
    "link_lossy": AlertKind(
        "warning",
        5.0,
        "Over 5% of the last 200 datagrams of the path in use were lost; cleared below 2.5%.",
        "check the cable and its plugs; every lost packet delays a token",
    ),
    "path_ineligible": AlertKind(
        "warning", 0.0, "A path answers probes, is better than the one in use, and cannot carry the ring.", _LINKS
    ),
    "preflight_failed": AlertKind(
        "warning",
        0.0,
        "A link of the ring failed the check of its edges.",
        "exoctl preflight shows each check",
    ),
    "engine_failed": AlertKind("error", 0.0, "The model cannot be hosted: no request can be answered.", _ENGINE),
    "engine_recovering": AlertKind("warning", 0.0, "The ranks are forming their group again.", _ENGINE),
    # A model of some gigabytes is read in that time. One that takes longer is no fault, but a request that begins
    # now waits for it.
    "engine_loading": AlertKind(
        "warning", 20.0, "The model is not ready yet: a request that begins now waits.", "wait; " + _ENGINE
    ),
    # A step ends, and the next request begins, within a second or two.
    "requests_wait": AlertKind(
        "warning", 5.0, "Requests wait although the ranks are ready and generate nothing.", _ENGINE
    ),
    # To find a model that is on the disk takes a second.
    "downloading": AlertKind(
        "warning",
        2.0,
        "A node looks for the model at its hub, or downloads it.",
        "wait, or end it with exoctl engine unload; the next download continues where it stopped",
    ),
    "gpu_wait": AlertKind(
        "warning",
        0.0,
        "A fast step waited longer for another rank than a GPU's watchdog allows, in the last half minute.",
        'exoctl links shows which path is slow; set engine.sync = "dynamic" where it is "fast"',
    ),
    "service_failed": AlertKind(
        "warning",
        0.0,
        "A part of exod met a bug and is started again, after a pause that doubles. The rest goes on.",
        "exoctl report collects what a bug report needs; exoctl events shows what failed",
    ),
    "out_of_memory": AlertKind(
        "error",
        0.0,
        "The kernel killed this node's rank for memory. It is started again five times in ten minutes at most.",
        "free memory, raise the limit, give this node fewer layers (engine.split), or load a smaller model",
    ),
    "memory_wired": AlertKind(
        "warning",
        0.0,
        "A rank's process is gone and its wired memory is not free again; no rank is started meanwhile.",
        "restart this Mac; the memory is not freed otherwise where no program holds it",
    ),
    # A hosted broker that died is replaced within a second or two.
    "mqtt_down": AlertKind(
        "warning",
        3.0,
        "The MQTT broker cannot be used, or something else holds its port. The text says why.",
        "start the broker that mqtt.broker names, or set it to auto; end what holds port 1883",
    ),
    "throughput_low": AlertKind(
        "warning",
        0.0,
        "Tokens have come at less than half of the rate that this plan reached before, for 30 s of decoding. "
        "Cleared at 70%, or after an hour, when the new rate is taken for the usual one.",
        "mend the likely cause in the text; exoctl links history and exoctl top show the paths and the nodes",
    ),
    "disk_low": AlertKind(
        "warning",
        0.0,
        "Less than 0.5 GiB is free where the data folder lies; cleared at 1 GiB.",
        "free some space there",
    ),
    "data_folder_lost": AlertKind(
        "error",
        0.0,
        "The data folder was removed under the daemon, and cannot be written again. The text says why.",
        "mend what the text names, and leave exod running: it writes its identity and keys there within 2 s",
    ),
    # A load of a model may take all memory for some seconds.
    "memory_low": AlertKind(
        "warning",
        30.0,
        "Less than 3% of the memory is available; cleared at 6%.",
        "end other programs, or load a smaller model: exoctl engine load MODEL",
    ),
    "clock_skew": AlertKind(
        "warning",
        30.0,
        "A peer's clock differs by 5 s or more; cleared below 2 s.",
        "set both clocks by the network (System Settings, General, Date & Time)",
    ),
    "restart_loop": AlertKind(
        "warning",
        0.0,
        "This node's worker was replaced three times within five minutes.",
        "exoctl doctor shows its crashes; worker.log in the data folder holds its last output",
    ),
    "workers_crashed": AlertKind(
        "warning",
        0.0,
        "Workers of several nodes ended within ten seconds of each other: one cause is likely.",
        "exoctl doctor on each of them; exoctl events --since 10m",
    ),
    "local_network_denied": AlertKind(
        "error",
        0.0,
        "macOS refuses what this node sends to the local network.",
        "exoctl doctor prints the cures in the order in which to try them",
    ),
}

NOTES: Final[dict[str, AlertKind]] = {
    # Two reports of each node, so that one that has just come is not taken for one that nobody hears.
    "deaf_pair": AlertKind(
        "warning",
        10.0,
        "Two live nodes never hear each other. Where both compute, the ring goes round that pair.",
        "look for a cable or a firewall between the two hosts",
    ),
    "ring_unfit": AlertKind(
        "warning",
        0.0,
        "A path answers probes, is better than the one in use, and failed the ring. It is tried again later.",
        "the text says what the ring met: allow TCP from port 52420 on in the firewall; give both ends one MTU",
    ),
    # A long context or a slow path that comes and goes makes steps safe for a while, as it should.
    "safe_steps": AlertKind(
        "warning",
        600.0,
        'With engine.sync = "dynamic" every step has been safe for ten minutes or more. The text says why.',
        "exoctl engine status says what makes steps safe; exoctl engine native says whether they could be fast",
    ),
    "nobody_heard": AlertKind(
        "warning",
        0.0,
        "No other node was heard within 30 s of the start. Where one Mac is meant to be alone, all is well.",
        "name the other nodes in cluster.peers, or allow UDP port 5353 on both hosts",
    ),
    "no_ipv4": AlertKind(
        "warning",
        5.0,
        "A Thunderbolt interface is up and has no IPv4 address.",
        "give the interface an IPv4 address: `exoctl doctor` names the command",
    ),
}
"""What is shown as a note and makes nothing unhealthy: it may be just as it should be. Notes are no alerts."""

_FOLDER: Final = "exoctl model info MODEL shows the folder; " + _ENGINE
_OTHER_MODEL: Final = "load another model: exoctl engine load MODEL; exoctl model ls lists those that are here"
_HUB: Final = "see that the hub can be reached, then exoctl model pull MODEL; it continues where it stopped"


def _failure(meaning: str, cure: str) -> AlertKind:
    return AlertKind("error", 0.0, meaning, cure)


MODEL_FAILURES: Final[dict[str, AlertKind]] = {
    "no_folder": _failure("The model's folder does not exist on this node.", _FOLDER),
    "not_a_folder": _failure("What engine.model names is a file.", _FOLDER),
    "no_config": _failure("The folder has no config.json.", _FOLDER),
    "bad_config": _failure("config.json cannot be used.", _FOLDER),
    "no_weights": _failure("The folder has no weights.", _FOLDER),
    "missing_file": _failure("The index names a file that is not there.", _FOLDER),
    "bad_index": _failure("The index of the weights cannot be used.", _FOLDER),
    "bad_weights": _failure("A file of weights is damaged.", _FOLDER),
    "truncated": _failure("A file of weights is shorter than it says.", _FOLDER),
    "weights_differ": _failure("The weights are not those that config.json describes.", _FOLDER),
    "layers_differ": _failure("config.json and the weights have different numbers of layers.", _FOLDER),
    "unreadable": _failure("A file cannot be read.", "give the daemon's user the right to read it; " + _FOLDER),
    "no_tokenizer": _failure("The folder has no tokenizer.", _FOLDER),
    "bad_tokenizer": _failure("The tokenizer cannot be used.", _FOLDER),
    "unknown_architecture": _failure("mlx-lm does not know this kind of model.", _OTHER_MODEL),
    "custom_code": _failure("The model wants to run Python code of its own, which is refused.", _OTHER_MODEL),
    "not_splittable": _failure(
        "The model cannot be divided among nodes.", "run it on one node: set engine.enabled = false on the others"
    ),
    "not_divisible": _failure(
        "A tensor group of this size cannot divide the model's heads.", 'set engine.parallel = "pipeline"'
    ),
    "kv_bits_unsupported": _failure("The model's KV cache cannot be quantised.", "set engine.kv_bits = 0"),
    "bad_span": _failure("The plan's layers are not in the model: nodes hold different versions.", _FOLDER),
    "cannot_split": _failure("The layers cannot be divided as engine.split says.", 'set engine.split = "memory"'),
    "does_not_fit": _failure("The nodes' memory does not hold the model.", _OTHER_MODEL),
    "deadline": _failure("The layers were not loaded within their deadline.", _ENGINE),
    "no_such_model": _failure("Neither a folder nor the hub has a model of this name.", _OTHER_MODEL),
    "download": _failure("The download failed.", _HUB),
    "hub_silent": _failure("The hub stopped answering.", _HUB),
}
"""Why this node's own rank cannot hold its layers. Such an alert stands in the place of `engine_failed` on the node
whose rank it is; the text names the file or the sum."""


def kind_of(code: str) -> AlertKind:
    """Of a reason or a model's failure. A code of a newer peer is a warning that its own text explains."""
    return ALERTS.get(code) or MODEL_FAILURES.get(code) or NOTES.get(code) or _UNKNOWN


def is_note(code: str) -> bool:
    return code in NOTES


_UNKNOWN: Final = AlertKind("warning", 0.0, "", "the text says what; exoctl doctor on the node that says it")


def severity(code: str) -> Severity:
    return kind_of(code).severity


def document() -> str:
    """docs/alerts.md."""
    return "\n".join(
        [
            "# Alerts",
            "",
            "Made by `python -m exod.alert_table`; a test compares the two.",
            "",
            "Each reason of the health is an alert once it has lasted: an event `alert.raised` and later",
            "`alert.cleared`, a retained MQTT topic `alert/<code>--<subject>`, the metric",
            "`exod_reason{code,subject,severity}`, a line in `exoctl status` and on the page, and a finding of",
            "`exoctl doctor`. *After* is how long the cause must last before it is a reason.",
            "",
            *_rows(ALERTS),
            "",
            "## Notes",
            "Shown on screens and as `notes` in `exoctl status --json`; they make nothing unhealthy.",
            "",
            *_rows(NOTES),
            "",
            "## Why a model cannot be hosted",
            "On the node whose rank has failed the alert's code is the cause; elsewhere it is `engine_failed`.",
            "",
            *_rows(MODEL_FAILURES),
            "",
        ]
    )


def _rows(kinds: dict[str, AlertKind]) -> list[str]:
    rows = ["| code | severity | after | what it means | what to do |", "|---|---|---|---|---|"]
    for code, kind in kinds.items():
        rows.append(f"| `{code}` | {kind.severity} | {kind.grace_s:g} s | {kind.meaning} | {kind.cure} |")
    return rows


if __name__ == "__main__":
    print(document(), end="")
