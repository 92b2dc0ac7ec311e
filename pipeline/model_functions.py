"""The functions that a model's architecture may name: they compute on their arguments, and do nothing else.

A layer of Keras 2 (``TFOpLambda``) names any function of TensorFlow, and Keras calls it while it builds the model. Most
of the 8,500 names read or write files, fetch addresses, load code, call what they are given or change the process. So
the list is closed: what is not on it is refused, whether anybody has found a use for it or not. A function is on it if
it was read and found to compute a tensor from tensors and numbers. It takes no path, no function, and keeps no state
but that of the random generator.
"""

from __future__ import annotations

_MATH = """
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
"""
_NN = """
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
"""
_IMAGE = """
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
"""
_LINALG = """
    adjoint band_part banded_triangular_solve cholesky cholesky_solve cross det diag diag_part eigh eigvalsh einsum expm
    eye global_norm inv l2_normalize logdet logm lstsq lu lu_matrix_inverse lu_reconstruct lu_solve matmul matrix_rank
    matrix_transpose matvec norm normalize pinv qr set_diag slogdet solve sqrtm svd tensor_diag tensor_diag_part
    tensordot trace transpose triangular_solve tridiagonal_matmul tridiagonal_solve
"""
_SHAPES = """
    argsort batch_to_space bitcast boolean_mask broadcast_to cast clip_by_norm clip_by_value complex concat constant
    convert_to_tensor dynamic_partition dynamic_stitch ensure_shape expand_dims fill gather gather_nd identity
    identity_n linspace meshgrid norm one_hot ones ones_like pad range rank repeat required_space_to_batch_paddings
    reshape reverse reverse_sequence roll saturate_cast scatter_nd searchsorted sequence_mask shape shape_n size slice
    sort space_to_batch space_to_batch_nd split squeeze stack stop_gradient strided_slice tensor_scatter_nd_add
    tensor_scatter_nd_max tensor_scatter_nd_min tensor_scatter_nd_sub tensor_scatter_nd_update tensordot tile transpose
    unique unravel_index unstack where where_v2 zeros zeros_like
"""
# Functions of the groups above that TensorFlow also exports, or once exported, without the group's name.
_BARE = """
    abs acos acosh add add_n argmax argmin asin asinh atan atan2 atanh ceil cos cosh cumprod cumsum div div_no_nan
    divide einsum equal erf erfc exp expm1 eye floor floor_div floordiv floormod greater greater_equal is_finite is_inf
    is_nan less less_equal lin_space log log1p log_sigmoid logical_and logical_not logical_or logical_xor matmul
    matrix_band_part matrix_diag matrix_diag_part matrix_transpose maximum minimum mod multiply negative not_equal pow
    realdiv reciprocal reduce_all reduce_any reduce_logsumexp reduce_max reduce_mean reduce_min reduce_prod reduce_sum
    reverse_v2 rint round rsqrt scalar_mul sigmoid sign sin sinh space_to_depth depth_to_space sqrt square
    squared_difference subtract tan tanh to_bfloat16 to_double to_float to_int32 to_int64 trace truediv truncatediv
    truncatemod extract_image_patches batch_to_space_nd
"""
_KERAS_ACTIVATIONS = """
    elu exponential gelu hard_sigmoid linear mish relu selu sigmoid softmax softplus softsign swish tanh
"""
_KERAS_BACKEND = """
    abs all any argmax argmin batch_dot batch_flatten batch_normalization bias_add cast cast_to_floatx clip concatenate
    conv1d conv2d conv2d_transpose conv3d cos cumprod cumsum depthwise_conv2d dot elu equal exp expand_dims flatten
    gather greater greater_equal hard_sigmoid l2_normalize less less_equal log max maximum mean min minimum not_equal
    one_hot ones_like permute_dimensions pool2d pool3d pow prod relu repeat repeat_elements reshape resize_images
    resize_volumes reverse round separable_conv2d shape sigmoid sign sin softmax softplus softsign spatial_2d_padding
    spatial_3d_padding sqrt square squeeze stack std stop_gradient sum tanh temporal_padding tile transpose var
    zeros_like
"""
# Prefix -> (names, what they are). What is left out of a group, and why:
#   nn: the candidate samplers (one reads a vocabulary file), rnn and with_space_to_batch (call what they are given),
#       the CTC functions (decoders of text);
#   image: decode_* and encode_* (parsers of foreign formats, no part of a classifier);
#   bare: map_fn, cond, while_loop, scan, py_function, numpy_function, custom_gradient (call what they are given),
#       print, Assert, import_graph_def, load_library, load_op_library, xla_*, rpc_* and all that changes the process;
#   keras: models, utils, saving, preprocessing, layers, datasets, callbacks (files, addresses, code); of backend what
#       calls functions (rnn, map_fn, function, switch, in_train_phase) or sets state (set_value, set_floatx, update).
GROUPS: dict[str, tuple[str, str]] = {
    "": (_SHAPES + _BARE, "shapes, values and arithmetic"),
    "__operators__.": ("add eq getitem ne", "Python's operators on tensors"),
    "math.": (_MATH, "arithmetic"),
    "nn.": (_NN, "parts of neural networks"),
    "image.": (_IMAGE, "arithmetic on images"),
    "linalg.": (_LINALG, "linear algebra"),
    "keras.activations.": (_KERAS_ACTIVATIONS, "activation functions"),
    "keras.backend.": (_KERAS_BACKEND, "arithmetic under Keras' names"),
}
FUNCTIONS = frozenset(prefix + name for prefix, (names, _) in GROUPS.items() for name in names.split())


def only_computes(name: str) -> bool:
    """Whether a function of TensorFlow, by the name in a model file, is on the reviewed list."""
    return name.removeprefix("compat.v1.") in FUNCTIONS
