"""Every error of onnxopt, as one tree.

::

    OnnxoptError
    ├── ModelError    (ValueError)    the model file is unreadable, unsafe or invalid
    ├── OutputError   (OSError)       the result cannot be written; nothing was changed on disk
    ├── OptionError   (ValueError)    an option, a pipeline or a recipe is wrong
    ├── DataError     (ValueError)    probe, calibration or evaluation data do not fit the model
    ├── EngineError   (RuntimeError)  ONNX Runtime refused, crashed, hung or ran out of memory
    ├── GradientError (ValueError)    the model cannot be differentiated as asked
    ├── MetricError   (RuntimeError)  a metric raised, or gave a number that is not finite
    ├── TrainingError (RuntimeError)  training met numbers that are not finite
    └── PassError     (RuntimeError)  a pass failed, or matched nothing under ``strict``

Each message says what is wrong, where, and what to do about it.
"""


class OnnxoptError(Exception):
    """The root of all errors that onnxopt raises on purpose."""


class ModelError(OnnxoptError, ValueError):
    """The model cannot be read, points outside its directory, or is not valid ONNX."""


class OutputError(OnnxoptError, OSError):
    """The output cannot be written. Whatever stood there before still does."""


class OptionError(OnnxoptError, ValueError):
    """An option is out of range or unknown."""


class DataError(OnnxoptError, ValueError):
    """Data given by the user does not fit the model."""


class EngineError(OnnxoptError, RuntimeError):
    """ONNX Runtime could not load or run a model."""


class GradientError(OnnxoptError, ValueError):
    """The model cannot be differentiated as asked: an operator without a rule, or a loss that depends on nothing."""


class MetricError(OnnxoptError, RuntimeError):
    """What the user judges models by failed."""


class TrainingError(OnnxoptError, RuntimeError):
    """Training cannot go on: a tensor holds NaN or infinity."""


class PassError(OnnxoptError, RuntimeError):
    """A pass failed, or found nothing to do under ``strict``."""
