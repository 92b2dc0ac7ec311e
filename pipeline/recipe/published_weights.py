"""ImageNet weights that keras.applications publishes: the address of each file, and its hash in Keras' sources.

The hashes are the ``WEIGHTS_HASHES`` or the ``file_hash`` in the modules of ``keras/src/applications`` (Keras 3.15).
Keras has none for MobileNet and MobileNetV2, so their files cannot be checked and are not downloaded.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A published file.

    Attributes:
        url: Address of the file.
        digest: ``algorithm:hex``.
        folder: Subfolder of Keras' folder.
        saved_as: Name of the file there. Defaults to None: the last part of the address.
    """

    url: str
    digest: str
    folder: str
    saved_as: str | None = None

    @property
    def name(self) -> str:
        """Name of the file in Keras' folder."""
        return self.saved_as or self.url.rpartition("/")[2]


_HOST = "https://storage.googleapis.com/"
_FOLDER = f"{_HOST}tensorflow/keras-applications/"
_CLASSIC = "_weights_tf_dim_ordering_tf_kernels"


@dataclass(frozen=True)
class _Files:
    """The two files of a network: with its top, and without."""

    start: str  # common start of both addresses
    with_top: str  # hash
    without_top: str  # hash
    ending: str = "_notop"
    saved_as: str | None = None  # start of the name in Keras' folder, where it differs from the address
    saved_ending: str = "_notop"


def _classic(name: str, folder: str, with_top: str, without_top: str) -> _Files:
    return _Files(f"{_FOLDER}{folder}/{name}{_CLASSIC}", with_top, without_top)


def _mobile(size: str, with_top: str, without_top: str) -> _Files:
    return _Files(
        f"{_FOLDER}mobilenet_v3/weights_mobilenet_v3_{size}_224_1.0_float", with_top, without_top, "_no_top_v2"
    )


def _nasnet(size: str, with_top: str, without_top: str) -> _Files:
    return _Files(f"{_FOLDER}nasnet/NASNet-{size}", with_top, without_top, "-no-top", f"nasnet_{size}", "_no_top")


_FILES: dict[str, _Files] = {
    "resnet50": _classic("resnet50", "resnet", "2cb95161c43110f7111970584f804107", "4d473c1dd8becc155b73f8504c6f6626"),
    "resnet101": _classic(
        "resnet101", "resnet", "f1aeb4b969a6efcfb50fad2f0c20cfc5", "88cf7a10940856eca736dc7b7e228a21"
    ),
    "resnet152": _classic(
        "resnet152", "resnet", "100835be76be38e30d865e96f2aaae62", "ee4c566cf9a93f14d82f913c2dc6dd0c"
    ),
    "resnet50v2": _classic(
        "resnet50v2", "resnet", "3ef43a0b657b3be2300d5770ece849e0", "fac2f116257151a9d068a22e544a4917"
    ),
    "resnet101v2": _classic(
        "resnet101v2", "resnet", "6343647c601c52e1368623803854d971", "c0ed64b8031c3730f411d2eb4eea35b5"
    ),
    "resnet152v2": _classic(
        "resnet152v2", "resnet", "a49b44d1979771252814e80f8ec446f9", "ed17cf2e0169df9d443503ef94b23b33"
    ),
    "efficientnetb0": _Files(
        f"{_HOST}keras-applications/efficientnetb0",
        "902e53a9f72be733fc0bcb005b3ebbac",
        "50bc09e76180e00e4465e1a485ddc09d",
    ),
    "efficientnetb1": _Files(
        f"{_HOST}keras-applications/efficientnetb1",
        "1d254153d4ab51201f1646940f018540",
        "74c4e6b3e1f6a1eea24c589628592432",
    ),
    "efficientnetb2": _Files(
        f"{_HOST}keras-applications/efficientnetb2",
        "b15cce36ff4dcbd00b6dd88e7857a6ad",
        "111f8e2ac8aa800a7a99e3239f7bfb39",
    ),
    "efficientnetb3": _Files(
        f"{_HOST}keras-applications/efficientnetb3",
        "ffd1fdc53d0ce67064dc6a9c7960ede0",
        "af6d107764bb5b1abb91932881670226",
    ),
    "efficientnetb4": _Files(
        f"{_HOST}keras-applications/efficientnetb4",
        "18c95ad55216b8f92d7e70b3a046e2fc",
        "ebc24e6d6c33eaebbd558eafbeedf1ba",
    ),
    "efficientnetb5": _Files(
        f"{_HOST}keras-applications/efficientnetb5",
        "ace28f2a6363774853a83a0b21b9421a",
        "38879255a25d3c92d5e44e04ae6cec6f",
    ),
    "efficientnetb6": _Files(
        f"{_HOST}keras-applications/efficientnetb6",
        "165f6e37dce68623721b423839de8be5",
        "9ecce42647a20130c1f39a5d4cb75743",
    ),
    "efficientnetb7": _Files(
        f"{_HOST}keras-applications/efficientnetb7",
        "8c03f828fec3ef71311cd463b6759d99",
        "cbcfe4450ddf6f3ad90b1b398090fe4a",
    ),
    "efficientnetv2b0": _Files(
        f"{_FOLDER}efficientnet_v2/efficientnetv2-b0",
        "21ecbf6da12460d5c40bb2f29ceb2188",
        "893217f2bb855e2983157299931e43ff",
    ),
    "efficientnetv2b1": _Files(
        f"{_FOLDER}efficientnet_v2/efficientnetv2-b1",
        "069f0534ff22adf035c89e2d9547a9dc",
        "0e80663031ca32d657f9caa404b6ec37",
    ),
    "efficientnetv2b2": _Files(
        f"{_FOLDER}efficientnet_v2/efficientnetv2-b2",
        "424e49f28180edbde1e94797771950a7",
        "1dfe2e7a5d45b6632553a8961ea609eb",
    ),
    "efficientnetv2b3": _Files(
        f"{_FOLDER}efficientnet_v2/efficientnetv2-b3",
        "1f1fc43bd98a6e4fd8fdfd551e02c7a0",
        "f6abf7b5849ac99a89b50dd3fd532856",
    ),
    "efficientnetv2s": _Files(
        f"{_FOLDER}efficientnet_v2/efficientnetv2-s",
        "e1d88a8495beba45748fedd0cecbe016",
        "af0682fb74e8c54910f2d4393339c070",
    ),
    "efficientnetv2m": _Files(
        f"{_FOLDER}efficientnet_v2/efficientnetv2-m",
        "a3bf6aa3276309f4fc6a34aa114c95cd",
        "1b8dc055df72dde80d614482840fe342",
    ),
    "efficientnetv2l": _Files(
        f"{_FOLDER}efficientnet_v2/efficientnetv2-l",
        "27e6d408b53c7ebc868fefa357689935",
        "b0b66b5c863aef5b46e8608fe1711615",
    ),
    "mobilenetv3small": _mobile("small", "8768d4c2e7dee89b9d02b2d03d65d862", "d3e8ec802a04aa4fc771ee12a9a9b836"),
    "mobilenetv3large": _mobile("large", "59e551e166be033d707958cf9e29a6a7", "07fb09a5933dd0c8eaafa16978110389"),
    "densenet121": _classic(
        "densenet121", "densenet", "9d60b8095a5708f2dcce2bca79d332c7", "30ee3e1110167f948a6b9946edeeb738"
    ),
    "densenet169": _classic(
        "densenet169", "densenet", "d699b8f76981ab1b30698df4c175e90b", "b8c4d4c20dd625c148057b9ff1c1176b"
    ),
    "densenet201": _classic(
        "densenet201", "densenet", "1ceb130c1ea1b78c3bf6114dbdfd8807", "c13680b51ded0fb44dff2d8f86ac8bb1"
    ),
    "convnexttiny": _Files(
        f"{_FOLDER}convnext/convnext_tiny",
        "8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff",
        "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
    ),
    "convnextsmall": _Files(
        f"{_FOLDER}convnext/convnext_small",
        "ce1277d8f1ee5a0ef0e171469089c18f5233860ceaf9b168049cb9263fd7483c",
        "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab",
    ),
    "convnextbase": _Files(
        f"{_FOLDER}convnext/convnext_base",
        "52cbb006d3dadd03f6e095a8ca1aca47aecdd75acb4bc74bce1f5c695d0086e6",
        "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45",
    ),
    "convnextlarge": _Files(
        f"{_FOLDER}convnext/convnext_large",
        "070c5ed9ed289581e477741d3b34beffa920db8cf590899d6d2c67fba2a198a6",
        "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd",
    ),
    "convnextxlarge": _Files(
        f"{_FOLDER}convnext/convnext_xlarge",
        "c1f5ccab661354fc3a79a10fa99af82f0fbf10ec65cb894a3ae0815f17a889ee",
        "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05",
    ),
    "inceptionv3": _classic(
        "inception_v3", "inception_v3", "9a0d58056eeedaa3f26cb7ebd46da564", "bcbd6486424b2319ff4ef7d526e38f63"
    ),
    "inceptionresnetv2": _classic(
        "inception_resnet_v2",
        "inception_resnet_v2",
        "e693bd0210a403b3192acc6073ad2e96",
        "d19885ff4a710c122648d3b5c3b684e4",
    ),
    "xception": _classic(
        "xception", "xception", "0a58e3b7378bc2990ea3b43d5981f1f6", "b0042744bf5b25fce3cb969f33bebb97"
    ),
    "nasnetmobile": _nasnet("mobile", "020fb642bf7360b370c678b08e0adf61", "1ed92395b5b598bdda52abe5c0dbfd63"),
    "nasnetlarge": _nasnet("large", "11577c9a518f0070763c2b964a382f17", "d81d89dc07e6e56530c4e77faddd61b5"),
    "vgg16": _classic("vgg16", "vgg16", "64373286793e3c8b2b4e3219cbf3544b", "6d6bbae143d832006294945121d1f1fc"),
    "vgg19": _classic("vgg19", "vgg19", "cbe5617147190e668d6c5d5026f83318", "253f8cb515780f3b799900260a226db6"),
}


def published_backbones() -> list[str]:
    """List the backbones whose ImageNet weights Keras publishes with a hash."""
    return list(_FILES)


def imagenet_weights(backbone: str, top: bool) -> Published:
    """Return the weights that keras.applications publishes for a backbone.

    Args:
        backbone: One of ``published_backbones()``.
        top: Whether to include the head of 1,000 classes.
    """
    files = _FILES[backbone]
    digest = files.with_top if top else files.without_top
    algorithm = "sha256" if len(digest) == 64 else "md5"  # the length tells which one Keras used
    saved = None if files.saved_as is None else f"{files.saved_as}{'' if top else files.saved_ending}.h5"
    return Published(f"{files.start}{'' if top else files.ending}.h5", f"{algorithm}:{digest}", "models", saved)
