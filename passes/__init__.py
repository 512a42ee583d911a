"""The catalogue: every pass, in the order in which the docs list them.

A newcomer adds a module, a line here, and a test. A pass is imported when it is used: to import all of them takes
longer than to clean a small model.
"""

from __future__ import annotations

if __name__ != "onnxopt.passes":
    raise ImportError("import onnxopt.passes, not passes: a second copy of every class would appear")

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxopt.pass_base import Pass

CATALOGUE: dict[str, str] = {
    "drop-initializer-inputs": "cleanup.drop_initializer_inputs.DropInitializerInputs",
    "inline-functions": "cleanup.inline_functions.InlineFunctions",
    "lift-constants": "cleanup.lift_constants.LiftConstants",
    "drop-impossible-branches": "cleanup.drop_impossible_branches.DropImpossibleBranches",
    "inline-if": "cleanup.inline_if.InlineIf",
    "remove-no-ops": "cleanup.remove_no_ops.RemoveNoOps",
    "gather-one-hot": "cleanup.gather_one_hot.GatherOneHot",
    "fold-gather": "cleanup.fold_gather.FoldGather",
    "fold-shapes": "cleanup.fold_shapes.FoldShapes",
    "fold-constants": "cleanup.fold_constants.FoldConstants",
    "drop-default-inputs": "cleanup.drop_default_inputs.DropDefaultInputs",
    "fuse-split": "cleanup.fuse_split.FuseSplit",
    "merge-casts": "cleanup.merge_casts.MergeCasts",
    "merge-clips": "cleanup.merge_clips.MergeClips",
    "merge-concats": "cleanup.merge_concats.MergeConcats",
    "merge-reshapes": "cleanup.merge_reshapes.MergeReshapes",
    "merge-slices": "cleanup.merge_slices.MergeSlices",
    "fuse-gather": "cleanup.fuse_gather.FuseGather",
    "merge-transposes": "cleanup.merge_transposes.MergeTransposes",
    "merge-wheres": "cleanup.merge_wheres.MergeWheres",
    "fold-transpose": "cleanup.fold_transpose.FoldTranspose",
    "push-transposes": "cleanup.push_transposes.PushTransposes",
    "fuse-gelu": "cleanup.fuse_gelu.FuseGelu",
    "fuse-hard-swish": "cleanup.fuse_hard_swish.FuseHardSwish",
    "fuse-hard-sigmoid": "cleanup.fuse_hard_sigmoid.FuseHardSigmoid",
    "fuse-softplus": "cleanup.fuse_softplus.FuseSoftplus",
    "fuse-mish": "cleanup.fuse_mish.FuseMish",
    "fuse-swish": "cleanup.fuse_swish.FuseSwish",
    "fuse-instance-norm": "cleanup.fuse_instance_norm.FuseInstanceNorm",
    "fuse-group-norm": "cleanup.fuse_group_norm.FuseGroupNorm",
    "fuse-layer-norm": "cleanup.fuse_layer_norm.FuseLayerNorm",
    "fuse-rms-norm": "cleanup.fuse_rms_norm.FuseRmsNorm",
    "fuse-global-pool": "cleanup.fuse_global_pool.FuseGlobalPool",
    "fold-batch-norm": "cleanup.fold_batch_norm.FoldBatchNorm",
    "fold-affine": "cleanup.fold_affine.FoldAffine",
    "merge-affine": "cleanup.merge_affine.MergeAffine",
    "fold-pad": "cleanup.fold_pad.FoldPad",
    "fuse-gemm": "cleanup.fuse_gemm.FuseGemm",
    "fuse-attention": "cleanup.fuse_attention.FuseAttention",
    "merge-initializers": "cleanup.merge_initializers.MergeInitializers",
    "merge-duplicates": "cleanup.merge_duplicates.MergeDuplicates",
    "remove-dead": "cleanup.remove_dead.RemoveDead",
    "drop-unused-opsets": "cleanup.drop_unused_opsets.DropUnusedOpsets",
    "convert-opset": "cleanup.convert_opset.ConvertOpset",
    "sink-constants": "cleanup.sink_constants.SinkConstants",
    "split-conv": "lowrank.split_conv.SplitConv",
    "separate-conv": "lowrank.separate_conv.SeparateConv",
    "split-matmul": "lowrank.split_matmul.SplitMatmul",
    "split-embedding": "lowrank.split_embedding.SplitEmbedding",
    "merge-factors": "lowrank.merge_factors.MergeFactors",
    "prune-weights": "prune.prune_weights.PruneWeights",
    "prune-channels": "prune.prune_channels.PruneChannels",
    "prune-heads": "prune.prune_heads.PruneHeads",
    "prune-blocks": "prune.prune_blocks.PruneBlocks",
    "prune-vocabulary": "prune.prune_vocabulary.PruneVocabulary",
    "reconstruct": "prune.reconstruct.Reconstruct",
    "drop-layers": "distill.drop_layers.DropLayers",
    "reinitialize": "distill.reinitialize.Reinitialize",
    "finetune": "distill.finetune.Finetune",
    "distill": "distill.distill.Distill",
    "distill-blocks": "distill.distill_blocks.DistillBlocks",
    "self-distill": "distill.self_distill.SelfDistill",
    "qat": "distill.qat.Qat",
    "equalize-channels": "quantize.equalize_channels.EqualizeChannels",
    "smooth-activations": "quantize.smooth_activations.SmoothActivations",
    "quantize-static": "quantize.quantize_static.QuantizeStatic",
    "adaround": "quantize.adaround.Adaround",
    "correct-bias": "quantize.correct_bias.CorrectBias",
    "quantize-dynamic": "quantize.quantize_dynamic.QuantizeDynamic",
    "quantize-weights": "quantize.quantize_weights.QuantizeWeights",
    "convert-qoperator": "quantize.convert_qoperator.ConvertQoperator",
    "dequantize": "quantize.dequantize.Dequantize",
    "convert-fp16": "quantize.convert_fp16.ConvertFp16",
    "convert-bf16": "quantize.convert_bf16.ConvertBf16",
}
"""The name of each pass, with its module and class in this package."""

ALL: tuple[type[Pass], ...]
"""Every pass; made, and all modules imported, when it is asked for."""


def imported(name: str) -> type[Pass]:
    """The pass of that name; raises ``KeyError`` if there is none."""
    module, _, title = CATALOGUE[name].rpartition(".")
    found: type[Pass] = getattr(import_module(f"onnxopt.passes.{module}"), title)
    return found


def __getattr__(name: str) -> Any:
    if name != "ALL":
        raise AttributeError(f"module 'onnxopt.passes' has no attribute {name!r}")
    return tuple(map(imported, CATALOGUE))
