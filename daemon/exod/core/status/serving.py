"""Would a request that begins now be answered, and if not, why: the one verdict behind every screen.

`/ready`, `/v1/models`, preflight and doctor show it as it is; the health takes the same code for a reason once it
has lasted for its grace (`alert_table.py`). A model that nobody wished is no fault: nothing is served then, and
nothing is unhealthy. Decides nothing else.
"""

from __future__ import annotations

from typing import Final

import msgspec

from exod.core.base.facts import (
    DOWNLOADING,
    DRAINING,
    EDGE_FAILED,
    ENGINE_FAILED,
    ENGINE_LOADING,
    ENGINE_RECOVERING,
    LOCAL_NETWORK_DENIED,
    REQUESTS_WAIT,
)
from exod.model import EngineState

NO_MODEL: Final = "no_model"


class EngineFacts(msgspec.Struct, frozen=True):
    """What is known of the engine, from whichever node."""

    state: EngineState = EngineState.OFF
    text: str = ""
    downloading: bool = False
    draining: bool = False
    waiting: int = 0
    """Requests in the coordinator's queue, as far as this node knows."""
    edge_text: str = ""
    """What a node of the ring found wrong with an edge; empty where nothing is."""
    local_network_text: str = ""


class ServiceVerdict(msgspec.Struct, frozen=True):
    serves: bool
    code: str = ""
    """Empty where all is well; a node that serves may have a reason all the same."""
    text: str = ""
    admits: bool = True
    """Is a request taken at all, to be answered at once or as soon as it can be?"""


def serving(given: EngineFacts) -> ServiceVerdict:
    if given.draining:
        text = "the cluster is drained and admits no requests until exoctl engine load MODEL"
        return ServiceVerdict(False, DRAINING, text, admits=False)
    match given.state:
        case EngineState.OFF:
            text = given.text or "no model is loaded: exoctl engine load MODEL"
            return ServiceVerdict(False, NO_MODEL, text, admits=False)
        case EngineState.FAILED:
            if given.local_network_text:
                return ServiceVerdict(False, LOCAL_NETWORK_DENIED, given.local_network_text, admits=False)
            return ServiceVerdict(False, ENGINE_FAILED, given.text or "the engine failed", admits=False)
        case EngineState.READY | EngineState.GENERATING:
            return _of_a_group(given)
        case state:
            return _of_a_wait(given, state)


def _of_a_group(given: EngineFacts) -> ServiceVerdict:
    if given.edge_text:
        return ServiceVerdict(False, EDGE_FAILED, given.edge_text)
    if given.waiting and given.state is EngineState.READY:
        text = f"{given.waiting} requests wait although the ranks are ready and generate nothing"
        return ServiceVerdict(True, REQUESTS_WAIT, text)
    if given.local_network_text:
        return ServiceVerdict(True, LOCAL_NETWORK_DENIED, given.local_network_text)  # this node alone still answers
    return ServiceVerdict(True)


def _of_a_wait(given: EngineFacts, state: EngineState) -> ServiceVerdict:
    if given.local_network_text:
        return ServiceVerdict(False, LOCAL_NETWORK_DENIED, given.local_network_text)
    if given.downloading:
        return ServiceVerdict(False, DOWNLOADING, given.text)
    code = ENGINE_RECOVERING if state is EngineState.RECOVERING else ENGINE_LOADING
    return ServiceVerdict(False, code, given.text or f"the engine is {state}")
