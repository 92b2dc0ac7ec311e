"""``python -m tests.ways``: the same photos through every way to an answer, which have to agree.

`infer`, `infer --engine ray`, Spark, the ensemble of a Triton repository, and both protocols of the server, each as a
person would start it. The Triton here is `tests.fakes.triton`, which is why this is no benchmark.

    .venv/bin/python -m tests.ways -c digits artifacts/digits/infer/images -o ways.json
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from benchmarks import telemetry
from export.files import ROOT, replacing_file
from export.records import to_json
from pipeline.artifacts.machine import versions_of
from pipeline.recipe.messages import EXTENSIONS

SCHEMA = 1  # of the record
REFERENCE = "infer"
PACKAGES = ("ray", "pyspark", "pandas", "fastapi", "uvicorn", "tritonclient")  # of the ways
AT_ONCE = 8  # requests to the server, and files in one of them
SECONDS = 600.0  # that a command may take


class Best(NamedTuple):
    """The best class of a photo and its probability; no class where there is no answer."""

    name: str | None
    probability: float


Answers = dict[str, Best]  # by the photo's name


class Comparison(NamedTuple):
    """How a way's answers compare with those of `infer`."""

    photos: int
    same: int  # best classes
    different: tuple[str, ...]  # names of photos with another one, or without a row
    largest_difference: float  # of the probabilities of the same best class
    seconds: float  # with start and end, for information


def compare(reference: Answers, answers: Answers, seconds: float = 0.0) -> Comparison:
    """Hold a way's answers against those of `infer`; a photo without a row differs, and so does one too many."""
    names = sorted(reference.keys() | answers.keys())
    different = tuple(
        name
        for name in names
        if name not in reference or name not in answers or reference[name].name != answers[name].name
    )
    pairs = [(reference[name], answers[name]) for name in names if name not in different]
    distances = [abs(one.probability - other.probability) for one, other in pairs if one.name is not None]
    return Comparison(len(names), len(pairs), different, max(distances, default=0.0), round(seconds, 1))


class Subject:
    """A recipe and photos, and every way to their answers.

    Args:
        options: that name the recipe on a command line.
        folder: of the photos.
        scratch: an empty folder.
    """

    def __init__(self, options: Sequence[str], folder: Path, scratch: Path) -> None:
        self.options, self.folder, self.scratch = list(options), folder.absolute(), scratch
        self.photos = sorted(path for path in self.folder.iterdir() if path.suffix.lower() in EXTENSIONS)
        assert self.photos, f"no photos in {folder}"
        self.recipe = str(self.pipeline("config")["recipe"])
        self.answered_by: dict[str, str] = {}  # by `infer`

    def pipeline(self, verb: str, *more: str) -> dict[str, Any]:
        """The JSON line of a verb."""
        command = [sys.executable, "-m", "pipeline", verb, *self.options, "--json", "-q", *more]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS)
        assert done.returncode in (0, 3), done.stderr  # 3: some photos have no answer
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def infer(self) -> Answers:
        output = self.scratch / "infer.parquet"
        done = self.pipeline("infer", str(self.folder), "-o", str(output))
        self.answered_by = {key: str(done[key]) for key in ("model", "backend", "verdict")}
        return from_parquet(output)

    def ray(self) -> Answers:
        output = self.scratch / "ray"
        self.pipeline("infer", str(self.folder), "-o", str(output), "--engine", "ray", "--workers", "2")
        return from_parquet(output)

    def spark(self) -> Answers:
        script = "import sys; from tests.ways import write_with_spark as write; write(*sys.argv[1:3], sys.argv[3:])"
        output = self.scratch / "spark"
        command = [sys.executable, "-c", script, str(self.folder), str(output), *self.options]
        environment = os.environ | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
        )
        assert done.returncode == 0, done.stderr
        images = {photo.name for photo in self.photos}  # Spark takes other files too
        return {name: best for name, best in from_parquet(output).items() if name in images}

    def triton(self) -> Answers:
        from tests.fakes.triton import run_ensemble

        output = self.scratch / "triton"
        self.pipeline("triton-repo", "-o", str(output))
        labels = (output / self.recipe / "labels.txt").read_text(encoding="utf-8").splitlines()

        def ask(photos: Sequence[Path]) -> Answers:
            rows = run_ensemble(output, f"{self.recipe}_files", [photo.read_bytes() for photo in photos])
            return {
                photo.name: Best(labels[int(row.argmax())], float(row.max()))
                for photo, row in zip(photos, rows["probabilities"])
            }

        try:
            return ask(self.photos)
        except Exception:  # a request with a photo that has no answer has none at all
            return {photo.name: self.alone(ask, photo) for photo in self.photos}

    def alone(self, ask: Callable[[Sequence[Path]], Answers], photo: Path) -> Best:
        """The answer to one photo, which may have none."""
        try:
            return ask([photo])[photo.name]
        except Exception:
            return Best(None, 0.0)

    def classify(self) -> Answers:
        with self.server() as host:
            local = http.client.HTTPConnection(host, timeout=SECONDS)

            def ask(photo: Path) -> Best:
                local.request("POST", "/classify?top_k=1", photo.read_bytes())
                answer = json.loads(local.getresponse().read())
                best = answer.get("classes", [{"class": None, "probability": 0.0}])[0]
                return Best(best["class"], best["probability"])

            return {photo.name: ask(photo) for photo in self.photos}

    def protocol(self) -> Answers:
        import tritonclient.http as client

        with self.server() as host:

            def ask(photo: Path) -> Best:
                asked = client.InferenceServerClient(host, connection_timeout=SECONDS, network_timeout=SECONDS)
                tensor = client.InferInput("files", [1, 1], "BYTES")
                tensor.set_data_from_numpy(np.array([[photo.read_bytes()]], object))
                best = client.InferRequestedOutput("probabilities", class_count=1)
                try:
                    answer = asked.infer(f"{self.recipe}_files", [tensor], outputs=[best]).as_numpy("probabilities")
                except Exception:
                    return Best(None, 0.0)
                finally:
                    asked.close()
                probability, _, label = bytes(answer.reshape(-1)[0]).decode().split(":", 2)
                return Best(label, float(probability))

            with ThreadPoolExecutor(AT_ONCE) as threads:
                return {photo.name: best for photo, best in zip(self.photos, threads.map(ask, self.photos))}

    @contextlib.contextmanager
    def server(self) -> Iterator[str]:
        """The address of a server of the recipe."""
        command = [sys.executable, "-m", "pipeline", "serve", *self.options, "--port", "0"]
        log = self.scratch / "serve.log"
        with log.open("w") as file, subprocess.Popen(command, cwd=ROOT, stderr=file, stdout=file) as process:
            try:
                until = time.monotonic() + SECONDS
                while not (found := re.search(r"http://(\S+)/ ", log.read_text())):
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < until, log.read_text()
                    time.sleep(0.1)
                yield found[1]
            finally:
                process.terminate()
        assert process.returncode == 0, log.read_text()


def write_with_spark(folder: str, output: str, options: Sequence[str]) -> None:
    """Classify a folder with Spark in local mode, and write its rows as Parquet."""
    from pyspark.sql import SparkSession

    from pipeline.distributed.spark import classify_udf
    from pipeline.workflow.deployment import read_deployment

    args = parser_of_recipe().parse_args(options)
    deployment = read_deployment(args.config, artifacts=args.artifacts, overrides=args.overrides)
    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    files = spark.read.format("binaryFile").load(folder)
    answers = files.select("path", classify_udf(deployment)("content").alias("answer"))
    answers.select("path", "answer.*").write.parquet(output)
    spark.stop()


def from_parquet(path: Path) -> Answers:
    """The best classes in a Parquet file, or in a folder of them; a photo that is there twice is an error."""
    rows = pq.read_table(path, columns=["path", "class", "probability"]).to_pylist()
    answers = {Path(row["path"]).name: Best(row["class"], row["probability"] or 0.0) for row in rows}
    assert len(answers) == len(rows), f"{len(rows) - len(answers)} rows of {path} are there twice"
    return answers


WAYS: Mapping[str, Callable[[Subject], Answers]] = {
    REFERENCE: Subject.infer,
    "infer --engine ray": Subject.ray,
    "Spark predict_batch_udf": Subject.spark,
    "Triton ensemble": Subject.triton,
    "server, POST /classify": Subject.classify,
    "server, Open Inference Protocol": Subject.protocol,
}


def parser_of_recipe() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-c", "--config", default="digits")
    parser.add_argument("--artifacts", default="artifacts")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Compare every way, write what was found; 1 where any answer differs."""
    parser = argparse.ArgumentParser("python -m tests.ways", parents=[parser_of_recipe()], description=__doc__)
    parser.add_argument("photos", type=Path, help="a folder")
    parser.add_argument("-o", "--output", type=Path, help="write a record there")
    parser.add_argument("--only", action="append", choices=list(WAYS), help="this way alone; may be repeated")
    args = parser.parse_args(argv)
    options = ["-c", args.config, "--artifacts", args.artifacts]
    options += [word for override in args.overrides for word in ("--set", override)]
    answers: dict[str, tuple[Answers, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        subject = Subject(options, args.photos, Path(scratch))
        for way in [REFERENCE, *(way for way in WAYS if way != REFERENCE and way in (args.only or WAYS))]:
            began = time.perf_counter()
            answers[way] = WAYS[way](subject), time.perf_counter() - began
            comparison = compare(answers[REFERENCE][0], *answers[way])
            print(
                f"{way:<32} {comparison.same} of {comparison.photos}, {comparison.largest_difference:.1e}", flush=True
            )
    comparisons = {way: compare(answers[REFERENCE][0], *found) for way, found in answers.items()}
    if args.output is not None:
        record = {
            "schema": SCHEMA,
            "recipe": Path(args.config).stem,
            "answered_by": subject.answered_by,
            "machine": to_json(telemetry.machine()),
            "packages": versions_of(PACKAGES),
            "commit": telemetry.commit(),
            "ways": {way: comparison._asdict() for way, comparison in comparisons.items()},
        }
        with replacing_file(args.output) as path:
            path.write_text(json.dumps(record, indent=1) + "\n")
    return int(any(comparison.different for comparison in comparisons.values()))


if __name__ == "__main__":
    sys.exit(main())
