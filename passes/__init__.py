"""The catalogue: every pass, in the order in which the docs list them.

A newcomer adds a module, a line here, and a test.
"""

if __name__ != "onnxopt.passes":
    raise ImportError("import onnxopt.passes, not passes: a second copy of every class would appear")

from onnxopt.pass_base import Pass
from onnxopt.passes.cleanup.fold_constants import FoldConstants
from onnxopt.passes.cleanup.fold_shapes import FoldShapes
from onnxopt.passes.cleanup.remove_no_ops import RemoveNoOps

ALL: tuple[type[Pass], ...] = (
    FoldConstants,
    FoldShapes,
    RemoveNoOps,
)
