"""The steps of a build that talk to TensorRT: parse, check, configure, watch, interrupt.

Ctrl-C during a call into a C++ library that calls back into Python, where an exception would be swallowed.

The same holds for SIGTERM where the program has a handler of its own for it. Standard library only, Python 3.10 syntax.

The steps of a build that talk to TensorRT: parse, check, configure, watch. `export.tensorrt.build` puts them together.

Python 3.10 syntax, no package needed but TensorRT, which comes in as an argument.
"""

import collections
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from export.errors import ProjectError
from export.tensorrt.layers import ANY
from export.tensorrt.library import INSTALL, TensorRT
from export.tensorrt.options import BuildOptions
from export.tensorrt.sidecar import INPUT, OUTPUTS, TOP_OUTPUTS, BatchProfile, TensorInfo
from export.words import listed


@dataclass
class Interrupt:
    """Whether Ctrl-C was pressed, or SIGTERM arrived."""

    pressed: bool = False


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Note Ctrl-C and SIGTERM instead of handling them at once; what handles them does when the block has ended.

    Only the main thread gets signals: in another one, and where a signal is ignored or handled by the system, nothing
    is noted or changed.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, or whatever the handler of the signal raises.
    """
    interrupt = Interrupt()
    handlers = _handlers() if threading.current_thread() is threading.main_thread() else {}
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.pressed = True
        arrived.append(number)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield interrupt
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            handlers[arrived[0]](arrived[0], None)


def _handlers() -> dict[int, Callable[[int, FrameType | None], Any]]:
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    return {int(number): handler for number, handler in found.items() if callable(handler)}  # SIG_DFL is a number


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
    """Give the flags of a network: types from the ONNX file where that exists, an explicit batch where it does not."""
    name = "STRONGLY_TYPED" if trt.strongly_typed else "EXPLICIT_BATCH"
    return 1 << int(trt.member("NetworkDefinitionCreationFlag", name))


def parse(trt: TensorRT, network: Any, logger: Any, source: Path) -> Any:
    """Read an ONNX file into a network.

    Returns:
        The parser, which owns the weights and has to live until the engine is built.

    Raises:
        ProjectError: with the parser's own words.
    """
    parser = trt.module.OnnxParser(network, logger)
    logger.clear()
    if not parser.parse_from_file(str(source)):
        words = []
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            where = [str(getattr(error, name)()) for name in ("node_name", "node_operator") if hasattr(error, name)]
            named = ", ".join(part for part in where if part)
            words.append(f"{error.desc()} (node {error.node()}{': ' + named if named else ''})")
        raise ProjectError(
            f"Expected an ONNX graph that {trt.flavour} {trt.version} can read. "
            f"Received: {source}: {listed(words, separator='; ') or logger.lines()}. "
            "Export it again; if an operator is named, TensorRT does not have it."
        )
    return parser


def check_tensors(network: Any, profile: BatchProfile, source: Path) -> tuple[TensorInfo, ...]:
    """Check inputs and outputs and list them for the sidecar, the input first; shapes hold -1 for the batch."""
    inputs = [_tensor(network.get_input(index), "input") for index in range(network.num_inputs)]
    outputs = [_tensor(network.get_output(index), "output") for index in range(network.num_outputs)]
    fits = (
        [tensor.name for tensor in inputs] == [INPUT]
        and _outputs_fit(outputs)
        and inputs[0].dtype == "uint8"
        and len(inputs[0].shape) == 4
        and inputs[0].shape[0] == -1
        and min(inputs[0].shape[1:]) > 0
        and inputs[0].shape[3] == 3
    )
    if not fits:
        had = ", ".join(f"{one.name} {one.dtype} {list(one.shape)}" for one in [*inputs, *outputs]) or "an empty graph"
        raise ProjectError(
            f"Expected the input {INPUT} uint8 [-1, height, width, 3] and the outputs "
            f"{' and '.join(OUTPUTS)} float32 [-1, classes], with {TOP_OUTPUTS[0]} float32 and {TOP_OUTPUTS[1]} int32 "
            f"[-1, k] or without. Received: {source}: {had}. Export the model with this project."
        )
    shapes = {name: (size, *inputs[0].shape[1:]) for name, size in asdict(profile).items()}
    return (replace(inputs[0], profile=shapes), *outputs)


def _tensor(tensor: Any, mode: Literal["input", "output"]) -> TensorInfo:
    return TensorInfo(tensor.name, _dtype(tensor), tuple(int(size) for size in tensor.shape), mode)


def _outputs_fit(outputs: Sequence[TensorInfo]) -> bool:
    found = {one.name: (one.dtype, list(one.shape)) for one in outputs}
    classes = found.get(OUTPUTS[0], ("", []))[1][-1:]
    expected = {name: ("float32", [-1, *classes]) for name in OUTPUTS}
    k = found.get(TOP_OUTPUTS[0], ("", []))[1][-1:]
    if k:
        expected |= {name: (dtype, [-1, *k]) for name, dtype in zip(TOP_OUTPUTS, ("float32", "int32"))}
    return found == expected and [1] <= (k or classes) <= classes


def _dtype(tensor: Any) -> str:
    name = _member_name(tensor.dtype)
    return _DTYPES.get(name, name.lower())


def _member_name(member: Any) -> str:
    return str(member).rsplit(".", 1)[-1]


def _layers(network: Any) -> Iterator[tuple[Any, str]]:
    """Give each layer of a network and its kind, such as "CONVOLUTION"."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return ((layer, _member_name(layer.type)) for layer in layers)


def count_layers(trt: TensorRT, network: Any, precision: str, source: Path) -> dict[str, int]:
    """Count the parsed layers by kind; refuse a graph whose types are not those of the asked precision."""
    kinds: collections.Counter[str] = collections.Counter()
    half = False
    for layer, kind in _layers(network):
        kinds[kind] += 1
        half = half or any(_dtype(layer.get_output(at)) == "float16" for at in range(layer.num_outputs))
    quantized = kinds["QUANTIZE"] + kinds["DEQUANTIZE"] > 0
    had = " and ".join((["FP16 tensors"] if half else []) + (["Q/DQ pairs"] if quantized else [])) or "FP32 only"
    wrong = {
        "fp32": half or quantized,
        "fp16": quantized or (trt.strongly_typed and not half),
        "int8": not quantized,
    }[precision]
    if wrong:
        need = {"fp32": "an FP32 graph", "fp16": "an FP16-typed graph", "int8": "a graph with Q/DQ pairs"}[precision]
        raise ProjectError(
            f"Expected {need} for precision {precision}: the types come from the ONNX file. "
            f"Received: {source} with {had}. Give the file that the quantize stage wrote for {precision}."
        )
    return dict(kinds.most_common())


def convolution_types(trt: TensorRT, network: Any, precision: str) -> dict[str, str]:
    """Give the type that is asked of each convolution, by the name of its ONNX node: "int8", "fp16", "fp32" or "any".

    A convolution behind a DequantizeLinear is asked for in INT8. TensorRT 8.6, which knows no typed graph, may choose
    for what an INT8 engine leaves in float.
    """
    float_type = {"fp32": "fp32", "fp16": "fp16", "int8": ANY}[precision]
    kinds: dict[str, str] = {}
    asked: dict[str, str] = {}
    for layer, kind in _layers(network):
        if kind == "CONVOLUTION":
            source = layer.get_input(0)
            if trt.strongly_typed:
                float_type = "fp16" if _dtype(source) == "float16" else "fp32"
            asked[layer.name] = "int8" if kinds.get(source.name) == "DEQUANTIZE" else float_type
        for at in range(layer.num_outputs):
            kinds[layer.get_output(at).name] = kind
    return asked


def configure(
    trt: TensorRT, builder: Any, config: Any, precision: str, options: BuildOptions, targets: Sequence[str]
) -> list[str]:
    """Set the options; return the names of the builder flags that are on."""
    flags = []
    if not trt.strongly_typed:  # 8.6: permissions; an INT8 engine needs FP16 for what is not quantised
        flags += {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"]}[precision]
        _keep_out_external_tactics(trt, config)
        _share_profiles(trt, config)
    if options.tf32:
        flags.append("TF32")
    else:
        config.clear_flag(trt.member("BuilderFlag", "TF32"))
    if trt.user_allocation:  # our runner gives all memory, and CUDA graphs need an engine that allocates nothing itself
        flags.append("REQUIRE_USER_ALLOCATION")
    if options.version_compatible:
        flags.append("VERSION_COMPATIBLE")
    if options.strip_weights:  # the very same weights come back, which needs no slower, fully refittable engine
        flags += ["STRIP_PLAN", "REFIT_IDENTICAL"]
    for name in flags:
        config.set_flag(trt.member("BuilderFlag", name))
    config.profiling_verbosity = trt.member("ProfilingVerbosity", "DETAILED")
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.member("MemoryPoolType", "WORKSPACE"), options.workspace_mib << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.hardware_compatibility != "none":
        level = options.hardware_compatibility.upper()
        config.hardware_compatibility_level = trt.member("HardwareCompatibilityLevel", level)
    if options.max_aux_streams is not None:
        config.max_aux_streams = options.max_aux_streams
    if options.builder_threads is not None:
        builder.max_threads = options.builder_threads
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            member = trt.member("ComputeCapability", f"SM{target.replace('.', '')}")
            if not config.set_compute_capability(member, index):
                raise ProjectError(f"Expected a target that {trt.flavour} {trt.version} takes. Received: {target}.")
    return flags


def _keep_out_external_tactics(trt: TensorRT, config: Any) -> None:
    """Make cuDNN and cuBLAS unnecessary where TensorRT (8.6) would load them."""
    if not trt.has("PreviewFeature", "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805"):
        return
    config.set_preview_feature(trt.member("PreviewFeature", "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805"), True)
    sources = 0
    for name in ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"):
        sources |= 1 << int(trt.member("TacticSource", name))
    if not config.set_tactic_sources(sources):
        raise ProjectError(
            f"Expected {trt.flavour} {trt.version} to build without cuDNN and cuBLAS. Received: it refuses the "
            f"tactic sources {sources}. Install another TensorRT: {INSTALL['tensorrt']}."
        )


def _share_profiles(trt: TensorRT, config: Any) -> None:
    """Let several execution contexts use the one profile, as later versions do: the runner's CUDA graphs need it."""
    if trt.has("PreviewFeature", "PROFILE_SHARING_0806"):
        config.set_preview_feature(trt.member("PreviewFeature", "PROFILE_SHARING_0806"), True)


def add_profile(builder: Any, network: Any, config: Any, profile: BatchProfile, logger: Any) -> None:
    """Give the input its batch sizes."""
    image = [int(size) for size in network.get_input(0).shape][1:]
    shapes = builder.create_optimization_profile()
    shapes.set_shape(INPUT, *((size, *image) for size in (profile.min, profile.opt, profile.max)))
    if config.add_optimization_profile(shapes) < 0:
        raise ProjectError(
            f"Expected TensorRT to take the batch profile {asdict(profile)}. Received: {logger.lines()}."
        )


def make_monitor(trt: TensorRT, progress: Progress | None, interrupt: Interrupt) -> Any:
    """Make a progress monitor; without a listener too, so that Ctrl-C stops a build within a step."""
    base: Any = trt.module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.error: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.error is None and not interrupt.pressed

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self._steps.get(phase_name, 0))

        def _tell(self, phase: str, done: int) -> None:
            try:
                if progress is not None and self.error is None:
                    progress(phase, done, self._steps.get(phase, 0))
            except BaseException as error:  # must not travel through TensorRT's C++; build_engine raises it again
                self.error = error

    return Monitor()
