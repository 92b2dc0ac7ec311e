"""The backbones that a recipe can name, with their preprocessing and input sizes.

Preprocessing modes, native and smallest sizes are those in the sources of ``keras.applications`` (Keras 3.15).
Imports no Keras.
"""

from dataclasses import dataclass

from export.words import listed

LARGEST_INPUT = 600  # EfficientNet-B7's own


@dataclass(frozen=True)
class Backbone:
    """How to build a feature extractor, and the preprocessing that its published weights were trained with.

    Attributes:
        family: Name under which messages list it.
        preprocessing: Mode of ``export.preprocessing``; "none" where the network normalises 0..255 itself.
        application: Name in keras.applications; None: built in pipeline.models.resnet.
        layers: Number of layers of a ResNet from blocks; else 0.
        native: Input size of the published weights, in pixels.
        smallest: Smallest input size, in pixels.
        flat_top: Whether the published head takes a flattened feature map, and therefore only the native size.
    """

    family: str
    preprocessing: str
    application: str | None = None
    layers: int = 0
    native: int = 224
    smallest: int = 32
    flat_top: bool = False

    @property
    def normalises_inside(self) -> bool:
        """Whether the first layers of the network normalise pixels of 0..255."""
        return self.application is not None and self.preprocessing == "none"


def _several(family: str, mode: str, names: dict[str, int], smallest: int = 32) -> dict[str, Backbone]:
    """Return a backbone for each name in keras.applications, which are given with their native sizes."""
    return {n.lower(): Backbone(family, mode, n, native=size, smallest=smallest) for n, size in names.items()}


BACKBONES: dict[str, Backbone] = {
    "resnet18": Backbone("ResNet", "unit", layers=18),
    "resnet20": Backbone("ResNet", "unit", layers=20, native=32),
    "resnet34": Backbone("ResNet", "unit", layers=34),
    "resnet50-blocks": Backbone("ResNet", "unit", layers=50),
    **_several("ResNet", "caffe", {"ResNet50": 224, "ResNet101": 224, "ResNet152": 224}),
    **_several("ResNet", "tf", {"ResNet50V2": 224, "ResNet101V2": 224, "ResNet152V2": 224}),
    **_several(
        "EfficientNet",
        "none",
        {f"EfficientNetB{n}": size for n, size in enumerate((224, 240, 260, 300, 380, 456, 528, LARGEST_INPUT))},
    ),
    **_several(
        "EfficientNetV2",
        "none",
        {
            **{f"EfficientNetV2B{n}": size for n, size in enumerate((224, 240, 260, 300))},
            "EfficientNetV2S": 384,
            "EfficientNetV2M": 480,
            "EfficientNetV2L": 480,
        },
    ),
    **_several("MobileNet", "tf", {"MobileNet": 224, "MobileNetV2": 224}),
    **_several("MobileNet", "none", {"MobileNetV3Small": 224, "MobileNetV3Large": 224}),
    **_several("DenseNet", "torch", {"DenseNet121": 224, "DenseNet169": 224, "DenseNet201": 224}),
    **_several("ConvNeXt", "none", {f"ConvNeXt{size}": 224 for size in ("Tiny", "Small", "Base", "Large", "XLarge")}),
    **_several("Inception", "tf", {"InceptionV3": 299, "InceptionResNetV2": 299}, smallest=75),
    **_several("Xception", "tf", {"Xception": 299}, smallest=71),
    **_several("NASNet", "tf", {"NASNetMobile": 224, "NASNetLarge": 331}),
    "vgg16": Backbone("VGG", "caffe", "VGG16", flat_top=True),
    "vgg19": Backbone("VGG", "caffe", "VGG19", flat_top=True),
}


def by_family(names: list[str] | None = None, near: str | None = None) -> str:
    """List names for a message by family: ``ResNet: resnet18, resnet20; EfficientNet: ...``.

    Args:
        names: Backbones to list. Defaults to None: all.
        near: Backbone whose family is listed in full. Defaults to None: three names per family.
    """
    whole = BACKBONES[near].family if near is not None else None
    families: dict[str, list[str]] = {}
    for name in BACKBONES if names is None else names:
        families.setdefault(BACKBONES[name].family, []).append(name)
    return "; ".join(
        f"{family}: {listed(members, len(members) if family == whole else 3)}" for family, members in families.items()
    )
