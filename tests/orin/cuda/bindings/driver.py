"""Stands for ``cuda.bindings.driver``, which the fake of the runtime holds too."""

import sys

import cuda.bindings.runtime as runtime

sys.modules[__name__] = runtime
