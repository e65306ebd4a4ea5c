"""Which jobs have a worker that says nothing any more? Counters are compared on our own monotonic clock, never two machines' clocks.

(A worker that died on this machine is known at once by its lock, see regtrain/store/workers.py. This is for all others:
stopped, cut off, or on a machine that is gone.)
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

Beat = tuple[str, int, int]
"""Job, attempt, and the counter that the holder raises with every beat."""


@dataclass
class Silence:
    """Beats that stand still, and since when."""

    lease_seconds: float
    _since: dict[Beat, float] = field(default_factory=dict)

    def over(self, running: Iterable[Beat], *, now: float) -> list[Beat]:
        """Those that have not changed for a whole lease in which we watched. `now`: seconds of a monotonic clock."""
        self._since = {beat: self._since.get(beat, now) for beat in running}
        return [beat for beat, since in self._since.items() if now - since >= self.lease_seconds]
