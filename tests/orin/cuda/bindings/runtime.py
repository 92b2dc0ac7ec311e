"""Stands for ``cuda.bindings.runtime``: the CUDA of `tests.fakes.cuda`, one for the process."""

import sys

from tests.fakes.cuda import FakeRuntime

sys.modules[__name__] = FakeRuntime()
