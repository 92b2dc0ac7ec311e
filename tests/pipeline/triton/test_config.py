"""Each `config.pbtxt` says what it is meant to: Triton's own schema reads it, and every field is looked at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format

from pipeline.data.decode import DecodeSpec
from pipeline.triton.batching import Batching, Number
from pipeline.triton.config import Serving, classifier_config, decoder_config, ensemble_config
from pipeline.triton.model_file import ModelFile, Tensor
from tests.fakes.triton import schema

PIXELS = Tensor("images", "TYPE_UINT8", (16, 24, 3))
ANSWERS = (Tensor("logits", "TYPE_FP32", (4,)), Tensor("probabilities", "TYPE_FP32", (4,)))
BATCHING = Batching(Number(32, "a recipe"), Number(8, "a benchmark"), Number(450, "an image alone"))
SERVING = Serving(
    "a.b-c", "onnxruntime", ModelFile(PIXELS, ANSWERS), BATCHING, DecodeSpec((16, 24), "pad"), 1000, 2, 3
)  # fmt: skip
INPUT = {"name": "images", "data_type": "TYPE_UINT8", "dims": ["16", "24", "3"]}
OUTPUT = [
    {"name": name, "data_type": "TYPE_FP32", "dims": ["4"], "label_filename": "labels.txt"}
    for name in ("logits", "probabilities")
]
FILES = {"name": "files", "data_type": "TYPE_STRING", "dims": ["1"]}
VERSION = {"specific": {"versions": ["1"]}}


def parsed(text: str) -> Any:
    return text_format.Parse(text, schema().ModelConfig())


def fields(text: str) -> dict[str, Any]:
    return json_format.MessageToDict(parsed(text), preserving_proto_field_name=True)


def warmup(size: int) -> dict[str, Any]:
    values = {key: value for key, value in INPUT.items() if key != "name"}
    return {"name": f"batch of {size}", "batch_size": size, "inputs": {"images": {**values, "zero_data": True}}}


def test_a_file_on_the_cpu() -> None:
    assert fields(classifier_config(SERVING)) == {
        "name": "a.b-c",
        "platform": "onnxruntime_onnx",
        "max_batch_size": 32,
        "input": [INPUT],
        "output": OUTPUT,
        "version_policy": VERSION,
        "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
        "dynamic_batching": {"preferred_batch_size": [8], "max_queue_delay_microseconds": "450"},
        "model_warmup": [warmup(1), warmup(8)],
    }


def test_a_file_that_is_computed_as_it_stands_has_no_graph_optimizations() -> None:
    exact = replace(SERVING, file=replace(SERVING.file, exact=True))
    assert fields(classifier_config(exact))["optimization"] == {"graph": {"level": 2}}
    on_gpu = fields(classifier_config(replace(exact, backend="onnxruntime-cuda")))["optimization"]
    assert on_gpu["graph"] == {"level": 2}


def test_a_file_on_a_gpu_computes_fp32_in_fp32() -> None:
    config = fields(classifier_config(replace(SERVING, backend="onnxruntime-cuda")))
    assert config["platform"] == "onnxruntime_onnx"
    assert config["instance_group"] == [{"count": 2, "kind": "KIND_GPU"}]
    (accelerator,) = config["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
    assert accelerator == {"name": "cuda", "parameters": {"use_tf32": "0"}}
    assert "graph" not in config["optimization"]


def test_an_engine() -> None:
    best = (Tensor("top_probabilities", "TYPE_FP32", (2,)), Tensor("top_classes", "TYPE_INT32", (2,)))
    file = ModelFile(PIXELS, (*ANSWERS, *best))
    config = fields(classifier_config(replace(SERVING, backend="tensorrt", file=file)))
    assert config["platform"] == "tensorrt_plan"
    assert config["instance_group"] == [{"count": 2, "kind": "KIND_GPU"}]
    assert config["output"] == [  # a label belongs to a class, not to a place among the best
        *OUTPUT,
        {"name": "top_probabilities", "data_type": "TYPE_FP32", "dims": ["2"]},
        {"name": "top_classes", "data_type": "TYPE_INT32", "dims": ["2"]},
    ]
    assert "optimization" not in config


def test_where_no_batch_is_faster_nothing_waits_and_one_size_is_warmed_up() -> None:
    alone = replace(SERVING, batching=replace(BATCHING, preferred=Number(1, "x"), delay=Number(0, "y")))
    config = parsed(classifier_config(alone))
    assert list(config.dynamic_batching.preferred_batch_size) == []
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert [sample.batch_size for sample in config.model_warmup] == [1]


def test_the_step_that_decodes() -> None:
    config = fields(decoder_config(SERVING, {"more": 'a "quoted" \\ word\nand a line'}))
    decode = config["parameters"].pop("decode")["string_value"]
    assert config == {
        "name": "a.b-c_decode",
        "backend": "python",
        "max_batch_size": 32,
        "input": [FILES],
        "output": [INPUT],
        "version_policy": VERSION,
        "instance_group": [{"count": 3, "kind": "KIND_CPU"}],
        "parameters": {
            "largest_file": {"string_value": "1000"},
            "more": {"string_value": 'a "quoted" \\ word\nand a line'},
        },
    }
    assert '"size": [16, 24], "resize": "pad"' in decode


def test_the_ensemble_decodes_and_then_classifies() -> None:
    assert fields(ensemble_config(SERVING)) == {
        "name": "a.b-c_files",
        "platform": "ensemble",
        "max_batch_size": 32,
        "input": [FILES],
        "output": OUTPUT,
        "version_policy": VERSION,
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": "a.b-c_decode",
                    "model_version": "1",
                    "input_map": {"files": "files"},
                    "output_map": {"images": "images"},
                },
                {
                    "model_name": "a.b-c",
                    "model_version": "1",
                    "input_map": {"images": "images"},
                    "output_map": {"logits": "logits", "probabilities": "probabilities"},
                },
            ]
        },
    }


@pytest.mark.parametrize("make", [classifier_config, ensemble_config, lambda serving: decoder_config(serving, {})])
def test_each_number_says_where_it_comes_from(make: Any) -> None:
    assert "# a recipe\nmax_batch_size: 32\n" in make(SERVING)


def test_the_name_of_a_machine_cannot_end_its_comment() -> None:
    odd = 'an odd machine\nname: "other"\r# \u2028max_batch_size: 7'
    text = classifier_config(replace(SERVING, batching=replace(BATCHING, preferred=Number(8, odd))))
    assert fields(text) == fields(classifier_config(SERVING))
    assert '  # an odd machine name: "other" # max_batch_size: 7\n' in text


def test_an_unknown_field_does_not_parse(tmp_path: Path) -> None:
    with pytest.raises(text_format.ParseError, match="max_batch"):
        parsed(classifier_config(SERVING).replace("max_batch_size", "max_batch"))
