"""docs/int8.md: its snippets and commands run, and its formulas and numbers are those of the code."""

from __future__ import annotations

import json
import math
import re
import shlex
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from benchmarks import accuracy, gpu_evidence, int8_forms
from benchmarks.gpu.forms import MOST_SLOWER
from export.calibration import BINS, Histogram
from export.files import ROOT
from export.int8.choice import TIE_DB, WORST_DB
from export.int8.conv_inputs import POSITIONS
from export.int8.equalization import STRENGTHS
from export.int8.scales import INT8_MAX, METHODS, MINIMUM_SCALE, SHIFT_STEPS, clipping_point
from export.int8.search import QUICK
from export.int8.second_order import BLOCK, DAMPING, SAMPLES_BYTES
from pipeline.artifacts.paths import FORMS
from pipeline.recipe.schema import Quantize
from tests.conftest import Chain

PAGE = (ROOT / "docs" / "int8.md").read_text(encoding="utf-8")
SENTENCES = " ".join(PAGE.split())
QUANTIZE = ".venv/bin/python -m pipeline quantize -c digits"
BENCHMARKS = ".venv/bin/python -m benchmarks."
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
TENTHS = {7: "seven", 8: "eight", 9: "nine"}
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

# --- commands and snippets ---


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith(QUANTIZE)])
def test_every_command_of_quantize_is_taken(line: str, finished_chain: Chain) -> None:
    assert finished_chain.run("quantize", *shlex.split(line.removeprefix(QUANTIZE)), "--explain") == 0


def test_every_other_command_is_taken(chain: Chain, tmp_path: Path) -> None:
    others = [line for line in COMMANDS if not line.startswith(QUANTIZE)]
    assert [line.split()[2] for line in others] == [
        f"benchmarks.{name}" for name in ("accuracy", "int8_forms", "gpu_evidence")
    ]
    for line, module in zip(others, (accuracy, int8_forms)):
        assert module.build_parser().parse_args(line.split()[3:]).config == Path("digits")
    assert int8_forms.main(chain.arguments("")[1:]) == 0
    assert (chain.root / FORMS["trunk-fp16"]).is_file()
    (tmp_path / "page" / "artifacts").mkdir(parents=True)
    (tmp_path / "page" / "artifacts" / "digits").symlink_to(chain.root)
    with chdir(tmp_path / "page"):
        assert gpu_evidence.main(others[-1].split()[3:]) == 0


def test_every_key_of_the_search_is_named_with_its_values() -> None:
    for name in ("shift", "rounding", "rounding_images", "trunk", "effort", "method", "sensitivity"):
        assert hasattr(Quantize(), name)
        assert f"--set quantize.{name}=" in PAGE


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["shift", "second order"])
def test_a_snippet_runs_as_printed(snippet: str) -> None:
    exec(compile(snippet, "int8.md", "exec"), {})


# --- formulas ---


def half_normal(zeros: float = 0.0) -> tuple[Histogram, np.ndarray, np.ndarray]:
    """A histogram of absolute values up to 6, some of them 0; its bins' centres; the shares of values above 0."""
    centres = (np.arange(BINS) + 0.5) * 6.0 / BINS
    shares = np.exp(-(centres**2) / 2)
    shares *= (1 - zeros) / shares.sum()
    counts = shares * 1e12
    counts[0] += zeros * 1e12
    return Histogram(counts.astype(np.int64), 6.0), centres, shares


@pytest.mark.parametrize("zeros", [0.0, 0.6])
@pytest.mark.parametrize("steps", [INT8_MAX, INT8_MAX + SHIFT_STEPS])
def test_the_equation_of_the_mean_squared_error_gives_its_clipping_point(steps: int, zeros: float) -> None:
    histogram, x, shares = half_normal(zeros)

    def left(c: float) -> float:
        return float(shares[x > c] @ (x[x > c] - c) - c / (12 * steps**2) * shares[x <= c].sum())

    low, high = 1.0, 5.9  # left of the solution clipping costs more
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) > 0 else (low, middle)
    assert clipping_point(histogram, "mse", steps) == pytest.approx(low, abs=8 * histogram.width)


def test_more_levels_and_a_larger_power_clip_less() -> None:
    histogram = half_normal()[0]
    points = [clipping_point(histogram, method) for method in ("mse", "lp_2.4", "lp_3", "minmax")]
    assert points == sorted(set(points))
    assert clipping_point(histogram, "mse", INT8_MAX + SHIFT_STEPS) > points[0]


def test_the_largest_error_is_least_where_the_page_says() -> None:
    largest, n = 6.0, INT8_MAX
    c = np.linspace(5.5, 6.0, 500_001)
    best = c[np.argmin(np.maximum(largest - c, c / (2 * n)))]
    assert best == pytest.approx(largest / (1 + 1 / (2 * n)), abs=1e-5)


# --- numbers ---


def test_numbers_are_those_of_the_code() -> None:
    gain = 20 * math.log10((INT8_MAX + SHIFT_STEPS) / INT8_MAX)
    together = -10 * math.log10(10**-2.5 + 10**-3)
    images = Quantize().rounding_images
    for told in (
        f"in {BINS:,} bins",
        f"m = {SHIFT_STEPS}·s",
        f"{gain:.2f} dB less rounding noise",
        f"30 dB alone leave {together:.1f} dB together",
        f"{100 * DAMPING:.0f} % of the mean diagonal",
        f"**Blocks** of {BLOCK} weights",
        f"{images} images with {POSITIONS} places are {images * POSITIONS:,} samples",
        f"Beyond {SAMPLES_BYTES // 2**20} MiB of codes",
        f"tries {STRENGTHS[0]} and {STRENGTHS[1]}, and the model as it is",
        f"within {TIE_DB} dB graphs are equal",
        f"is more than {WORST_DB:.0f} dB below the best one's",
        f"costs more than {100 * (MOST_SLOWER - 1):.0f} %",
    ):
        assert told in SENTENCES, told
    assert (MINIMUM_SCALE, len(STRENGTHS), len(QUICK)) == (2.0**-14, 2, 4)
    named = re.findall(r"^\| (`(?:minmax|percentile|entropy|mse|lp).*?) \|", PAGE, re.MULTILINE)
    listed = [name.replace("`_", "`percentile_") for row in named for name in re.findall(r"`[\w.]+`", row)]
    assert [name.strip("`") for name in listed] == list(METHODS)


def test_what_the_text_says_of_noise_was_measured() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "noise-imagenet.json").read_text(encoding="utf-8"))
    rows = {(row["activations"], row["weights"], row["method"]): row for row in record["rows"]}
    mse, usual, most = (rows["255 levels", "nearest", method] for method in ("mse", "lp_2.4", "lp_3"))
    noisiest = [f"{100 * row['noisiest']:.0f} %" for row in (mse, usual, most)]
    worst = [f"{row['worst_db']:.1f}" for row in (mse, usual, most)]
    median = [f"{row['median_db']:.1f}" for row in (mse, usual, most)]
    wrong = rows["255 levels, sums of float weights", "nearest", "lp_2.4"]["sqnr_db"]
    plain, wide = (rows[levels, "float", "lp_2.4"]["sqnr_db"] for levels in ("128 levels", "255 levels"))
    both = rows["255 levels", "second_order", "lp_2.4"]["sqnr_db"]
    second = rows["float", "second_order", None]["sqnr_db"] - wide
    kept = (INT8_MAX / (INT8_MAX + SHIFT_STEPS)) ** 2  # of a shifted tensor's noise
    left = 10 ** ((plain - wide) / 10)
    made = (1 - left) / (1 - kept)
    assert kept == pytest.approx(1 / 4, abs=0.01)
    assert kept * made > left / 2  # "most of what is left"
    padded, without_relu = 16, 5
    assert padded + without_relu == record["quantized"] - record["shifted"]
    for told in (
        f"one photo of the {record['images']} above carries {noisiest[0]} of all noise, with L2.4 {noisiest[1]}, with "
        f"L3 {noisiest[2]}",
        f"rises from {worst[0]} dB (MSE) to {worst[1]} (L2.4) and {worst[2]} (L3). The median photo has {median[0]}, "
        f"{median[1]} and {median[2]} dB",
        f"{record['shifted']} of ResNet-50's {record['quantized']} quantized tensors can be shifted, {padded} are read "
        f"by the padded 3×3 of their block, and {without_relu} are behind no ReLU",
        f"with 128 levels even exact weights end at {plain:.1f} dB, and 255 levels with weights rounded to nearest at "
        f"{usual['sqnr_db']:.1f}. With both, {both:.1f} dB, weights hardly count: exact ones would give {wide:.1f}.",
        f"The 255 levels leave {100 * left:.0f} % of the activations' noise",
        f"so these {record['shifted']} made about {TENTHS[round(10 * made)]} tenths of it",
        f"that is {wrong:.1f} dB in place of {usual['sqnr_db']:.1f}",
        f"already leaves weights {second:.0f} dB below the noise of the activations",
    ):
        assert told in SENTENCES, told


def resnet50() -> list[tuple[int, int]]:
    """The weights of an output, and the outputs, of each convolution."""
    convs, inputs = [(7 * 7 * 3, 64)], 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        convs.append((inputs, 4 * width))  # the projection
        for _ in range(blocks):
            convs += [(inputs, width), (9 * width, width), (width, 4 * width)]
            inputs = 4 * width
    return convs


def test_the_cost_of_second_order_rounding_is_that_of_resnet50() -> None:
    convs, samples = resnet50(), Quantize().rounding_images * POSITIONS
    widest = max(weights for weights, _ in convs)
    operations = (
        sum(samples * weights**2 for weights, _ in convs),
        sum(weights**3 / 3 for weights, _ in convs),
        sum(outputs * weights**2 for weights, outputs in convs),
    )
    sums, factors, codes = (f"{number / 1e9:.0f}" for number in operations)
    held = samples * sum(weights for weights, _ in convs)
    for told in (
        f"fewer than the {widest:,} weights of an output",
        f"for ResNet-50 {sums}, {factors} and {codes}·10⁹",
        f"the codes of all samples, {held / 2**20:.0f} MiB for ResNet-50",
        f"({8 * widest**2 / 1e6:.0f} MB at `d` = {widest:,}), not the {sum(8 * w**2 for w, _ in convs) / 1e9:.2f} GB",
    ):
        assert told in SENTENCES, told


def test_links_lead_to_sections_and_every_tool_of_the_text_is_in_the_literature() -> None:
    titles = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", PAGE, re.M)}
    links = re.findall(r"\]\(#(.+?)\)", PAGE)
    assert len(links) > 15
    assert set(links) <= titles
    text, _, literature = PAGE.partition("## Literature")
    for name in ("GPTQ", "QuIP", "LDLQ", "LAPQ", "SmoothQuant", "Migacz", "AdaRound", "BRECQ", "QDrop"):
        assert name in text, name
        assert name in literature, name
