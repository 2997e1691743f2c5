"""The lab: hosts in network namespaces, joined by links that can be slowed, made lossy and cut.

`topology.Lab` makes the hosts and the links, `node.Node` runs a daemon in a host, `python -m tests.lab`
shows both to people. Everything here is a black box around `exod`: it relies on the commands, the config
keys and the JSON fields that users rely on, and on nothing inside the daemon.
"""
