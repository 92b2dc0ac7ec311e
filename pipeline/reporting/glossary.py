"""The terms of the page, each explained once, in one line, with what is good."""

from typing import Final

from pipeline.reporting.html import Section, section

LOGITS: Final = "Logits"
SQNR: Final = "SQNR"
COSINE: Final = "Cosine"
RELATIVE_L2: Final = "Relative L2"
KL: Final = "KL divergence"
TOP_1: Final = "Top-1 agreement"
TOP_5: Final = "Top-5 agreement"
STEP: Final = "Step and end to end"
NEAR_TIE: Final = "Near tie"
OWN_ERROR: Final = "Own error"
SATURATED: Final = "Saturated"
RANGE_USED: Final = "Range used"
SHIFTED: Final = "Eighth bit"
SECOND_ORDER: Final = "Second-order rounding"
TERMS: Final = {
    LOGITS: "The numbers that a model gives the classes before they become probabilities; the largest wins.",
    SQNR: "Signal to quantization noise ratio: how much larger the true numbers are than their error, in dB. At 20 dB "
    "the error is a tenth of them, at 40 dB a hundredth. Good for logits: 100 in FP32, 50 in FP16, 20 in INT8.",
    COSINE: "Whether two lists of numbers have the same pattern, whatever their size: 1 is the same pattern, 0 none. "
    "Good: 0.99 and more.",
    RELATIVE_L2: "The length of the error over the length of the true numbers: SQNR as a share. Good: at most 0.1 in "
    "INT8 (20 dB), 0.003 in FP16 (50 dB).",
    KL: "How far the probabilities moved from Keras' (Kullback-Leibler, in nats): 0 is not at all. Good: at most 0.01.",
    TOP_1: "Share of the images that get the class that Keras gives. Good: 99 % and more, or what the recipe asks.",
    TOP_5: "Share of the images whose class by Keras is among the five best. Good: 99.9 % and more.",
    STEP: "A step compares a file with the file that it was made from, end to end compares it with Keras. Good: no "
    "step that takes most of the error.",
    NEAR_TIE: "An image whose two best classes are about equally likely to Keras itself (less than 10 points apart): "
    "the least rounding turns it. Good: no changed answers but these.",
    OWN_ERROR: "The error that a layer makes where it is given Keras' own numbers; the total error has in it what the "
    "layers before it made. Good: an SQNR above the threshold of the run.",
    SATURATED: "Share of the values that were cut off at the largest number that the INT8 scale, or FP16, can hold. "
    "Good: below 1 % in INT8, 0 in FP16.",
    RANGE_USED: "The largest value of a layer over the largest that its INT8 scale, or FP16, can hold. Good: 50 % to "
    "100 % of an INT8 scale, since with less most of its 255 steps lie idle; any share of FP16 below 100 %.",
    SHIFTED: "Behind a ReLU there is nothing negative, so that half of INT8's levels lie idle. A shifted activation is "
    "lowered by 128 steps and uses all of them; the biases of the layers around it make up for that. Good: wherever it "
    "is exact.",
    SECOND_ORDER: "Weights are rounded one after the other, each so that it makes up for the errors of those before "
    "it, by what the layer reads on calibration images (GPTQ). Good: an SQNR above that of rounding to nearest.",
}


def glossary_section() -> Section:
    """Make the section that the titles of the others link to."""
    return section("Terms", "terms.html.j2", explained=TERMS)
