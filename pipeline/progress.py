"""Progress bars on standard error, where a person watches; none in a log file."""

from __future__ import annotations

from functools import partial

from tqdm import tqdm

# disable=None: no bar where standard error is not a terminal
progress_bar = partial(tqdm, disable=None, dynamic_ncols=True)
