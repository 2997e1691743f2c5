"""The picture that the MQTT publisher is given, from the same sources as the status. Reads and changes nothing."""

from __future__ import annotations

import time

from exod.alert_table import kind_of
from exod.core.engine.engine_messages import RankStatus
from exod.core.status.alerts import LASTING_S
from exod.core.status.health import HealthSnapshot
from exod.core.status.view import LinkView, NodeView
from exod.daemon_api import mqtt_view
from exod.model import Health, NodeId, Reason
from exod.status.snapshot import StatusBuilder, positive, rounded


class MqttSnapshot:
    def __init__(self, me: NodeId, status: StatusBuilder) -> None:
        self._me, self._status = me, status
        self._selected_at: dict[NodeId, tuple[float, float]] = {}
        """By peer, on the monotonic clock and on the wall clock as it was told first: computed anew each time it
        would move by a microsecond, or by what a clock is corrected, and be published as a change.
        """

    def view(self, view: NodeView, health: HealthSnapshot) -> mqtt_view.MqttView:
        history = self._status.record.history
        return mqtt_view.MqttView(
            nodes=tuple(self._node(view, node.id, health) for node in view.nodes),
            links=tuple(self._link(link) for link in view.links),
            mesh=mqtt_view.MqttMesh(
                state=view.mesh.state,
                epoch=view.mesh.plan.epoch.number if view.mesh.plan is not None else None,
                coordinator=view.mesh.coordinator,
                members=tuple(member.id for member in view.mesh.plan.members) if view.mesh.plan is not None else (),
                ring=view.mesh.plan.ring if view.mesh.plan is not None else (),
                reason=self._status.named(history[-1].reason) if history else "",
            ),
            engines=tuple(self._engine(status) for status in self._status.rank_statuses() if status is not None),
            alerts=tuple(
                mqtt_view.MqttAlert(
                    code=reason.code,
                    subject=reason.subject,
                    severity=kind_of(reason.code).severity,
                    text=reason.text,
                    cure=kind_of(reason.code).cure,
                    since=reason.since,
                    node=self._me,
                )
                for reason, lasting_s in zip(health.reasons, health.lasting_s, strict=True)
                if lasting_s >= LASTING_S
            ),
        )

    def _node(self, view: NodeView, node: NodeId, health: HealthSnapshot) -> mqtt_view.MqttNode:
        entry = next(entry for entry in view.nodes if entry.id == node)
        report = self._status.report(health) if node == self._me else self._status.record.report(node)
        reasons: tuple[Reason, ...] = health.reasons if node == self._me else ()
        if report is not None and node != self._me:
            reasons = tuple(Reason(*reason) for reason in report.reasons)
        card = self._status.card_of(node)
        return mqtt_view.MqttNode(
            id=node,
            name=entry.name,
            state=entry.state,
            version=entry.version,
            health=Health(report.health) if report is not None else None,
            reasons=reasons,
            uptime_s=report.uptime_s if report is not None else None,
            models=tuple(line for line in self._status.model_lines(view) if line.node == node),
            memory=mqtt_view.NodeMemory(
                model_mib=card.memory_mib if card is not None else None,
                total_mib=self._status.memory.read().total_bytes >> 20 if node == self._me else None,
                used_mib=report.memory_mib if report is not None else None,
            ),
        )

    def _link(self, link: LinkView) -> mqtt_view.MqttLink:
        path = next((path for path in link.paths if path.selected), None)
        low, high = sorted((self._me, link.peer))
        return mqtt_view.MqttLink(
            a=low,
            b=high,
            agreed=link.agreed,
            selected=link.selected,
            kind=link.kind,
            interface=path.interface if path is not None else None,
            rtt_ms=rounded(path.rtt_ms) if path is not None else None,
            loss=path.loss if path is not None else None,
            since=self._since(link),
        )

    def _since(self, link: LinkView) -> float:
        known = self._selected_at.get(link.peer)
        if known is None or known[0] != link.agreed_since:
            known = link.agreed_since, round(time.time() - (time.monotonic() - link.agreed_since), 3)
            self._selected_at[link.peer] = known
        return known[1]

    def _engine(self, status: RankStatus) -> mqtt_view.MqttEngine:
        summary = self._status.engine()
        return mqtt_view.MqttEngine(
            node=status.sender,
            state=summary.state,
            model=summary.model,
            layers=status.layers,
            tokens_per_s=positive(status.tokens_per_s) if status.generating else None,
            sync_mode=status.sync_mode,
            sync_reason=status.sync_reason,
            download=(status.download_done, status.download_total) if status.download_total else None,
        )
