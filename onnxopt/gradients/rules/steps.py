"""Operators whose outputs do not move with their inputs, or only in jumps. A gradient that comes to them ends there."""

from __future__ import annotations

from onnxopt.gradients.registry import piecewise_constant

piecewise_constant("Floor", "Ceil", "Round", "Sign", "IsNaN", "IsInf")
piecewise_constant("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Not")
piecewise_constant("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift")
piecewise_constant("ArgMax", "ArgMin", "Hardmax", "NonZero", "NonMaxSuppression")
piecewise_constant("Shape", "Size", "ConstantOfShape", "EyeLike")
piecewise_constant("HannWindow", "HammingWindow", "BlackmanWindow")
piecewise_constant("RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
