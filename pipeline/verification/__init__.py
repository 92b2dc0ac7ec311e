"""Compare every exported file with Keras and give the verdict.

`assert_parity` is for tests of other projects too. It is loaded when it is asked for, because the rest of this package
is imported on machines with NumPy alone.
"""

from typing import TYPE_CHECKING

from export.errors import ParityError

if TYPE_CHECKING:
    from pipeline.verification.outside.assertion import assert_parity

__all__ = ["ParityError", "assert_parity"]


def __getattr__(name: str) -> object:
    if name == "assert_parity":
        from pipeline.verification.outside.assertion import assert_parity

        return assert_parity
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
