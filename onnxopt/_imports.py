"""Put off the costly imports of our dependencies until they are used.

``onnx_ir`` imports sympy (0.2 s, more than everything else together) for arithmetic on symbolic
dimensions, which onnxopt does not use. A stand-in module takes its place until somebody asks it
for an attribute.
"""

from __future__ import annotations

import importlib
import sys
import types


class _Deferred(types.ModuleType):
    """A module that imports itself when first looked into."""

    def __getattr__(self, attribute: str) -> object:
        if attribute.startswith("__"):  # the import system asks for these; they are no use of the module
            raise AttributeError(attribute)
        name = self.__name__
        if sys.modules.get(name) is self:
            del sys.modules[name]
        real = importlib.import_module(name)
        self.__dict__.update(real.__dict__)
        return getattr(real, attribute)


def defer(*names: str) -> None:
    """Import each module only when it is used; modules already imported stay as they are."""
    for name in names:
        if name not in sys.modules:
            sys.modules[name] = _Deferred(name)
