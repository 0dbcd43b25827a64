"""What operators cost as measured: profiles of kernels, and the step price made of them.

Start with `profile` (a profile answers queries, tier by tier). It stands on `families` (work and
coordinates of each operator), `means` (smooth rooflines and their fit), `residual` (what they get
wrong, interpolated) and `tables` (the rows of one kernel).
"""

from llmsim.costmodel.measured.families import FAMILIES, Device, Types
from llmsim.costmodel.measured.profile import Profile, find_profile, load_profile
from llmsim.costmodel.measured.tables import Context, Latency

__all__ = [
    "FAMILIES",
    "Context",
    "Device",
    "Latency",
    "Profile",
    "Types",
    "find_profile",
    "load_profile",
]
