"""The catalogue: every pass, in the order in which the docs list them.

A newcomer adds a module, a line here, and a test.
"""

if __name__ != "onnxopt.passes":
    raise ImportError("import onnxopt.passes, not passes: a second copy of every class would appear")

from onnxopt.pass_base import Pass
from onnxopt.passes.cleanup.convert_opset import ConvertOpset
from onnxopt.passes.cleanup.drop_default_inputs import DropDefaultInputs
from onnxopt.passes.cleanup.drop_impossible_branches import DropImpossibleBranches
from onnxopt.passes.cleanup.drop_initializer_inputs import DropInitializerInputs
from onnxopt.passes.cleanup.drop_unused_opsets import DropUnusedOpsets
from onnxopt.passes.cleanup.fold_affine import FoldAffine
from onnxopt.passes.cleanup.fold_batch_norm import FoldBatchNorm
from onnxopt.passes.cleanup.fold_constants import FoldConstants
from onnxopt.passes.cleanup.fold_pad import FoldPad
from onnxopt.passes.cleanup.fold_shapes import FoldShapes
from onnxopt.passes.cleanup.fold_transpose import FoldTranspose
from onnxopt.passes.cleanup.fuse_attention import FuseAttention
from onnxopt.passes.cleanup.fuse_gelu import FuseGelu
from onnxopt.passes.cleanup.fuse_gemm import FuseGemm
from onnxopt.passes.cleanup.fuse_global_pool import FuseGlobalPool
from onnxopt.passes.cleanup.fuse_group_norm import FuseGroupNorm
from onnxopt.passes.cleanup.fuse_hard_sigmoid import FuseHardSigmoid
from onnxopt.passes.cleanup.fuse_hard_swish import FuseHardSwish
from onnxopt.passes.cleanup.fuse_instance_norm import FuseInstanceNorm
from onnxopt.passes.cleanup.fuse_layer_norm import FuseLayerNorm
from onnxopt.passes.cleanup.fuse_mish import FuseMish
from onnxopt.passes.cleanup.fuse_rms_norm import FuseRmsNorm
from onnxopt.passes.cleanup.fuse_softplus import FuseSoftplus
from onnxopt.passes.cleanup.fuse_split import FuseSplit
from onnxopt.passes.cleanup.fuse_swish import FuseSwish
from onnxopt.passes.cleanup.inline_functions import InlineFunctions
from onnxopt.passes.cleanup.inline_if import InlineIf
from onnxopt.passes.cleanup.lift_constants import LiftConstants
from onnxopt.passes.cleanup.merge_affine import MergeAffine
from onnxopt.passes.cleanup.merge_casts import MergeCasts
from onnxopt.passes.cleanup.merge_clips import MergeClips
from onnxopt.passes.cleanup.merge_concats import MergeConcats
from onnxopt.passes.cleanup.merge_duplicates import MergeDuplicates
from onnxopt.passes.cleanup.merge_initializers import MergeInitializers
from onnxopt.passes.cleanup.merge_reshapes import MergeReshapes
from onnxopt.passes.cleanup.merge_slices import MergeSlices
from onnxopt.passes.cleanup.merge_transposes import MergeTransposes
from onnxopt.passes.cleanup.push_transposes import PushTransposes
from onnxopt.passes.cleanup.remove_dead import RemoveDead
from onnxopt.passes.cleanup.remove_no_ops import RemoveNoOps
from onnxopt.passes.cleanup.sink_constants import SinkConstants
from onnxopt.passes.quantize.adaround import Adaround
from onnxopt.passes.quantize.convert_bf16 import ConvertBf16
from onnxopt.passes.quantize.convert_fp16 import ConvertFp16
from onnxopt.passes.quantize.convert_qoperator import ConvertQoperator
from onnxopt.passes.quantize.correct_bias import CorrectBias
from onnxopt.passes.quantize.dequantize import Dequantize
from onnxopt.passes.quantize.equalize_channels import EqualizeChannels
from onnxopt.passes.quantize.quantize_dynamic import QuantizeDynamic
from onnxopt.passes.quantize.quantize_static import QuantizeStatic
from onnxopt.passes.quantize.quantize_weights import QuantizeWeights
from onnxopt.passes.quantize.smooth_activations import SmoothActivations

ALL: tuple[type[Pass], ...] = (
    DropInitializerInputs,
    InlineFunctions,
    LiftConstants,
    DropImpossibleBranches,
    InlineIf,
    RemoveNoOps,
    FoldShapes,
    FoldConstants,
    DropDefaultInputs,
    FuseSplit,
    MergeCasts,
    MergeClips,
    MergeConcats,
    MergeReshapes,
    MergeSlices,
    MergeTransposes,
    FoldTranspose,
    PushTransposes,
    FuseGelu,
    FuseHardSwish,
    FuseHardSigmoid,
    FuseSoftplus,
    FuseMish,
    FuseSwish,
    FuseInstanceNorm,
    FuseGroupNorm,
    FuseLayerNorm,
    FuseRmsNorm,
    FuseGlobalPool,
    FoldBatchNorm,
    FoldAffine,
    MergeAffine,
    FoldPad,
    FuseGemm,
    FuseAttention,
    MergeInitializers,
    MergeDuplicates,
    RemoveDead,
    DropUnusedOpsets,
    ConvertOpset,
    SinkConstants,
    EqualizeChannels,
    SmoothActivations,
    QuantizeStatic,
    Adaround,
    CorrectBias,
    QuantizeDynamic,
    QuantizeWeights,
    ConvertQoperator,
    Dequantize,
    ConvertFp16,
    ConvertBf16,
)
