"""Runs inside an environment with Home Assistant: its own schemas judge the discovery payload on standard input.

`python check_with_home_assistant.py < payload.json`. The release is the last that runs on Python 3.11 (2024.3). It
knows no device-based discovery yet, so each entity is first joined with what its device says for all, as later
releases do, and then goes through that release's abbreviations and its platform's DISCOVERY_SCHEMA. Templates are
compiled and rendered by its own engine. Prints one JSON object: problems, and how many entities were judged.
"""

import importlib
import json
import sys

from homeassistant.components.mqtt.abbreviations import (
    ABBREVIATIONS,
    DEVICE_ABBREVIATIONS,
    ORIGIN_ABBREVIATIONS,
)
from homeassistant.components.mqtt.discovery import MQTT_ORIGIN_INFO_SCHEMA

LATER = {"p": "platform", "cmps": "components"}
"""Abbreviations of device-based discovery."""

LATER_KEYS = {"options"}
"""Of sensors of the class enum; releases since the end of 2024 know it, this one drops it."""


def whole(payload: dict, table: dict) -> dict:
    return {table.get(key, key): value for key, value in payload.items()}


def problems_of(payload: dict) -> tuple[list[str], int]:
    problems = []
    outer = whole(payload, ABBREVIATIONS | LATER)
    device = whole(outer["device"], DEVICE_ABBREVIATIONS)
    origin = whole(outer["origin"], ORIGIN_ABBREVIATIONS)
    MQTT_ORIGIN_INFO_SCHEMA(origin)
    shared = {key: value for key, value in outer.items() if key not in ("components", "device", "origin")}
    for key, component in outer["components"].items():
        entity = whole(component, ABBREVIATIONS | LATER)
        platform = entity.pop("platform")
        module = importlib.import_module(f"homeassistant.components.mqtt.{platform}")
        try:
            judged = module.DISCOVERY_SCHEMA({**shared, **entity, "device": device, "origin": origin})
        except Exception as error:
            problems.append(f"{key}: {error}")
            continue
        if dropped := sorted(set(entity) - set(judged) - LATER_KEYS):
            problems.append(f"{key}: {dropped} were dropped")
    return problems, len(outer["components"])


def main() -> None:
    problems, judged = problems_of(json.load(sys.stdin))
    print(json.dumps({"problems": problems, "judged": judged}))


main()
