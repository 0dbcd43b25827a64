"""Published systems, as plug-ins: one module per system, with the policies that it is known for.

The other rooms do not know what stands here. Importing the room imports every module in it, and
each registers its classes on the ordinary registries; whoever looks a kind up in a scenario has
imported it. A module imports no other module of the room, so that any of them can be deleted: only
scenarios that name its kinds are then refused.
"""

from importlib import import_module
from pkgutil import iter_modules

SYSTEMS = tuple(sorted(module.name for module in iter_modules(__path__)))
"""The modules of the room, by name."""

for _name in SYSTEMS:
    import_module(f"{__name__}.{_name}")
