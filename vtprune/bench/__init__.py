"""Speed beside an ideal: the untouched model, a method, and the bare model that is given just the tokens it keeps.

`measure` times them in alternation, `record` and `replaying` make the ideal; `vtprune bench` prints what they find.
"""

from vtprune.bench.generate import Requested
from vtprune.bench.measuring import Measured, Outcome, Settings, measure
from vtprune.bench.plan import Plan, record
from vtprune.bench.replay import replaying
from vtprune.bench.result import to_dict

__all__ = ["Measured", "Outcome", "Plan", "Requested", "Settings", "measure", "record", "replaying", "to_dict"]
