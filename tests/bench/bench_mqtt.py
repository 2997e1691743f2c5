"""How many MQTT messages a cluster of two sends that has nothing to do, for each topic and in all.

A subscriber beside the first node's broker counts what is published; what the broker had kept is not counted. The
target is the issue's: two a minute on each topic.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter

from tests.bench.rows import Row
from tests.lab.cluster import Cluster
from tests.lab.topology import Lab

MINUTES = 2.0
SETTLED_S = 45.0
"""After the model is loaded: what changes at a start is published."""
READY_WITHIN_S = 120.0


def run(minutes: float = MINUTES) -> list[Row]:
    with Lab(2) as lab:
        cluster = Cluster(lab)
        cluster.start()
        cluster.wait_ready("thunderbolt", READY_WITHIN_S)
        time.sleep(SETTLED_S)
        seconds = str(round(minutes * 60))
        listen = ["mosquitto_sub", "-t", "#", "-R", "-F", "%t", "-W", seconds]
        host = cluster.nodes[0].host
        told = host.popen(listen, stdout=subprocess.PIPE, text=True).communicate(timeout=minutes * 60 + 30)[0]
    counted = Counter(told.split())
    topic, most = counted.most_common(1)[0]
    return [
        Row(f"the busiest of {len(counted)} topics, {topic}", most / minutes, "/min", 2.0),
        Row("all topics together", counted.total() / minutes, "/min"),
    ]
