"""Train a model: losses as graphs, optimizers on arrays, one loop.

::

    run = train(model, CrossEntropy(), data, TrainConfig(epochs=3, lr=1e-4), held_out=held_out)
    for step in run:                       # Step(index, epoch, loss, lr, norm, samples, seconds, metric, is_best)
        print(step)
    trained = run.result()                 # the best weights on held_out, else the last ones

    loss = WeightedSum(((0.9, Distillation(temperature=4.0)), (0.1, CrossEntropy())))
    run = train(student, loss, data, TrainConfig(steps=2_000), teacher=teacher, checkpoint="run.npz", resume=True)

The model itself stays as it is. It is of opset 18 or later, without local functions, and of float32. What a loss reads
beside the model's outputs are the labels of the data, and values of the teacher, which is run on the same inputs.
"""

from onnxopt.train.config import TrainConfig
from onnxopt.train.loop import Step, Training, accuracy, train
from onnxopt.train.loss_graph import Loss
from onnxopt.train.losses import (
    AttentionTransfer,
    Cosine,
    CrossEntropy,
    Distillation,
    LossModel,
    MeanSquaredError,
    Relational,
    SelfDistillation,
    SimilarityPreserving,
    WeightedSum,
)
from onnxopt.train.optimizers import LAMB, SGD, AdamW, Optimizer
from onnxopt.train.schedules import Schedule

__all__ = [
    "LAMB",
    "SGD",
    "AdamW",
    "AttentionTransfer",
    "Cosine",
    "CrossEntropy",
    "Distillation",
    "Loss",
    "LossModel",
    "MeanSquaredError",
    "Optimizer",
    "Relational",
    "Schedule",
    "SelfDistillation",
    "SimilarityPreserving",
    "Step",
    "TrainConfig",
    "Training",
    "WeightedSum",
    "accuracy",
    "train",
]
