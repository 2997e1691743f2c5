"""A fact that a part of the daemon found: what `core/status` makes a reason, an alert or a note of.

How bad each code is, how long it must last and what mends it stands in `alert_table.py`.
"""

from __future__ import annotations

from typing import Final

import msgspec

ENGINE_FAILED: Final = "engine_failed"
ENGINE_LOADING: Final = "engine_loading"
ENGINE_RECOVERING: Final = "engine_recovering"
REQUESTS_WAIT: Final = "requests_wait"
EDGE_FAILED: Final = "preflight_failed"
LOCAL_NETWORK_DENIED: Final = "local_network_denied"
DOWNLOADING: Final = "downloading"
DRAINING: Final = "draining"
VERSION_SKEW: Final = "version_skew"
IDENTITY_TWIN: Final = "identity_twin"
OTHER_KEY: Final = "other_key"
SERVICE_FAILED: Final = "service_failed"
NOBODY_HEARD: Final = "nobody_heard"
PEERS_UNHEARD: Final = "peers_unheard"
NO_IPV4: Final = "no_ipv4"
OUT_OF_MEMORY: Final = "out_of_memory"
DATA_FOLDER_LOST: Final = "data_folder_lost"


class Fact(msgspec.Struct, frozen=True):
    """Something that is so now. `text` is for people and names what and where; in a line, the cure too."""

    code: str
    subject: str
    text: str


def skew_text(peer: str, me: str, what: str, theirs: object, ours: object) -> str:
    """Two versions of one protocol. The higher one is the newer."""
    older = me if str(theirs).zfill(9) > str(ours).zfill(9) else peer
    return (
        f"{peer} speaks version {theirs} of {what}, {me} version {ours}: they cannot work together; "
        f"upgrade exod on {older}"
    )
