"""Seams: a registry maps a `kind` in YAML to one class that implements it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import EntryPoint, distributions
from typing import Generic, TypeVar

from llmsim.core.errors import RegistryError, nearest

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """The named implementations of one seam.

    Parameters
    ----------
    seam : str
        What the entries do, such as ``routing``; third parties publish theirs under the
        entry-point group ``llmsim.<seam>``, imported only when the name is used.

    Examples
    --------
    >>> ROUTING: Registry[object] = Registry("demo-routing")
    >>> @ROUTING.register("nowhere")
    ... class Nowhere: ...
    >>> ROUTING.names()
    ('nowhere',)
    """

    def __init__(self, seam: str) -> None:
        self.seam = seam
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Return a decorator that registers a class under a name.

        Raises
        ------
        RegistryError
            If the name is taken by another class.
        """

        def decorate(cls: C) -> C:
            taken = self._classes.get(name)
            if taken is not None and taken.__qualname__ != cls.__qualname__:
                raise RegistryError(
                    f"{self.seam} '{name}' is already {taken.__module__}.{taken.__qualname__}"
                )
            self._classes[name] = cls
            return cls

        return decorate

    def names(self) -> tuple[str, ...]:
        """Return all names, registered here or published by an installed package, sorted."""
        return tuple(sorted({*self._classes, *self._published()}))

    def registered(self) -> dict[str, type[T]]:
        """Return the classes that are registered in this process, by name."""
        return dict(self._classes)

    def get(self, name: str) -> type[T]:
        """Return the class behind a name.

        Raises
        ------
        RegistryError
            If nobody registered the name; the message gives the nearest one. Or if the package that
            publishes it cannot be imported.
        """
        found = self._classes.get(name)
        if found is not None:
            return found
        published = self._published().get(name)
        if published is None:
            hint = nearest(name, self.names())
            if re.search(r"[/:.]", name):  # somebody names a file or a class
                hint += f" One of your own is an entry point of llmsim.{self.seam}"
                hint += " (docs/bring-your-own.md)."
            raise RegistryError(f"unknown {self.seam} '{name}'. {hint}")
        try:
            cls: type[T] = published.load()
        except Exception as error:  # whatever goes wrong in somebody's module is told, not raised
            what = f"{self.seam} '{name}' is published as {published.value}, which cannot be loaded"
            raise RegistryError(f"{what}: {type(error).__name__}: {error}") from error
        self._classes[name] = cls
        return cls

    def _published(self) -> dict[str, EntryPoint]:
        group = f"llmsim.{self.seam}"
        return {each.name: each for each in _installed(tuple(sys.path)) if each.group == group}


@lru_cache(maxsize=1)
def _installed(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return what all packages on a path publish.

    Reading it opens a file of every package, a tenth of a second where there are a hundred; a
    package that is installed while Python runs is found after a restart.
    """
    found = (each for package in distributions() for each in package.entry_points)
    return tuple(each for each in found if each.group.startswith("llmsim."))
