"""Why a comparison failed, computed from evidence. NumPy and the standard library only, Python 3.10 syntax.

Each module tries hypotheses of one kind. A hypothesis counts only if it explains: under it the candidate's logits are
about as close to the reference as the precision allows, and far closer than without it.
"""

import logging
from collections.abc import Sequence

from pipeline.artifacts.diagnosis import Hint
from pipeline.artifacts.parity_report import Hop
from pipeline.verification.explain.case import Case

log = logging.getLogger(__name__)

MOST_HINTS = 2  # of one run


def explain(hops: Sequence[Hop], case: Case) -> tuple[Hint, ...]:
    """Explain the comparisons at fault; never raises, because nothing may hide a verdict.

    Args:
        hops: Those at fault, see `pipeline.verification.culprits`.
        case: What was compared.

    Returns:
        At most `MOST_HINTS` hints a run, the most specific first; the cause is "unknown" where none was found.
    """
    return ()
