"""The options of ``infer --engine ray``: what they ask for, and what is refused by its name; no Ray is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from export.errors import ProjectError
from export.files import ROOT
from pipeline.cli.infer_options import make_request, refuse_without_images
from pipeline.cli.verbs import build_parser
from pipeline.inference.request import Request
from pipeline.recipe.schema import Infer


def make(*options: str) -> Request:
    return make_request(build_parser().parse_args(["infer", "photos", "--engine", "ray", *options]), Infer())


def test_the_output_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert make().output == Path("predictions")
    asked = make("-o", str(tmp_path / "answers"), "--top-k", "3", "--threshold", "0.5", "--keep-damaged", "--restart")
    assert (asked.output, asked.format) == (tmp_path / "answers", "parquet")
    assert (asked.top_k, asked.threshold, asked.keep_damaged, asked.restart) == (3, 0.5, True, True)


@pytest.mark.parametrize("output", ["answers.csv", "answers.jsonl", "answers.parquet"])
def test_a_file_is_refused_with_the_name_of_a_folder(output: str) -> None:
    with pytest.raises(ProjectError, match=rf"Parquet parts, such as answers\. Received: {output}\.$"):
        make("-o", output)


def test_standard_output_is_refused() -> None:
    with pytest.raises(ProjectError, match=r"Expected a folder after -o with --engine ray.*Received: -\.$"):
        make("-o", "-")


@pytest.mark.parametrize(
    "options",
    [
        ("--embeddings", "a.parquet"),
        ("--sort-into", "folder"),
        ("--csv-safe",),
        ("--format", "csv"),
        ("--gpus", "all"),
        ("--shard-rows", "10"),
    ],
)
def test_what_one_process_does_is_refused_by_name(options: tuple[str, ...]) -> None:
    with pytest.raises(ProjectError, match=f"^Expected {options[0]} with --engine local. Received: {options[0]} with "):
        make(*options)


@pytest.mark.parametrize("options", [("--workers", "2"), ("--ray-address", "auto")])
def test_what_a_cluster_needs_is_refused_without_it(options: tuple[str, ...]) -> None:
    args = build_parser().parse_args(["infer", "photos", *options])
    with pytest.raises(ProjectError, match=f"^Expected {options[0]} with --engine ray. Received: {options[0]} with "):
        make_request(args, Infer())


def test_no_workers_are_refused() -> None:
    with pytest.raises(ProjectError, match=r"at least 1 after --workers\. Received: 0"):
        make("--workers", "0")


def test_a_cluster_without_images_is_refused() -> None:
    with pytest.raises(ProjectError, match="Expected images to classify with --engine"):
        refuse_without_images(build_parser().parse_args(["infer", "--engine", "ray"]))


def test_the_command_line_imports_neither_ray_nor_what_classifies() -> None:
    names = "('ray', 'pyarrow', 'pipeline.distributed')"
    code = f"import sys, pipeline.cli.commands; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout == "[]\n"
