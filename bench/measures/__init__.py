"""The measures by name, in the order of the page, each with its title."""

from collections.abc import Callable

from ..bench import Bench, Found
from .backlog import measure_backlog
from .batches import measure_batches
from .cycle import measure_cycle
from .heartbeat import measure_heartbeat
from .hot import measure_hot
from .idle import measure_idle
from .ineligible import measure_ineligible
from .lanes import measure_lanes
from .snapshot import measure_snapshot
from .wakeup import measure_wakeup

MEASURES: dict[str, tuple[str, Callable[[Bench], Found]]] = {
    "cycle": ("One job at a time", measure_cycle),
    "batches": ("Batches of 50", measure_batches),
    "backlog": ("A long backlog", measure_backlog),
    "ineligible": ("Tasks that may not run, in front of those that may", measure_ineligible),
    "lanes": ("Many lanes", measure_lanes),
    "wakeup": ("From insert to start", measure_wakeup),
    "idle": ("Fifty runners at rest", measure_idle),
    "heartbeat": ("Heartbeat with 1,000 leases", measure_heartbeat),
    "snapshot": ("Under a snapshot held open", measure_snapshot),
    "hot": ("Updates in place", measure_hot),
}
