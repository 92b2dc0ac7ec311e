"""The classes and functions that a model's architecture may name: closed lists for Keras 1, 2 and 3.

Keras instantiates every dictionary with a ``class_name``, wherever it stands, and a ``TFOpLambda`` layer of Keras 2
calls any TensorFlow function that it names. Most of TensorFlow's 8,500 functions read or write files, fetch URLs, load
code, call their arguments or change the process, so a name on none of these lists is refused. A name is on a list only
after a review of its source: it computes tensors from tensors and numbers, takes no path and no function, and keeps no
state but that of the random generator.
"""

import re

# Layers of Keras 1, 2 and 3 that only compute, from the architecture and the weights alone. A Pipeline holds a list of
# layers, each of which is checked as a layer.
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
    "Layer": "the base class of layers, which computes nothing itself",
    "Wrapper": "the base class of wrappers, which computes nothing itself",
    "AbstractRNNCell": "the base class of recurrent cells, which computes nothing itself",
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
# Activations by name, including those of Keras 1, and the layers that Keras 2 accepts as activations.
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
# Optimizers that a nested model was compiled with: Keras builds them although nothing here trains with them.
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
CLASS_FUNCTIONS = ACTIVATIONS | LOSS_FUNCTIONS

# Groups of classes, and the modules below one of Keras' packages that define them, in every version of Keras.
_HOMES = (
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
_PACKAGE = r"(tf_keras|keras|tensorflow\.keras|tensorflow\.python\.keras)"
_FUNCTION_HOME = re.compile(r"builtins|(tf_)?keras(\.src)?\.(activations|losses|metrics)(\.\w+)?")
# Layers that keras.applications defines for one model family, and the module of each. Keras finds them by module only,
# and HDF5 files name no module.
APPLICATION_LAYERS = {
    "LayerScale": "applications.convnext",
    "StochasticDepth": "applications.convnext",
    "CustomScaleLayer": "applications.inception_resnet_v2",
}


def is_defined_in(kind: str, module: str) -> bool:
    """Whether some version of Keras defines a listed class of this name in this module.

    Args:
        kind: a class name, or ``function`` for any function.
        module: the module as the architecture names it.
    """
    if kind == "function":
        return _FUNCTION_HOME.fullmatch(module) is not None
    if kind in APPLICATION_LAYERS:
        return module in (f"keras.src.{APPLICATION_LAYERS[kind]}", f"tf_keras.src.{APPLICATION_LAYERS[kind]}")
    if kind in INITIALIZERS and re.fullmatch(r"tensorflow\.python\.ops\.init_ops(_v2)?", module):
        return True  # tf.constant_initializer and so on
    return any(
        kind in group and re.fullmatch(rf"{_PACKAGE}((\.src)?\.({modules})(\.\w+)*)?", module)
        for group, modules in _HOMES
    )


# TensorFlow functions by the prefix of their names. What each group leaves out, and why:
#   nn: the candidate samplers (one reads a vocabulary file), rnn and with_space_to_batch (they call their arguments),
#       the CTC functions (decoders of text);
#   image: decode_* and encode_* (parsers of image formats, no part of a classifier);
#   no prefix: map_fn, cond, while_loop, scan, py_function, numpy_function, custom_gradient (they call their arguments),
#       print, Assert, import_graph_def, load_library, load_op_library, xla_*, rpc_* and all that change the process;
#   keras: models, utils, saving, preprocessing, layers, datasets, callbacks (files, URLs, code); in backend those that
#       call functions (rnn, map_fn, function, switch, in_train_phase) or set state (set_value, set_floatx, update).
_FUNCTION_GROUPS = {
    # Shapes and values, and functions of the groups below that TensorFlow also exports, or once did, without a prefix.
    "": """
    argsort batch_to_space bitcast boolean_mask broadcast_to cast clip_by_norm clip_by_value complex concat constant
    convert_to_tensor dynamic_partition dynamic_stitch ensure_shape expand_dims fill gather gather_nd identity
    identity_n linspace meshgrid norm one_hot ones ones_like pad range rank repeat required_space_to_batch_paddings
    reshape reverse reverse_sequence roll saturate_cast scatter_nd searchsorted sequence_mask shape shape_n size slice
    sort space_to_batch space_to_batch_nd split squeeze stack stop_gradient strided_slice tensor_scatter_nd_add
    tensor_scatter_nd_max tensor_scatter_nd_min tensor_scatter_nd_sub tensor_scatter_nd_update tensordot tile transpose
    unique unravel_index unstack where where_v2 zeros zeros_like
    abs acos acosh add add_n argmax argmin asin asinh atan atan2 atanh ceil cos cosh cumprod cumsum div div_no_nan
    divide einsum equal erf erfc exp expm1 eye floor floor_div floordiv floormod greater greater_equal is_finite is_inf
    is_nan less less_equal lin_space log log1p log_sigmoid logical_and logical_not logical_or logical_xor matmul
    matrix_band_part matrix_diag matrix_diag_part matrix_transpose maximum minimum mod multiply negative not_equal pow
    realdiv reciprocal reduce_all reduce_any reduce_logsumexp reduce_max reduce_mean reduce_min reduce_prod reduce_sum
    reverse_v2 rint round rsqrt scalar_mul sigmoid sign sin sinh space_to_depth depth_to_space sqrt square
    squared_difference subtract tan tanh to_bfloat16 to_double to_float to_int32 to_int64 trace truediv truncatediv
    truncatemod extract_image_patches batch_to_space_nd
    """,
    "__operators__.": "add eq getitem ne",
    "math.": """
    abs accumulate_n acos acosh add add_n angle argmax argmin asin asinh atan atan2 atanh bessel_i0 bessel_i0e bessel_i1
    bessel_i1e betainc bincount ceil confusion_matrix conj cos cosh count_nonzero cumprod cumsum cumulative_logsumexp
    digamma divide divide_no_nan equal erf erfc erfcinv erfinv exp expm1 floor floordiv floormod greater greater_equal
    igamma igammac imag in_top_k invert_permutation is_finite is_inf is_nan is_non_decreasing is_strictly_increasing
    l2_normalize lbeta less less_equal lgamma log log1p log_sigmoid log_softmax logical_and logical_not logical_or
    logical_xor maximum minimum mod multiply multiply_no_nan ndtri negative nextafter not_equal polygamma polyval pow
    real reciprocal reciprocal_no_nan reduce_all reduce_any reduce_euclidean_norm reduce_logsumexp reduce_max
    reduce_mean reduce_min reduce_prod reduce_std reduce_sum reduce_variance rint round rsqrt scalar_mul segment_max
    segment_mean segment_min segment_prod segment_sum sigmoid sign sin sinh softmax softplus softsign sqrt square
    squared_difference subtract tan tanh top_k truediv unsorted_segment_max unsorted_segment_mean unsorted_segment_min
    unsorted_segment_prod unsorted_segment_sqrt_n unsorted_segment_sum xdivy xlog1py xlogy zero_fraction zeta
    """,
    "nn.": """
    atrous_conv2d atrous_conv2d_transpose avg_pool avg_pool1d avg_pool2d avg_pool3d avg_pool_v2 batch_normalization
    batch_norm_with_global_normalization bias_add conv1d conv1d_transpose conv2d conv2d_transpose conv3d
    conv3d_transpose conv_transpose convolution crelu depth_to_space depthwise_conv2d depthwise_conv2d_native dilation2d
    dropout elu embedding_lookup erosion2d experimental.stateless_dropout fractional_avg_pool fractional_max_pool
    fused_batch_norm gelu in_top_k l2_loss l2_normalize leaky_relu local_response_normalization log_softmax lrn max_pool
    max_pool1d max_pool2d max_pool3d max_pool_v2 max_pool_with_argmax moments normalize_moments pool relu relu6
    relu_layer selu separable_conv2d sigmoid sigmoid_cross_entropy_with_logits silu softmax
    softmax_cross_entropy_with_logits softplus softsign space_to_batch space_to_depth
    sparse_softmax_cross_entropy_with_logits sufficient_statistics swish tanh top_k weighted_cross_entropy_with_logits
    weighted_moments xw_plus_b zero_fraction
    """,
    "image.": """
    adjust_brightness adjust_contrast adjust_gamma adjust_hue adjust_jpeg_quality adjust_saturation central_crop
    combined_non_max_suppression convert_image_dtype crop_and_resize crop_to_bounding_box draw_bounding_boxes
    extract_glimpse extract_image_patches extract_patches flip_left_right flip_up_down grayscale_to_rgb hsv_to_rgb
    image_gradients non_max_suppression non_max_suppression_overlaps non_max_suppression_padded
    non_max_suppression_with_scores pad_to_bounding_box per_image_standardization psnr random_brightness random_contrast
    random_crop random_flip_left_right random_flip_up_down random_hue random_jpeg_quality random_saturation resize
    resize_area resize_bicubic resize_bilinear resize_image_with_crop_or_pad resize_image_with_pad resize_images
    resize_nearest_neighbor resize_with_crop_or_pad resize_with_pad rgb_to_grayscale rgb_to_hsv rgb_to_yiq rgb_to_yuv
    rot90 sobel_edges ssim ssim_multiscale stateless_random_brightness stateless_random_contrast stateless_random_crop
    stateless_random_flip_left_right stateless_random_flip_up_down stateless_random_hue stateless_random_jpeg_quality
    stateless_random_saturation total_variation transpose transpose_image yiq_to_rgb yuv_to_rgb
    """,
    "linalg.": """
    adjoint band_part banded_triangular_solve cholesky cholesky_solve cross det diag diag_part eigh eigvalsh einsum expm
    eye global_norm inv l2_normalize logdet logm lstsq lu lu_matrix_inverse lu_reconstruct lu_solve matmul matrix_rank
    matrix_transpose matvec norm normalize pinv qr set_diag slogdet solve sqrtm svd tensor_diag tensor_diag_part
    tensordot trace transpose triangular_solve tridiagonal_matmul tridiagonal_solve
    """,
    "keras.activations.": """
    elu exponential gelu hard_sigmoid linear mish relu selu sigmoid softmax softplus softsign swish tanh
    """,
    "keras.backend.": """
    abs all any argmax argmin batch_dot batch_flatten batch_normalization bias_add cast cast_to_floatx clip concatenate
    conv1d conv2d conv2d_transpose conv3d cos cumprod cumsum depthwise_conv2d dot elu equal exp expand_dims flatten
    gather greater greater_equal hard_sigmoid l2_normalize less less_equal log max maximum mean min minimum not_equal
    one_hot ones_like permute_dimensions pool2d pool3d pow prod relu repeat repeat_elements reshape resize_images
    resize_volumes reverse round separable_conv2d shape sigmoid sign sin softmax softplus softsign spatial_2d_padding
    spatial_3d_padding sqrt square squeeze stack std stop_gradient sum tanh temporal_padding tile transpose var
    zeros_like
    """,
}
FUNCTIONS = frozenset(prefix + name for prefix, names in _FUNCTION_GROUPS.items() for name in names.split())


def only_computes(name: str) -> bool:
    """Whether a TensorFlow function, by its name in a model file, is on the reviewed list."""
    return name.removeprefix("compat.v1.") in FUNCTIONS
