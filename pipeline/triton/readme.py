"""The README of a Triton model repository: what answers, what the server needs, how to start and ask it."""

from __future__ import annotations

from collections.abc import Mapping

from export.tensorrt.sidecar import Sidecar
from export.words import count
from pipeline.serving.protocol import FILES, PIXELS, decode_model, files_model
from pipeline.serving.select_model import Selection
from pipeline.triton.config import CONFIG, Serving

PACKAGES = ("pillow", "simplejpeg")  # that the step that decodes needs besides numpy


def server_needs(sidecar: Sidecar | None) -> list[str]:
    """Return what a server needs for an engine, a sentence each; nothing for an ONNX file."""
    if sidecar is None:
        return []
    version = sidecar.tensorrt_version
    needs = [f"An engine runs on the TensorRT that built it: take a Triton release with TensorRT {version}."]
    if sidecar.options.get("version_compatible"):
        needs = [
            f"The engine was built by TensorRT {version} to run on later versions too, with code of its own: start "
            "Triton with --backend-config=tensorrt,version-compatible=true."
        ]
    if sidecar.runs_on or sidecar.compute_capability:
        needs.append(f"It needs a GPU: {sidecar.runs_on or f'compute capability {sidecar.compute_capability}'}.")
    return needs


def readme(serving: Serving, choice: Selection, images: int, versions: Mapping[str, str]) -> str:
    """Return the text of README.md.

    Args:
        serving: what is served.
        choice: the file that classifies.
        images: test images that it was verified on.
        versions: of the packages here, by name.
    """
    name, batching = serving.name, serving.batching
    pins = " ".join(f"'{package}=={versions[package]}'" for package in PACKAGES if package in versions)
    needs = "".join(f"- {sentence}\n" for sentence in server_needs(serving.file.sidecar))
    height, width = serving.decode.size
    return f"""# {name} on Triton

`{choice.name}` ({choice.backend}, {choice.precision.upper()}) classifies. It passed verification on
{count(images, "test image")}; `repository.json` has the verdict's thresholds and hashes. This folder was written by
`python -m pipeline triton-repo`, which replaces it as long as nothing in it was changed.

| model | takes | gives |
|---|---|---|
| `{files_model(name)}` | `{FILES}`: BYTES (N, 1), image files | {_answers(serving)} |
| `{name}` | `{PIXELS}`: UINT8 (N, {height}, {width}, 3), RGB | the same |
| `{decode_model(name)}` | `{FILES}` | `{PIXELS}`: the first step of `{files_model(name)}` |

N is at most {batching.largest.value}. Each `{CONFIG}` says in comments where its numbers come from.

## Start

{needs}- `{decode_model(name)}` runs in the server's Python: `pip install {pins}` there
  (`pillow-heif` too, if clients send HEIC). It does not load where they decode to other pixels than those that were
  verified. It takes the numpy that is there; Triton up to 24.10 needs `numpy<2`.

```sh
tritonserver --model-repository=/path/to/this/folder
curl --fail-with-body localhost:8000/v2/models/{files_model(name)}/ready
```

## Ask

```sh
pip install 'tritonclient[http]'
python client.py photo.jpg --top-k 3
```

`logits` and `probabilities` have the classes in the order of `{name}/labels.txt`. A request with an image that cannot
be decoded gets an error that names it; others are answered.
"""


def _answers(serving: Serving) -> str:
    return ", ".join(
        f"`{tensor.name}`: {tensor.data_type.removeprefix('TYPE_')} (N, {', '.join(map(str, tensor.dims))})"
        for tensor in serving.file.answers
    )
