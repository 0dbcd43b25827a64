"""What operators cost as measured: profiles of kernels, and the step price made of them.

Start with `profile` (a profile answers queries, tier by tier). It stands on `families` (work and
coordinates of each operator), `means` (smooth rooflines and their fit), `residual` (what they get
wrong, interpolated) and `tables` (the rows of one kernel). `cost` makes steps of it, from
`operators` (by tokens), `attention` (by contexts) and `lines` (curves as straight pieces).
"""

from llmsim.costmodel.measured.cost import MeasuredCost
from llmsim.costmodel.measured.families import FAMILIES, Device, Types
from llmsim.costmodel.measured.profile import Profile, find_profile, load_profile
from llmsim.costmodel.measured.tables import Context, Latency

__all__ = [
    "FAMILIES",
    "Context",
    "Device",
    "Latency",
    "MeasuredCost",
    "Profile",
    "Types",
    "find_profile",
    "load_profile",
]
