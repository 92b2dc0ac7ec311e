"""Operations of a TensorFlow graph that do more than compute, found by a closed list of those that only compute.

TensorFlow registers some 1,900 operations. Many read and write files (``ReadFile``, ``ImmutableConst``,
``LoadAndRemapMatrix``), call Python (``EagerPyFunc``), reach other processes and addresses (``RpcCall``,
``DebugIdentityV3``), or run compiled programs. An operation is on the list only after a review of its source: it
computes on its inputs and on the model's own variables. Any other runs only if the recipe allows it by name. This
module reads protocol buffers and runs nothing.
"""

import base64
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.keras_files.graph_bounds import check_graph
from pipeline.keras_files.graph_rewriting import all_nodes, node_name, reachable
from pipeline.terminal.console import start_tensorflow

COMPUTING = frozenset(
    (  # noqa: SIM905
        # Arithmetic.
        """
    Abs AccumulateNV2 Acos Acosh Add AddN AddV2 All Angle Any ApproxTopK ApproximateEqual ArgMax ArgMin Asin Asinh
    Atan Atan2 Atanh BesselI0 BesselI0e BesselI1 BesselI1e BesselJ0 BesselJ1 BesselK0 BesselK0e BesselK1 BesselK1e
    BesselY0 BesselY1 Betainc Bincount BitwiseAnd BitwiseOr BitwiseXor Bucketize Cast Ceil ClipByValue Complex
    ComplexAbs Conj Cos Cosh Cross Cumprod Cumsum CumulativeLogsumexp Dawsn DenseBincount Digamma Div DivNoNan Equal
    Erf Erfc Erfinv EuclideanNorm Exp Expint Expm1 Floor FloorDiv FloorMod FresnelCos FresnelSin Greater
    GreaterEqual HistogramFixedWidth Igamma IgammaGradA Igammac Imag InTopK InTopKV2 Inv InvGrad Invert
    InvertPermutation IsFinite IsInf IsNan L2Loss LeftShift Less LessEqual Lgamma LinSpace Log Log1p LogicalAnd
    LogicalNot LogicalOr LowerBound Max Maximum Mean Min Minimum Mod Mul MulNoNan Ndtri Neg NextAfter NotEqual
    NthElement Polygamma PopulationCount Pow Prod Range Real RealDiv Reciprocal ReciprocalGrad RightShift Rint Round
    Rsqrt RsqrtGrad SegmentMax SegmentMean SegmentMin SegmentProd SegmentSum Sigmoid SigmoidGrad Sign Sin Sinh
    Spence Sqrt SqrtGrad Square SquaredDifference Sub Sum Tan Tanh TanhGrad TopK TopKV2 TruncateDiv TruncateMod
    UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum UpperBound Xdivy Xlog1py Xlogy Zeta
    """
        # Parts of neural networks, and their gradients.
        """
    AvgPool AvgPool3D AvgPool3DGrad AvgPoolGrad BatchNormWithGlobalNormalization BatchToSpace BatchToSpaceND BiasAdd
    BiasAddGrad BiasAddV1 BlockLSTM BlockLSTMGrad BlockLSTMGradV2 BlockLSTMV2 Conv Conv2D Conv2DBackpropFilter
    Conv2DBackpropInput Conv3D Conv3DBackpropFilterV2 Conv3DBackpropInputV2 CudnnRNN CudnnRNNBackprop
    CudnnRNNBackpropV2 CudnnRNNBackpropV3 CudnnRNNCanonicalToParams CudnnRNNCanonicalToParamsV2 CudnnRNNParamsSize
    CudnnRNNParamsToCanonical CudnnRNNParamsToCanonicalV2 CudnnRNNV2 CudnnRNNV3 DataFormatDimMap
    DataFormatVecPermute DepthToSpace DepthwiseConv2dNative DepthwiseConv2dNativeBackpropFilter
    DepthwiseConv2dNativeBackpropInput Dilation2D Dilation2DBackpropFilter Dilation2DBackpropInput Elu EluGrad
    FractionalAvgPool FractionalAvgPoolGrad FractionalMaxPool FractionalMaxPoolGrad FusedBatchNorm
    FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3 FusedBatchNormV2 FusedBatchNormV3 FusedPadConv2D
    FusedResizeAndPadConv2D GRUBlockCell GRUBlockCellGrad LRN LRNGrad LSTMBlockCell LSTMBlockCellGrad LeakyRelu
    LeakyReluGrad LogSoftmax MaxPool MaxPool3D MaxPool3DGrad MaxPoolGrad MaxPoolGradV2 MaxPoolGradWithArgmax
    MaxPoolV2 MaxPoolWithArgmax Relu Relu6 Relu6Grad ReluGrad Selu SeluGrad Softmax SoftmaxCrossEntropyWithLogits
    Softplus SoftplusGrad Softsign SoftsignGrad SpaceToBatch SpaceToBatchND SpaceToDepth
    SparseSoftmaxCrossEntropyWithLogits
    """
        # Quantization.
        """
    Dequantize FakeQuantWithMinMaxArgs FakeQuantWithMinMaxArgsGradient FakeQuantWithMinMaxVars
    FakeQuantWithMinMaxVarsGradient FakeQuantWithMinMaxVarsPerChannel FakeQuantWithMinMaxVarsPerChannelGradient
    QuantizeAndDequantize QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4
    QuantizeAndDequantizeV4Grad QuantizeDownAndShrinkRange QuantizeV2 QuantizedAdd QuantizedAvgPool QuantizedBiasAdd
    QuantizedConcat QuantizedConv2D QuantizedMatMul QuantizedMaxPool QuantizedMul QuantizedRelu QuantizedRelu6
    QuantizedReluX QuantizedReshape QuantizedResizeBilinear RequantizationRange Requantize
    """
        # Images and signals; decoders of their inputs.
        """
    AdjustContrastv2 AdjustHue AdjustSaturation CombinedNonMaxSuppression CropAndResize CropAndResizeGradBoxes
    CropAndResizeGradImage DecodeAndCropJpeg DecodeBase64 DecodeBmp DecodeGif DecodeImage DecodeJpeg DecodePng
    DecodeRaw DrawBoundingBoxes DrawBoundingBoxesV2 EncodeJpeg EncodePng ExtractGlimpse ExtractGlimpseV2
    ExtractImagePatches ExtractJpegShape ExtractVolumePatches FFT FFT2D FFT3D HSVToRGB IFFT IFFT2D IFFT3D IRFFT
    IRFFT2D IRFFT3D ImageProjectiveTransformV2 ImageProjectiveTransformV3 NonMaxSuppression NonMaxSuppressionV2
    NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5 NonMaxSuppressionWithOverlaps ParseExample
    ParseExampleV2 ParseSingleExample RFFT RFFT2D RFFT3D RGBToHSV ResizeArea ResizeBicubic ResizeBicubicGrad
    ResizeBilinear ResizeBilinearGrad ResizeNearestNeighbor ResizeNearestNeighborGrad SampleDistortedBoundingBox
    SampleDistortedBoundingBoxV2 ScaleAndTranslate ScaleAndTranslateGrad StatelessSampleDistortedBoundingBox
    """
        # Linear algebra.
        """
    BandedTriangularSolve BatchMatMul BatchMatMulV2 BatchMatMulV3 Cholesky CholeskyGrad Diag DiagPart Eig Einsum
    LogMatrixDeterminant Lu MatMul MatrixBandPart MatrixDeterminant MatrixDiag MatrixDiagPart MatrixDiagPartV2
    MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixExponential MatrixInverse MatrixLogarithm MatrixSetDiag
    MatrixSetDiagV2 MatrixSetDiagV3 MatrixSolve MatrixSolveLs MatrixSquareRoot MatrixTriangularSolve Qr
    SelfAdjointEig SelfAdjointEigV2 SparseMatMul SparseTensorDenseMatMul Svd TridiagonalMatMul TridiagonalSolve
    """
        # Shapes and values.
        """
    Bitcast BroadcastArgs BroadcastGradientArgs BroadcastTo Concat ConcatOffset ConcatV2 ConjugateTranspose Const
    ControlTrigger CopyOp DeepCopy DynamicPartition DynamicStitch Empty EnsureShape ExpandDims FakeParam Fill Gather
    GatherNd GatherV2 GuaranteeConst Identity IdentityN InplaceAdd InplaceSub InplaceUpdate ListDiff MirrorPad
    MirrorPadGrad NoOp OneHot OnesLike Pack Pad PadV2 ParallelConcat ParallelDynamicStitch Placeholder PlaceholderV2
    PlaceholderWithDefault PreventGradient RaggedBincount RaggedGather RaggedRange RaggedTensorFromVariant
    RaggedTensorToTensor RaggedTensorToVariant Rank Reshape Reverse ReverseSequence ReverseV2 Roll ScatterNd
    ScatterNdNonAliasingAdd Select SelectV2 Shape ShapeN Size Slice Snapshot SparseAdd SparseConcat
    SparseDenseCwiseAdd SparseDenseCwiseDiv SparseDenseCwiseMul SparseFillEmptyRows SparseReduceMax SparseReduceSum
    SparseReorder SparseReshape SparseSegmentMean SparseSegmentSqrtN SparseSegmentSum SparseSlice SparseSoftmax
    SparseSplit SparseTensorDenseAdd SparseToDense Split SplitV Squeeze StopGradient StridedSlice StridedSliceGrad
    TensorScatterAdd TensorScatterMax TensorScatterMin TensorScatterSub TensorScatterUpdate TensorStridedSliceUpdate
    Tile TileGrad Transpose Unique UniqueV2 UniqueWithCounts UniqueWithCountsV2 Unpack UnravelIndex Where ZerosLike
    """
        # The random generator.
        """
    Multinomial NonDeterministicInts ParameterizedTruncatedNormal RandomGamma RandomPoisson RandomPoissonV2
    RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt RngReadAndSkip RngSkip StatefulRandomBinomial
    StatefulStandardNormal StatefulStandardNormalV2 StatefulTruncatedNormal StatefulUniform StatefulUniformFullInt
    StatefulUniformInt StatelessMultinomial StatelessParameterizedTruncatedNormal StatelessRandomBinomial
    StatelessRandomGammaV2 StatelessRandomGammaV3 StatelessRandomGetAlg StatelessRandomGetKeyCounter
    StatelessRandomGetKeyCounterAlg StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomPoisson
    StatelessRandomUniform StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2 StatelessRandomUniformInt
    StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessShuffle StatelessTruncatedNormal
    StatelessTruncatedNormalV2 TruncatedNormal
    """
        # Control flow and calls; every function of a file is checked.
        """
    Assert Case CheckNumerics CheckNumericsV2 Enter Exit If LoopCond MapDefun Merge NextIteration PartitionedCall
    StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile Switch While
    """
        # Variables, lists and tables of the model itself.
        """
    AnonymousHashTable AnonymousMutableHashTable Assign AssignAdd AssignAddVariableOp AssignSub AssignSubVariableOp
    AssignVariableOp DestroyResourceOp DisableCopyOnRead EmptyTensorList HashTable HashTableV2 InitializeTableV2
    IsVariableInitialized LookupTableExportV2 LookupTableFindV2 LookupTableImportV2 LookupTableInsertV2
    LookupTableSizeV2 MutableHashTableV2 ReadVariableOp RefEnter RefExit RefIdentity RefMerge RefNextIteration
    RefSelect RefSwitch ResourceApplyAdagrad ResourceApplyAdagradV2 ResourceApplyAdam ResourceApplyGradientDescent
    ResourceApplyKerasMomentum ResourceApplyMomentum ResourceApplyRMSProp ResourceGather ResourceGatherNd
    ResourceScatterAdd ResourceScatterDiv ResourceScatterMax ResourceScatterMin ResourceScatterMul
    ResourceScatterNdAdd ResourceScatterNdSub ResourceScatterNdUpdate ResourceScatterSub ResourceScatterUpdate
    ScatterAdd ScatterNdUpdate ScatterSub ScatterUpdate TensorArrayCloseV3 TensorArrayConcatV3 TensorArrayGatherV3
    TensorArrayGradV3 TensorArrayReadV3 TensorArrayScatterV3 TensorArraySizeV3 TensorArraySplitV3 TensorArrayV3
    TensorArrayWriteV3 TensorListConcat TensorListConcatLists TensorListConcatV2 TensorListElementShape
    TensorListFromTensor TensorListGather TensorListGetItem TensorListLength TensorListPopBack TensorListPushBack
    TensorListPushBackBatch TensorListReserve TensorListResize TensorListScatter TensorListScatterIntoExistingList
    TensorListScatterV2 TensorListSetItem TensorListSplit TensorListStack VarHandleOp VarIsInitializedOp Variable
    VariableShape VariableV2
    """
        # Strings, from which the names of checkpoints are made.
        """
    AsString ReduceJoin RegexFullMatch RegexReplace ShardedFilename StaticRegexFullMatch StaticRegexReplace
    StringFormat StringJoin StringLength StringLower StringNGrams StringSplit StringSplitV2 StringStrip
    StringToHashBucket StringToHashBucketFast StringToHashBucketStrong StringToNumber StringUpper Substr
    UnicodeDecodeWithOffsets
    """
    ).split()
)
# Operations that save and restore the variables of every SavedModel; allowed for that, and nowhere else in it.
CHECKPOINT = frozenset({"SaveV2", "RestoreV2", "MergeV2Checkpoints"})
# Effects of other operations, by parts of their names.
_REASONS = {
    "PyFunc": "calls Python",
    "File": "reads or writes files",
    "ImmutableConst": "reads a file",
    "LoadAndRemap": "reads a file",
    "Vocab": "reads a file",
    "FixedUnigram": "reads a file",
    "Save": "writes files",
    "Restore": "reads files",
    "Checkpoint": "reads or deletes files",
    "Print": "writes to a file or the terminal",
    "Debug": "sends values to a file or an address",
    "Dump": "writes files",
    "Library": "loads a library",
    "Dataset": "reads files",
    "Record": "reads files",
    "Reader": "reads files",
    "Summary": "writes files",
    "Rpc": "reaches the network",
    "Collective": "reaches other processes",
    "Send": "reaches other processes",
    "Recv": "reaches other processes",
    "Remote": "reaches other processes",
    "TensorRT": "runs a compiled program",
    "TRTEngine": "runs a compiled program",
    "Custom": "runs a compiled program",
    "Xla": "runs a compiled program",
    "TPU": "runs on other machines",
    "Abort": "ends the process",
}


def describe_effect(operation: str) -> str:
    """Describe the effect of an operation that is not on the list, as far as its name shows it."""
    return next((why for part, why in _REASONS.items() if part in operation), "is not known to only compute")


def find_frozen_operations(graph: Any, where: str = "the graph in a FrozenGraph") -> list[tuple[str, str]] | None:
    """Find the operations that do more than compute in a ``GraphDef`` in base64.

    Returns:
        Pairs of operation and effect; None if the graph cannot be read.

    Raises:
        ModelError: beyond the limits of ``graph_bounds``.
    """
    try:
        content = check_graph(base64.b64decode(graph), "Graph", where)
    except (TypeError, ValueError):
        return None
    return _unlisted(content.operations, content.functions)


def find_saved_operations(graphs: Iterable[Any]) -> tuple[list[tuple[str, str]], int]:
    """Find the same in all ``MetaGraphDef`` of a SavedModel, and count the different operations that they use.

    Operations that save and restore files are allowed in functions that only the saver calls.
    """
    effects: set[tuple[str, str]] = set()
    used: set[str] = set()
    for graph in graphs:
        operations = {node.op for node in all_nodes(graph.graph_def)}
        used |= operations
        if operations & CHECKPOINT:
            operations = operations - CHECKPOINT | (_beyond_saver(graph) & CHECKPOINT)
        effects |= set(
            _unlisted(operations, {function.signature.name for function in graph.graph_def.library.function})
        )
    return sorted(effects), len(used)


def _unlisted(operations: set[str], functions: set[str]) -> list[tuple[str, str]]:
    operations = operations - COMPUTING
    if operations & functions:
        start_tensorflow()
        from tensorflow.python.framework import op_def_registry

        # A node may call a function of the graph by its name; the nodes of that function are checked as all others.
        operations -= {name for name in functions if op_def_registry.get(name) is None}
    return [(name, describe_effect(name)) for name in sorted(operations)]


def _beyond_saver(graph: Any) -> set[str]:
    """Find the operations of all nodes and functions but those that only the saver runs."""
    nodes = {node.name: node for node in graph.graph_def.node}
    functions = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
    if len(nodes) < len(graph.graph_def.node) or len(functions) < len(graph.graph_def.library.function):
        return {
            node.op for node in all_nodes(graph.graph_def)
        }  # a repeated name does not show which of the two is meant
    saver = graph.saver_def
    savers = {node_name(name) for name in (saver.save_tensor_name, saver.restore_op_name, saver.filename_tensor_name)}
    only_saver = _needed(savers, nodes)
    named = {node_name(info.name) for signature in graph.signature_def.values() for info in signature.outputs.values()}
    named |= {node_name(name) for collection in graph.collection_def.values() for name in collection.node_list.value}
    other_nodes = _needed((set(nodes) - only_saver) | named, nodes)
    saver_functions = _called([nodes[name] for name in only_saver - other_nodes], functions)
    other_functions = _called([nodes[name] for name in other_nodes], functions)
    entries = (set(functions) - saver_functions) | set(graph.object_graph_def.concrete_functions)
    other_functions |= _called([node for name in entries for node in functions.get(name, ())], functions) | entries
    return {nodes[name].op for name in other_nodes} | {
        node.op for name in other_functions for node in functions.get(name, ())
    }


def _needed(names: set[str], nodes: Mapping[str, Any]) -> set[str]:
    """Find the nodes of these names and all nodes that they depend on."""
    return set(
        reachable(
            names & nodes.keys(),
            lambda name: (source for source in map(node_name, nodes[name].input) if source in nodes),
        )
    )


def _called(nodes: Iterable[Any], functions: Mapping[str, Any]) -> set[str]:
    """Find the functions that nodes call, and those that these call in turn."""

    def names(callers: Iterable[Any]) -> set[str]:
        called = {node.op for node in callers}
        for value in (value for node in callers for value in node.attr.values()):
            called |= {value.func.name} | {function.name for function in value.list.func}
        return called & functions.keys()

    return set(reachable(names(nodes), lambda name: names(functions[name])))
