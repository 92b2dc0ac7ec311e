"""Engines that are not those of the present files. NumPy and the standard library only, Python 3.10 syntax."""

from __future__ import annotations

from pipeline.verification.checks.engine_files import REMEDY
from pipeline.verification.explain.fit import Explanation


def explain_engine(why_not: str) -> Explanation:
    """Return why an engine was not run, see `pipeline.verification.checks.engine_files.EngineFile`."""
    return Explanation(
        "stale engine",
        "The engine is not that of the files that are here now, so it answers as an earlier model did.",
        f"{why_not.removesuffix(REMEDY).rstrip(' .')}.",
        REMEDY,
    )
