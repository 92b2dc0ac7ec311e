"""Every name that Keras could look up for a model file is on a reviewed list, or refused."""

from __future__ import annotations

import inspect
import os
import re

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
from keras.src import api_export
from keras.src import layers as keras3_layers

from pipeline.keras_files.allowed_names import FUNCTIONS, KNOWN_LAYERS, OPERATIONS, PARTS
from pipeline.keras_files.code_scan import scan_part

tf_keras = pytest.importorskip("tf_keras")
from tensorflow.python.util import tf_export  # noqa: E402 - filled by tf_keras
from tf_keras.src.layers import serialization as keras2_layers  # noqa: E402

# What a function that reaches outside asks for: a path, an address, something to call, a way to build things.
ASKS = re.compile(
    r"file|path|fname|dir|url|origin|fn$|func|callable|cell$|custom_objects|config$|operation$|vocab|module|session"
)
HARMLESS = {"direction"}


def operation(name: str) -> list[str]:
    node = {"class_name": "TFOpLambda", "config": {"name": "x", "function": name}}
    return [finding.name for finding in scan_part(node, is_layer=True)]


def test_every_function_of_tensorflow_is_reviewed_or_refused_by_name() -> None:
    known = tf_export._NAME_TO_SYMBOL_MAPPING
    assert len(known) > 8000
    passed = {name for name in known if not operation(name)}
    assert {name.removeprefix("compat.v1.") for name in passed} == FUNCTIONS, "the list has names that do not exist"
    assert all(operation(name) == [name] for name in known.keys() - passed)
    for name in passed:
        assert inspect.isroutine(known[name]), f"{name} is no function"
        asks = set(inspect.signature(known[name]).parameters) - HARMLESS
        assert not [a for a in asks if ASKS.search(a)], f"{name} takes {asks}"


MORE = """
    keras.models.model_from_json keras.models.load_model keras.models.clone_model keras.utils.get_file
    keras.utils.save_img keras.utils.load_img keras.preprocessing.image.save_img keras.preprocessing.image.load_img
    keras.saving.deserialize_keras_object keras.utils.deserialize_keras_object keras.layers.deserialize
    keras.activations.deserialize keras.backend.map_fn keras.backend.rnn keras.backend.set_value keras.backend.function
    keras.__internal__.enable_unsafe_deserialization __internal__.enable_unsafe_deserialization
    nn.fixed_unigram_candidate_sampler random.fixed_unigram_candidate_sampler compat.v1.nn.raw_rnn
    io.write_file io.read_file compat.v1.write_file compat.v1.read_file load_library load_op_library py_function
    numpy_function map_fn while_loop cond custom_gradient import_graph_def saved_model.load raw_ops.WriteFile
    math.does_not_exist compat.v1.compat.v1.abs keras.activations.get
"""


@pytest.mark.parametrize("name", MORE.split())
def test_functions_that_do_more_than_compute_are_refused(name: str) -> None:
    assert operation(name) == [name]


def bases(package) -> tuple[type, ...]:
    return (
        package.layers.Layer,
        package.initializers.Initializer,
        package.regularizers.Regularizer,
        package.constraints.Constraint,
        package.optimizers.Optimizer,
        package.optimizers.schedules.LearningRateSchedule,
        package.losses.Loss,
        package.metrics.Metric,
    )


KERAS3 = (*bases(keras), keras.Operation, keras.Quantizer, keras.DTypePolicy, keras.InputSpec)
KERAS3 += (keras.src.quantizers.quantization_config.QuantizationConfig,)
KERAS2 = (*bases(tf_keras), tf_keras.optimizers.legacy.Optimizer, tf_keras.mixed_precision.Policy)
KERAS2 += (
    tf_keras.layers.InputSpec,
    tf_keras.mixed_precision.LossScaleOptimizer,
)


@pytest.mark.parametrize(
    ("names", "allowed"),
    [(api_export.REGISTERED_NAMES_TO_OBJS, KERAS3), (tf_export._NAME_TO_SYMBOL_MAPPING, KERAS2)],
    ids=["keras", "tf_keras"],
)
def test_every_public_name_of_keras_is_a_known_part_or_refused(names: dict, allowed: tuple[type, ...]) -> None:
    passed = 0
    for full, found in names.items():
        if not full.startswith("keras."):
            continue
        module, _, name = full.rpartition(".")
        as_class = {"class_name": name, "module": module, "config": {}, "registered_name": None}
        if not scan_part(as_class, is_layer=False):
            passed += 1
            assert name in KNOWN_LAYERS | PARTS | OPERATIONS
            assert inspect.isclass(found), full
            assert issubclass(found, allowed) or module == "keras.optimizers.legacy", full
        as_function = {"class_name": "function", "module": module, "config": name, "registered_name": name}
        if not scan_part(as_function, is_layer=False):
            assert re.fullmatch(r"keras\.(activations|losses|metrics)", module), full
            assert name not in ("get", "serialize", "deserialize")
    assert passed > 150


def test_names_without_a_module_find_classes_of_layers_only() -> None:
    """Files of Keras 1 and 2 name a class alone, and Keras looks in everything its module of layers has imported."""
    keras2_layers.populate_deserializable_objects()
    for names in (vars(keras3_layers), keras2_layers.LOCAL.ALL_OBJECTS):
        for name, found in names.items():
            if not scan_part({"class_name": name, "config": {}}, is_layer=True):
                assert inspect.isclass(found), name
                assert issubclass(found, (*KERAS3, *KERAS2)), name


def test_the_lists_name_what_exists_or_existed() -> None:
    now = {name for module in vars(keras.src.ops).values() if inspect.ismodule(module) for name in vars(module)}
    now |= {name for name, found in vars(keras.src.ops).items()}
    assert OPERATIONS - now <= {"HardSwish", "Identity"}
