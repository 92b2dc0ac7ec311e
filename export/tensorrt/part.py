"""Build an engine of any graph, such as a part of a model with other inputs and outputs; see `build` for classifiers.

The module needs Python 3.10 alone; TensorRT is an argument.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.errors import ProjectError
from export.tensorrt.library import TensorRT
from export.tensorrt.network import configure, deferred_interrupt, make_monitor, network_flags, parse
from export.tensorrt.options import BuildOptions


def build_part(source: Path, shapes: Mapping[str, tuple[int, ...]], precision: str, trt: TensorRT) -> Any:
    """Build an engine for one shape of each input, with the default options, for the GPU of this machine.

    Args:
        source: ONNX file.
        shapes: Shape of each input by name.
        precision: "fp32", "fp16" or "int8": what TensorRT 8.6, which has no strongly typed networks, may use.
        trt: The library.

    Returns:
        The plan, as a buffer of bytes.

    Raises:
        ProjectError: TensorRT refused the graph; with its message.
    """
    with deferred_interrupt() as interrupts:
        logger = trt.logger()
        builder = trt.module.Builder(logger)
        network = builder.create_network(network_flags(trt))
        parser = parse(trt, network, logger, source)
        config = builder.create_builder_config()
        configure(trt, builder, config, precision, BuildOptions(), [])
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape, shape, shape)
        if config.add_optimization_profile(profile) < 0:
            raise ProjectError(f"Expected TensorRT to take the shapes {dict(shapes)}. Received: {logger.lines()}.")
        if trt.progress_monitor:
            config.progress_monitor = make_monitor(trt, None, interrupts)
        plan = builder.build_serialized_network(network, config)
        logger.raise_pending()
    del parser  # it owns the weights that the network refers to
    if plan is None:
        raise ProjectError(
            f"Expected {trt.flavour} {trt.version} to build {source.name} as {precision}. Received: {logger.lines()}."
        )
    return plan
