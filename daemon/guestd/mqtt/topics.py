"""The topics on a broker: guests' metrics and status, daemons' status, and the broker's count of dropped messages."""

from __future__ import annotations

from dataclasses import dataclass

BROKER_DROPS = "$SYS/broker/publish/messages/dropped"


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics below one prefix; several daemons of one `shared_group` divide the metrics."""

    prefix: str
    shared_group: str

    @property
    def metrics(self) -> str:
        """The topic filter of metrics."""
        share = f"$share/{self.shared_group}/" if self.shared_group else ""
        return f"{share}{self.prefix}/+/metrics"

    @property
    def status(self) -> str:
        """The topic filter of guests' status: `online` or `offline`, retained."""
        return f"{self.prefix}/+/status"

    def own_status(self, name: str) -> str:
        """The topic of a daemon's own status."""
        return f"{self.prefix}/host/{name}/status"

    def parse(self, topic: str) -> tuple[str, str]:
        """(machine, kind) of a guest's topic; two empty strings for any other."""
        if not topic.startswith(self.prefix + "/"):
            return "", ""
        machine, _, kind = topic[len(self.prefix) + 1 :].partition("/")
        return machine, kind
