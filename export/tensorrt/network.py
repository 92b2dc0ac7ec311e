"""Implement the steps of a build that call TensorRT: parse, check, configure, monitor, interrupt.

`export.tensorrt.build` combines them. Ctrl-C and SIGTERM are deferred during a build, because TensorRT's C++ would
swallow an exception in its callbacks. The module needs Python 3.10 alone; TensorRT is an argument.
"""

import collections
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Literal

from export.errors import ProjectError
from export.tensorrt.layers import ANY
from export.tensorrt.library import INSTALL, TensorRT
from export.tensorrt.options import BuildOptions
from export.tensorrt.sidecar import INPUT, OUTPUTS, TOP_OUTPUTS, BatchProfile, TensorInfo
from export.words import listed


@contextmanager
def deferred_interrupt() -> Iterator[Sequence[int]]:
    """Record Ctrl-C and SIGTERM instead of handling them at once; their handler runs when the block has ended.

    Only the main thread gets signals: in another thread, and for a signal that is ignored or handled by the system,
    nothing is recorded or changed.

    Yields:
        Sequence[int]: the signals that have arrived so far.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, or whatever the handler of the signal raises.
    """
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    # SIG_DFL and SIG_IGN are numbers.
    handlers = {int(number): handler for number in signals if callable(handler := signal.getsignal(number))}
    arrived: list[int] = []
    for number in handlers:
        signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield arrived
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            handlers[arrived[0]](arrived[0], None)


Progress = Callable[[str, int, int], None]

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


def network_flags(trt: TensorRT) -> int:
    """Return the creation flags of a network: strongly typed where that exists, else with an explicit batch."""
    name = "STRONGLY_TYPED" if trt.strongly_typed else "EXPLICIT_BATCH"
    return 1 << int(trt.member("NetworkDefinitionCreationFlag", name))


def parse(trt: TensorRT, network: Any, logger: Any, source: Path) -> Any:
    """Read an ONNX file into a network.

    Returns:
        The parser, which owns the weights and has to live until the engine is built.

    Raises:
        ProjectError: the parser refused; with its messages.
    """
    parser = trt.module.OnnxParser(network, logger)
    logger.clear()
    if not parser.parse_from_file(str(source)):
        messages = []
        for error in map(parser.get_error, range(parser.num_errors)):
            names = [str(getattr(error, name)()) for name in ("node_name", "node_operator") if hasattr(error, name)]
            node = ": ".join(filter(None, (str(error.node()), ", ".join(filter(None, names)))))
            messages.append(f"{error.desc()} (node {node})")
        raise ProjectError(
            f"Expected an ONNX graph that {trt.flavour} {trt.version} can read. "
            f"Received: {source}: {listed(messages, separator='; ') or logger.lines()}. "
            "Export it again; if an operator is named, TensorRT does not have it."
        )
    return parser


def check_tensors(network: Any, profile: BatchProfile, source: Path) -> tuple[TensorInfo, ...]:
    """Check inputs and outputs and return them for the sidecar, the input first; the batch is -1 in the shapes."""
    inputs = [_tensor(network.get_input(index), "input") for index in range(network.num_inputs)]
    outputs = [_tensor(network.get_output(index), "output") for index in range(network.num_outputs)]
    if not (
        [tensor.name for tensor in inputs] == [INPUT]
        and _outputs_fit(outputs)
        and inputs[0].dtype == "uint8"
        and len(inputs[0].shape) == 4
        and inputs[0].shape[0] == -1
        and min(inputs[0].shape[1:]) > 0
        and inputs[0].shape[3] == 3
    ):
        tensors = ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in [*inputs, *outputs])
        raise ProjectError(
            f"Expected the input {INPUT} uint8 [-1, height, width, 3] and the outputs "
            f"{' and '.join(OUTPUTS)} float32 [-1, classes], with {TOP_OUTPUTS[0]} float32 and {TOP_OUTPUTS[1]} int32 "
            f"[-1, k] or without. Received: {source}: {tensors or 'an empty graph'}. "
            "Export the model with this project."
        )
    shapes = {name: (size, *inputs[0].shape[1:]) for name, size in asdict(profile).items()}
    return (replace(inputs[0], profile=shapes), *outputs)


def _tensor(tensor: Any, mode: Literal["input", "output"]) -> TensorInfo:
    return TensorInfo(tensor.name, _dtype(tensor), tuple(int(size) for size in tensor.shape), mode)


def _outputs_fit(outputs: Sequence[TensorInfo]) -> bool:
    tensors = {tensor.name: (tensor.dtype, list(tensor.shape)) for tensor in outputs}
    classes = tensors.get(OUTPUTS[0], ("", []))[1][-1:]
    expected = {name: ("float32", [-1, *classes]) for name in OUTPUTS}
    k = tensors.get(TOP_OUTPUTS[0], ("", []))[1][-1:]
    if k:
        expected |= {name: (dtype, [-1, *k]) for name, dtype in zip(TOP_OUTPUTS, ("float32", "int32"))}
    return tensors == expected and [1] <= (k or classes) <= classes


def _dtype(tensor: Any) -> str:
    name = _member_name(tensor.dtype)
    return _DTYPES.get(name, name.lower())


def _member_name(member: Any) -> str:
    return str(member).rsplit(".", 1)[-1]


def _layers(network: Any) -> Iterator[tuple[Any, str]]:
    """Return each layer of a network with its kind, such as "CONVOLUTION"."""
    return ((layer, _member_name(layer.type)) for layer in map(network.get_layer, range(network.num_layers)))


def count_layers(trt: TensorRT, network: Any, precision: str, source: Path) -> dict[str, int]:
    """Count the parsed layers by kind; refuse a graph whose types are not those of the requested precision."""
    layers = list(_layers(network))
    kinds = collections.Counter(kind for _, kind in layers)
    half = any(_dtype(layer.get_output(at)) == "float16" for layer, _ in layers for at in range(layer.num_outputs))
    quantized = kinds["QUANTIZE"] + kinds["DEQUANTIZE"] > 0
    expected, fits = {
        "fp32": ("an FP32 graph", not half and not quantized),
        "fp16": ("an FP16-typed graph", not quantized and (half or not trt.strongly_typed)),
        "int8": ("a graph with Q/DQ pairs", quantized),
    }[precision]
    if not fits:
        types = " and ".join((["FP16 tensors"] if half else []) + (["Q/DQ pairs"] if quantized else [])) or "FP32 only"
        raise ProjectError(
            f"Expected {expected} for precision {precision}: the types come from the ONNX file. "
            f"Received: {source} with {types}. Give the file that the quantize stage wrote for {precision}."
        )
    return dict(kinds.most_common())


def convolution_types(trt: TensorRT, network: Any, precision: str) -> dict[str, str]:
    """Return the requested type of each convolution, by its ONNX node: "int8", "fp16", "fp32" or "any".

    A convolution after a DequantizeLinear is requested in INT8. TensorRT 8.6, which has no typed networks, may choose
    the type of what an INT8 engine leaves in float.
    """
    float_type = {"fp32": "fp32", "fp16": "fp16", "int8": ANY}[precision]
    kinds: dict[str, str] = {}
    requested: dict[str, str] = {}
    for layer, kind in _layers(network):
        if kind == "CONVOLUTION":
            source = layer.get_input(0)
            if trt.strongly_typed:
                float_type = "fp16" if _dtype(source) == "float16" else "fp32"
            requested[layer.name] = "int8" if kinds.get(source.name) == "DEQUANTIZE" else float_type
        kinds.update((layer.get_output(at).name, kind) for at in range(layer.num_outputs))
    return requested


def activations_behind(network: Any) -> dict[str, str]:
    """Return the activation behind each convolution that has one: the ONNX node of both.

    Between them may be what TensorRT fuses into a convolution: a bias, a scale, the Add of a residual block. A tensor
    with several readers ends the walk.
    """
    readers: dict[str, list[tuple[Any, str]]] = collections.defaultdict(list)
    for layer, kind in _layers(network):
        # Beyond the last input, and for one that is left out, it is None.
        for source in takewhile(lambda tensor: tensor is not None, map(layer.get_input, count())):
            readers[source.name].append((layer, kind))
    found = {}
    for convolution, _ in (entry for entry in _layers(network) if entry[1] == "CONVOLUTION"):
        tensor = convolution.get_output(0).name
        while len(readers[tensor]) == 1:
            layer, kind = readers[tensor][0]
            if kind == "ACTIVATION":
                found[convolution.name] = layer.name
            if kind not in ("ELEMENTWISE", "SCALE"):
                break
            tensor = layer.get_output(0).name
    return found


def configure(
    trt: TensorRT, builder: Any, config: Any, precision: str, options: BuildOptions, targets: Sequence[str]
) -> list[str]:
    """Set the options; return the names of the builder flags that are on."""
    switches = {
        "TF32": options.tf32,
        "REQUIRE_USER_ALLOCATION": trt.user_allocation,  # our runner gives all memory, which CUDA graphs need
        "VERSION_COMPATIBLE": options.version_compatible,
        "STRIP_PLAN": options.strip_weights,
        "REFIT_IDENTICAL": options.strip_weights,  # the same weights come back, without a slower, refittable engine
    }
    flags = [name for name, on in switches.items() if on]
    if not trt.strongly_typed:  # 8.6: permissions; an INT8 engine needs FP16 for what is not quantised
        flags = {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"]}[precision] + flags
        _set_preview_features(trt, config)
    if not options.tf32:
        config.clear_flag(trt.member("BuilderFlag", "TF32"))
    for name in flags:
        config.set_flag(trt.member("BuilderFlag", name))
    config.profiling_verbosity = trt.member("ProfilingVerbosity", "DETAILED")
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.member("MemoryPoolType", "WORKSPACE"), options.workspace_mib << 20)
    if options.hardware_compatibility != "none":
        config.hardware_compatibility_level = trt.member(
            "HardwareCompatibilityLevel", options.hardware_compatibility.upper()
        )
    for owner, attribute, value in (
        (config, "builder_optimization_level", options.optimization_level),
        (config, "max_aux_streams", options.max_aux_streams),
        (builder, "max_threads", options.builder_threads),
    ):
        if value is not None:
            setattr(owner, attribute, value)
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            if not config.set_compute_capability(
                trt.member("ComputeCapability", f"SM{target.replace('.', '')}"), index
            ):
                raise ProjectError(f"Expected a target that {trt.flavour} {trt.version} takes. Received: {target}.")
    return flags


def _set_preview_features(trt: TensorRT, config: Any) -> None:
    """Let TensorRT 8.6 share profiles and do without cuDNN and cuBLAS, as later versions do.

    Several execution contexts use the one profile in the runner's CUDA graphs.
    """
    if trt.has("PreviewFeature", "PROFILE_SHARING_0806"):
        config.set_preview_feature(trt.member("PreviewFeature", "PROFILE_SHARING_0806"), True)
    if trt.has("PreviewFeature", "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805"):
        config.set_preview_feature(trt.member("PreviewFeature", "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805"), True)
        names = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
        sources = sum(1 << int(trt.member("TacticSource", name)) for name in names)
        if not config.set_tactic_sources(sources):
            raise ProjectError(
                f"Expected {trt.flavour} {trt.version} to build without cuDNN and cuBLAS. Received: it refuses the "
                f"tactic sources {sources}. Install another TensorRT: {INSTALL['tensorrt']}."
            )


def add_profile(builder: Any, network: Any, config: Any, profile: BatchProfile, logger: Any) -> None:
    """Add the batch sizes of the input to the builder's configuration."""
    image = [int(size) for size in network.get_input(0).shape][1:]
    shapes = builder.create_optimization_profile()
    shapes.set_shape(INPUT, *((size, *image) for size in (profile.min, profile.opt, profile.max)))
    if config.add_optimization_profile(shapes) < 0:
        raise ProjectError(
            f"Expected TensorRT to take the batch profile {asdict(profile)}. Received: {logger.lines()}."
        )


def make_monitor(trt: TensorRT, progress: Progress | None, interrupts: Sequence[int]) -> Any:
    """Make a progress monitor, also without ``progress``, so that Ctrl-C stops a build within a step.

    Args:
        trt: the library.
        progress: called with (phase, steps done, steps).
        interrupts: the signals that have arrived, see `deferred_interrupt`; the build stops when there is one.
    """
    base: Any = trt.module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.error: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return self.error is None and not interrupts

        def phase_finish(self, phase_name: str) -> None:
            self._report(phase_name, self._steps.get(phase_name, 0))

        def _report(self, phase: str, done: int) -> None:
            try:
                if progress is not None and self.error is None:
                    progress(phase, done, self._steps.get(phase, 0))
            except BaseException as error:  # must not pass through TensorRT's C++; build_engine raises it again
                self.error = error

    return Monitor()
