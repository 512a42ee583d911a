"""Reverse-mode differentiation as a graph rewrite.

``gradient_graph`` appends to the graph of a scalar loss the nodes that compute its derivatives, in standard ONNX
operators, so that stock ONNX Runtime trains the model. Each operator has one rule, in ``rules/``: a vector–Jacobian
product, as in Griewank and Walther, "Evaluating Derivatives", 2008, chapter 3.
"""

from onnxopt.gradients.engine import GradientGraph, gradient_graph
from onnxopt.gradients.registry import differentiable_ops

__all__ = ["GradientGraph", "differentiable_ops", "gradient_graph"]
