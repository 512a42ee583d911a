"""What can be chosen about a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from onnxopt.errors import OptionError
from onnxopt.train.optimizers import AdamW, Rule
from onnxopt.train.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how fast and what is trained; ``steps`` or ``epochs`` must be given."""

    steps: int = 0
    epochs: int = 0
    batch: int = 32
    """The samples of a step. The last step of an epoch has those that are left."""
    micro_batch: int = 0
    """So many samples go into the model at a time, which bounds memory; their gradients are added up. 0: all."""
    recompute: bool = False
    """Whether values inside are computed again for the gradients in place of being kept: that takes less memory, and up
    to one more forward pass a step."""
    lr: float = 1e-3
    schedule: Schedule = field(default_factory=Schedule)
    optimizer: Rule = field(default_factory=AdamW)
    clip: float = 0.0
    """The gradient is at most this long: longer ones are scaled down as a whole. 0: as long as it is."""
    ema: float = 0.0
    """With a decay such as 0.999, the result is the exponential moving average of the weights. 0: the weights."""
    keep_zeros: bool = False
    """Elements of weights (of two axes or more) that are zero stay zero, as pruning left them; but weights that are all
    zero were not pruned, and move."""
    include: tuple[str, ...] = ()
    """Globs over names of initializers and of nodes that read them: only these are trained."""
    exclude: tuple[str, ...] = ()
    """The same: these are not."""
    untie: bool = False
    """Give each reader of a parameter one of its own: exporters merge those that start out equal."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Whether normalizations keep their statistics, or use those of each batch and let theirs follow."""
    evaluate_every: int = 0
    """So many steps go by between looks at the held-out samples. 0: an epoch."""
    patience: int = 0
    """Stop after so many looks without a better one. 0: never."""
    checkpoint_every: int = 0
    """So many steps go by between checkpoints. 0: an epoch."""
    seed: int = 0
    """What the order of samples and augmentation follow from."""
    threads: int = 0
    """How many threads ONNX Runtime uses. 0: one for each core. Another number may round differently."""

    engine: Literal["onnxruntime", "ort-training"] = "onnxruntime"
    """Who differentiates: gradients as a rewrite of the graph, run by ONNX Runtime, or onnxruntime-training,"""
    interpreter: str = ""
    """which is run by this Python, in a process of its own."""

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.epochs > 0):
            raise OptionError(f"give steps or epochs, above 0: got {self.steps} steps and {self.epochs} epochs")
        if self.batch < 1:
            raise OptionError(f"a batch is one sample or more, got {self.batch}")
        if not 0 < self.lr < float("inf"):
            raise OptionError(f"the learning rate is above 0, got {self.lr}")
        if not 0 <= self.ema < 1:
            raise OptionError(f"the decay of a moving average is in [0, 1), got {self.ema}")
        if self.batch_norm not in ("frozen", "train"):
            raise OptionError(f"batch_norm is frozen or train, got {self.batch_norm!r}")
        if self.engine not in ("onnxruntime", "ort-training"):
            raise OptionError(f"engine is onnxruntime or ort-training, got {self.engine!r}")
        if (self.engine == "ort-training") != bool(self.interpreter):
            raise OptionError(
                "interpreter is the Python that has onnxruntime-training, as engine='ort-training', "
                f"interpreter='/path/to/python': got engine {self.engine!r} and interpreter {self.interpreter!r}"
            )
        if self.recompute and self.interpreter:
            raise OptionError("recompute is for engine='onnxruntime' alone")
        for name in (
            "steps",
            "epochs",
            "micro_batch",
            "clip",
            "evaluate_every",
            "patience",
            "checkpoint_every",
            "seed",
        ):
            if not getattr(self, name) >= 0:
                raise OptionError(f"{name} is 0 or more, got {getattr(self, name)}")
