"""Stands for ``cuda.bindings.runtime``: the CUDA of `tests.fake_cuda`, one for the process."""

import sys

from tests.fake_cuda import FakeRuntime

sys.modules[__name__] = FakeRuntime()
