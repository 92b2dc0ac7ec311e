"""Starts a command, or says in one sentence why this Python cannot.

Standard library only, and no syntax that an older Python does not know: it has to be read there to say so.
"""

import importlib
import sys

OLDEST, NEWEST = (3, 11), (3, 13)


def start(module: str) -> int:
    """Import a module and run its ``main``; returns the exit status.

    Before any package is there, and on a Python that is too old, a sentence comes instead of a traceback.
    """
    if sys.version_info < OLDEST:
        return _refused(
            "Expected Python {}.{} to {}.{}. Received: Python {}.{}, {}.".format(
                *OLDEST, *NEWEST, *sys.version_info[:2], sys.executable
            )
        )
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        return _refused(f"Expected the packages of requirements.txt. Received: no {error.name} in {sys.executable}.")
    except KeyboardInterrupt:
        sys.stderr.write("error: Interrupted.\n")
        return 130
    return int(main())


def _refused(message: str) -> int:
    sys.stderr.write(f"error: {message} Run `make install` and use .venv/bin/python.\n")
    return 2
