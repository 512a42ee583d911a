"""The families that Torch-Pruning's own torchvision test covers, segmentation networks, and transformers.

As torchvision has them where that is small; else the same module with fewer or narrower layers, which changes the sizes
of a graph and not its kind.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlock, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

from benchmarks.corpus.export import Made, bert, distilbert, gpt2, t5_encoder, token_inputs
from benchmarks.prune.networks import Net


def image_net(name: str, make: Callable[[], nn.Module], ignored: str, size: int = 64, **told: object) -> Net:
    return Net(name, make, lambda: {"x": torch.randn(2, 3, size, size)}, (ignored,), sampled=True, **told)  # type: ignore[arg-type]


def plain(name: str, ignored: str, size: int = 64, **options: object) -> Net:
    return image_net(name, lambda: torchvision.models.get_model(name, weights=None, **options), ignored, size)


def narrow_head(name: str) -> Net:
    """The 4,096 features of the classifier are 256 here."""

    def make() -> nn.Module:
        model = torchvision.models.get_model(name, weights=None)
        linears = [i for i, m in enumerate(model.classifier) if isinstance(m, nn.Linear)]
        sizes = [model.classifier[linears[0]].in_features, 256, 256, 10]
        for i, inputs, outputs in zip(linears, sizes[:-1], sizes[1:], strict=True):
            model.classifier[i] = nn.Linear(inputs, outputs)
        return model

    return image_net(name, make, "classifier.6", 224)


def convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(48, 96, 2), CNBlockConfig(96, 192, 2), CNBlockConfig(192, None, 2)], num_classes=10)


def wide_resnet() -> nn.Module:
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=128)


def vit() -> nn.Module:
    return VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10)


def set_hidden(model: nn.Module) -> None:
    model.hidden_dim = model.conv_proj.out_channels


def swin(block: type[nn.Module]) -> Callable[[], nn.Module]:
    return lambda: SwinTransformer([4, 4], 24, [2, 2], [3, 6], [4, 4], num_classes=10, block=block)


class Segmenter(nn.Module):
    """The map alone, out of the dictionary that torchvision returns."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)["out"]  # type: ignore[no-any-return]


def segmentation(name: str, *ignored: str) -> Net:
    def make() -> nn.Module:
        return Segmenter(torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5))

    net = image_net(name, make, "")
    return Net(net.name, net.make, net.inputs, tuple(f"net.{layer}" for layer in ignored), sampled=True)


def hugging_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    config._attn_implementation = "eager"
    return First(ViTForImageClassification(config))


def hugging_swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(image_size=32, patch_size=4, embed_dim=24, depths=[2, 2], num_heads=[3, 6], window_size=4)
    config._attn_implementation = "eager"
    return First(SwinForImageClassification(config))


class First(nn.Module):
    """The first tensor of what a transformers model returns."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(pixel_values=x)[0]  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """A token model with a classifier on the mean over the tokens: without it, the residual stream is an output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.head = net, nn.Linear(64, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.net(input_ids, attention_mask).mean(1))  # type: ignore[no-any-return]


def tokens(name: str, make: Callable[[], nn.Module], ignored: str, **told: object) -> Net:
    return Net(name, make, lambda: token_inputs(500), (ignored,), sampled=True, **told)  # type: ignore[arg-type]


def pooled(name: str, make: Callable[[], Made], layer: str, projections: tuple[str, ...]) -> Net:
    """Of two layers with four heads each."""
    heads = {f"net.net.{layer.format(i)}.{projection}": 4 for i in range(2) for projection in projections}
    return tokens(name, lambda: Pooled(make()[0]), "head", heads=heads, after=set_head_sizes)


def set_head_sizes(model: nn.Module) -> None:
    """transformers keep the features of a head beside the layers that make them."""
    for module in model.modules():
        for projection in ("query", "q_lin", "q_proj", "q"):
            if isinstance(query := getattr(module, projection, None), nn.Linear):
                for name in ("attention_head_size", "head_dim", "key_value_proj_dim"):
                    if hasattr(module, name):
                        setattr(module, name, query.out_features // 4)
                if hasattr(module, "inner_dim"):
                    module.inner_dim = query.out_features


ARCHITECTURES = (
    narrow_head("alexnet"),
    narrow_head("vgg11_bn"),
    plain("squeezenet1_1", "classifier.1"),
    plain("resnet34", "fc"),
    plain("resnext50_32x4d", "fc"),
    image_net("wide_resnet", wide_resnet, "fc"),
    plain("densenet121", "classifier"),
    plain("googlenet", "fc", aux_logits=False, init_weights=False),
    plain("inception_v3", "fc", 128, aux_logits=False, init_weights=False),
    plain("mobilenet_v2", "classifier.1"),
    plain("mobilenet_v3_small", "classifier.3"),
    plain("mnasnet0_5", "classifier.1"),
    plain("shufflenet_v2_x0_5", "fc"),
    plain("efficientnet_b0", "classifier.1"),
    plain("efficientnet_v2_s", "classifier.1"),
    plain("regnet_x_400mf", "fc"),
    plain("regnet_y_400mf", "fc"),
    image_net("convnext", convnext, "classifier.2"),
    image_net("vit", vit, "heads.head", 32, round_to=4, after=set_hidden),
    image_net("swin", swin(SwinTransformerBlock), "head"),
    image_net("swin_v2", swin(SwinTransformerBlockV2), "head"),
    segmentation("lraspp_mobilenet_v3_large", "classifier.low_classifier", "classifier.high_classifier"),
    segmentation("deeplabv3_mobilenet_v3_large", "classifier.4"),
    segmentation("fcn_resnet50", "classifier.4"),
    segmentation("deeplabv3_resnet50", "classifier.4"),
    pooled("bert", bert, "encoder.layer.{}.attention.self", ("query", "key", "value")),
    pooled("distilbert", distilbert, "transformer.layer.{}.attention", ("q_lin", "k_lin", "v_lin")),
    pooled("t5_encoder", t5_encoder, "encoder.block.{}.layer.0.SelfAttention", ("q", "k", "v")),
    tokens("gpt2", lambda: gpt2()[0], "net.lm_head"),
    image_net(
        "hf_vit",
        hugging_vit,
        "net.classifier",
        32,
        heads={f"net.vit.layers.{i}.attention.{p}_proj": 4 for i in range(2) for p in "qkv"},
        after=set_head_sizes,
    ),
    image_net("hf_swin", hugging_swin, "net.classifier", 32),
)
