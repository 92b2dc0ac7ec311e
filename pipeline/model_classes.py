"""The classes and names that a model's architecture may use: Keras' own parts, in its several ages.

Keras builds every dictionary with a ``class_name`` that it meets, wherever it stands, and calls functions that such a
name finds. So the lists are closed, and a name that is on none of them is refused wherever it stands.
"""

from __future__ import annotations

import re

# Layers of Keras 1, 2 and 3 that only compute, from what the architecture and the weights hold. A Pipeline holds a list
# of layers, each of which is judged as one.
KNOWN_LAYERS = frozenset(
    """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
    AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add AdditiveAttention AlphaDropout
    AtrousConvolution2D Attention AugMix AutoContrast Average AveragePooling1D AveragePooling2D AveragePooling3D
    AvgPool1D AvgPool2D AvgPool3D BatchNormalization BatchNormalizationV1 BatchNormalizationV2 Bidirectional
    CategoryEncoding CenterCrop Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D
    Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Convolution1D Convolution1DTranspose
    Convolution2D Convolution2DTranspose Convolution3D Convolution3DTranspose Cropping1D Cropping2D Cropping3D CutMix
    Deconvolution2D Dense DepthwiseConv1D DepthwiseConv2D Discretization Dot Dropout ELU EinsumDense Embedding
    Equalization Flatten Functional GRU GRUCell GRUV1 GaussianDropout GaussianNoise GlobalAveragePooling1D
    GlobalAveragePooling2D GlobalAveragePooling3D GlobalAvgPool1D GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D
    GlobalMaxPool2D GlobalMaxPool3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization
    GroupQueryAttention GroupedQueryAttention HashedCrossing Hashing Highway Identity InputLayer IntegerLookup LSTM
    LSTMCell LSTMV1 LayerNormalization LeakyReLU LocallyConnected1D LocallyConnected2D Masking MaxNumBoundingBoxes
    MaxPool1D MaxPool2D MaxPool3D MaxPooling1D MaxPooling2D MaxPooling3D Maximum MelSpectrogram Merge Minimum MixUp
    Model MultiHeadAttention Multiply Normalization PReLU Permute Pipeline RMSNormalization RNN RandAugment
    RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomElasticTransform
    RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHeight RandomHue RandomInvert RandomPerspective
    RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation RandomWidth
    RandomZoom ReLU RepeatVector Rescaling Reshape Resizing ReversibleEmbedding STFTSpectrogram SeparableConv1D
    SeparableConv2D SeparableConvolution1D SeparableConvolution2D Sequential SimpleRNN SimpleRNNCell SlicingOpLambda
    Softmax Solarization SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization StackedRNNCells
    StringLookup Subtract SyncBatchNormalization TFOpLambda TextVectorization ThresholdedReLU TimeDistributed
    UnitNormalization UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """.split()  # noqa: SIM905 - a list of 150 lines is not easier to read
)
# Public classes among the layers of Keras 2 and 3 that are refused, and why.
FOREIGN_LAYERS = {
    "TFSMLayer": "runs a SavedModel that it reads from another folder",
    "TorchModuleWrapper": "runs a PyTorch module, whose code is not in the file",
    "JaxLayer": "runs a JAX function, whose code is not in the file",
    "FlaxLayer": "runs a Flax module, whose code is not in the file",
    "DenseFeatures": "computes with feature columns, which read files and call functions by name",
    "Layer": "the class that others are made of, which computes nothing itself",
    "Wrapper": "the class that wrappers are made of, which computes nothing itself",
    "AbstractRNNCell": "the class that cells are made of, which computes nothing itself",
}
# Operations of Keras 3 (keras.ops) that only compute. Map, Scan, Cond, Switch, WhileLoop, ForiLoop, VectorizedMap,
# AssociativeScan and JVP call a function that the architecture names.
OPERATIONS = frozenset(
    """
    Abs Absolute AdaptiveAveragePool AdaptiveMaxPool Add AffineTransform All AllClose Amax Amin Angle Any Append
    Arange Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh Argmax Argmin Argpartition Argsort Array ArraySplit
    Average AveragePool BatchNorm BinaryCrossentropy Bincount BitwiseAnd BitwiseInvert BitwiseLeftShift BitwiseNot
    BitwiseOr BitwiseRightShift BitwiseXor BroadcastTo CDist CTCDecode CTCLoss Cast CategoricalCrossentropy Cbrt
    Ceil Celu Cholesky CholeskyInverse Clip Concatenate Conj Conjugate Conv ConvTranspose ConvertToTensor Copy
    Corrcoef Correlate Cos Cosh CountNonzero CropImages Cross Cumprod Cumsum Deg2rad DepthToSpace DepthwiseConv Det
    Diag Diagflat Diagonal Diff Digitize Divide DivideNoNan Dot DotProductAttention Dsplit Dstack Eig Eigh Einsum
    ElasticTransform Elu EmptyLike Equal Erf Erfc Erfinv Exp Exp2 ExpandDims Expm1 ExtractPatches ExtractSequences
    FFT FFT2 Fabs Flip Fliplr Flipud Floor FloorDivide Fmax Fmin Fmod Fold Full FullLike GaussianBlur Gcd Gelu
    Geomspace GetItem Glu Greater GreaterEqual HSVToRGB HardShrink HardSigmoid HardSilu HardSwish HardTanh Heaviside
    Histogram Hsplit Hstack Hypot I0 IFFT2 IRFFT ISTFT Identity Imag InTopK Inner Inv IsIn Isclose Isfinite Isinf
    Isnan Isneginf Isposinf Isreal Kron LayerNorm Lcm Ldexp LeakyRelu LeftShift Less LessEqual Linspace Log Log10
    Log1p Log2 LogSigmoid LogSoftmax Logaddexp Logaddexp2 Logdet LogicalAnd LogicalNot LogicalOr LogicalXor Logspace
    Logsumexp Lstsq LuFactor MapCoordinates Matmul MatrixRank Max MaxPool Maximum Mean Median Meshgrid Min Minimum
    Mod Moments Moveaxis MultiHot Multiply NanToNum Nanargmax Nanargmin Nancumprod Nancumsum Nanmax Nanmean
    Nanmedian Nanmin Nanpercentile Nanprod Nanquantile Nanstd Nansum Nanvar Ndim Negative Nextafter Nonzero Norm
    Normalize NotEqual OneHot OnesLike Outer PSNR Pad PadImages Percentile PerspectiveTransform Pinv Polar Power
    Prod Ptp Qr Quantile RFFT RGBToGrayscale RGBToHSV RMSNorm Rad2deg Ravel Real Rearrange Reciprocal Relu Relu6
    Repeat Reshape Resize RightShift Roll Rot90 Round Rsqrt SSIM SVD STFT SaturateCast ScaleAndTranslate Scatter
    ScatterUpdate SearchSorted SegmentMax SegmentMin SegmentProd SegmentReduction SegmentSum Select Selu
    SeparableConv Sigmoid Sign Signbit Silu Sin Sinc Sinh Size Slice SliceUpdate Slogdet SobelEdges SoftShrink
    Softmax Softplus Softsign Solve SolveTriangular Sort SpaceToDepth SparseCategoricalCrossentropy SparsePlus
    SparseSigmoid Sparsemax Split Sqrt Square Squareplus Squeeze Stack Std StopGradient Subtract Sum Swapaxes Take
    TakeAlongAxis Tan Tanh TanhShrink Tensordot Threshold Tile TopK Trace Transpose Trapezoid Tril Triu TrueDivide
    Trunc Unfold Unique UnravelIndex Unstack Vander Var Vdot View ViewAsComplex ViewAsReal Vsplit Vstack Where
    ZerosLike
    """.split()  # noqa: SIM905
)
INITIALIZERS = frozenset(
    """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer LecunNormal LecunUniform
    Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform STFT STFTInitializer TruncatedNormal
    VarianceScaling Zeros ConstantV2 GlorotNormalV2 GlorotUniformV2 HeNormalV2 HeUniformV2 IdentityV2 LecunNormalV2
    LecunUniformV2 OnesV2 OrthogonalV2 RandomNormalV2 RandomUniformV2 TruncatedNormalV2 VarianceScalingV2 ZerosV2
    constant glorot_normal glorot_uniform he_normal he_uniform identity lecun_normal lecun_uniform normal one ones
    orthogonal random_normal random_uniform stft truncated_normal uniform variance_scaling zero zeros
    """.split()  # noqa: SIM905
)
REGULARIZERS = frozenset(
    "L1 L1L2 L2 OrthogonalRegularizer l1 l1_l2 l1l2 l2 orthogonal_regularizer".split()  # noqa: SIM905
)
CONSTRAINTS = frozenset(
    """
    MaxNorm MinMaxNorm NonNeg RadialConstraint UnitNorm max_norm maxnorm min_max_norm minmaxnorm non_neg nonneg
    radial_constraint unit_norm unitnorm
    """.split()  # noqa: SIM905
)
# Activations by name, those of Keras 1 included; and the layers that Keras 2 takes in the place of one.
ACTIVATIONS = frozenset(
    """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear
    log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus
    sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink threshold ELU LeakyReLU PReLU ReLU Softmax
    ThresholdedReLU
    """.split()  # noqa: SIM905
)
DTYPES = frozenset(
    """
    DTypePolicy DTypePolicyMap DynamicLossScale FixedLossScale FloatDTypePolicy Int4DTypePolicy Policy PolicyV1
    QuantizedDTypePolicy QuantizedFloat8DTypePolicy
    """.split()  # noqa: SIM905
)
QUANTIZERS = frozenset(
    "AbsMaxQuantizer Float8QuantizationConfig Int4QuantizationConfig Int8QuantizationConfig".split()  # noqa: SIM905
)
# What a model inside a model was compiled with: Keras builds it though nothing here trains with it.
OPTIMIZERS = frozenset(
    """
    Adadelta Adafactor Adagrad Adam AdamW Adamax Ftrl Lion LossScaleOptimizer Muon Nadam RMSprop SGD
    ScheduleFreeAdamW CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay PiecewiseConstantDecay
    PolynomialDecay
    """.split()  # noqa: SIM905
)
LOSSES = frozenset(
    """
    AUC Accuracy BinaryAccuracy BinaryCrossentropy BinaryFocalCrossentropy BinaryIoU CategoricalAccuracy
    CategoricalCrossentropy CategoricalFocalCrossentropy CategoricalHinge Circle ConcordanceCorrelation
    CosineSimilarity Dice F1Score FBetaScore FalseNegatives FalsePositives Hinge Huber IoU KLDivergence LogCosh
    LogCoshError LossFunctionWrapper Mean MeanAbsoluteError MeanAbsolutePercentageError MeanIoU MeanMetricWrapper
    MeanSquaredError MeanSquaredLogarithmicError MeanTensor OneHotIoU OneHotMeanIoU PearsonCorrelation Poisson
    Precision PrecisionAtRecall R2Score Recall RecallAtPrecision RootMeanSquaredError SensitivityAtSpecificity
    SparseCategoricalAccuracy SparseCategoricalCrossentropy SparseTopKCategoricalAccuracy SpecificityAtSensitivity
    SquaredHinge Sum TopKCategoricalAccuracy TrueNegatives TruePositives Tversky
    """.split()  # noqa: SIM905
)
LOSS_FUNCTIONS = frozenset(
    """
    accuracy binary_accuracy binary_crossentropy binary_focal_crossentropy categorical_accuracy
    categorical_crossentropy categorical_focal_crossentropy categorical_hinge cosine_similarity hinge huber
    kl_divergence log_cosh mean_absolute_error mean_absolute_percentage_error mean_squared_error
    mean_squared_logarithmic_error poisson sparse_categorical_accuracy sparse_categorical_crossentropy
    sparse_top_k_categorical_accuracy squared_hinge top_k_categorical_accuracy
    """.split()  # noqa: SIM905
)
# Everything but layers and operations.
PARTS = INITIALIZERS | REGULARIZERS | CONSTRAINTS | ACTIVATIONS | DTYPES | QUANTIZERS | OPTIMIZERS | LOSSES
FUNCTIONS = ACTIVATIONS | LOSS_FUNCTIONS

_PACKAGE = r"(tf_keras|keras|tensorflow\.keras|tensorflow\.python\.keras)"
# Groups of classes, and the modules below one of Keras' packages that each lives in, in Keras' several ages.
_HOMES = tuple(
    (group, re.compile(rf"{_PACKAGE}((\.src)?\.({modules})(\.\w+)*)?"))
    for group, modules in (
        (KNOWN_LAYERS | {"Lambda"}, "layers|models|engine"),
        (OPERATIONS, "ops"),
        (INITIALIZERS, "initializers"),
        (REGULARIZERS, "regularizers"),
        (CONSTRAINTS, "constraints"),
        (ACTIVATIONS, "activations|layers"),
        (DTYPES, "dtype_policies|mixed_precision"),
        (QUANTIZERS, "quantizers"),
        (OPTIMIZERS, "optimizers|mixed_precision"),
        (LOSSES, "losses|metrics"),
    )
)
_TENSORFLOW_INITIALIZERS = re.compile(r"tensorflow\.python\.ops\.init_ops(_v2)?")  # tf.constant_initializer and so on
_FUNCTION_HOME = re.compile(r"builtins|(tf_)?keras(\.src)?\.(activations|losses|metrics)(\.\w+)?")
# Layers that keras.applications defines for one family of models, and the module of each. Keras finds them by it only,
# and its HDF5 files name none.
APPLICATION_LAYERS = {
    "LayerScale": "applications.convnext",
    "StochasticDepth": "applications.convnext",
    "CustomScaleLayer": "applications.inception_resnet_v2",
}


def lives_in(kind: str, module: str) -> bool:
    """Whether Keras has, or had, a class of that name on the lists above in that module.

    Args:
        kind: a class name, or ``function`` for any function.
        module: as the architecture names it.
    """
    if kind == "function":
        return _FUNCTION_HOME.fullmatch(module) is not None
    if kind in APPLICATION_LAYERS:
        return module in (f"keras.src.{APPLICATION_LAYERS[kind]}", f"tf_keras.src.{APPLICATION_LAYERS[kind]}")
    if kind in INITIALIZERS and _TENSORFLOW_INITIALIZERS.fullmatch(module):
        return True
    return any(kind in group and home.fullmatch(module) for group, home in _HOMES)
