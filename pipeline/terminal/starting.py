"""Start a command, or explain in one sentence why this Python cannot.

Standard library only, and only syntax that older versions of Python can parse, so that the message appears there.
"""

import importlib
import sys

OLDEST, NEWEST = (3, 11), (3, 13)
OLDEST_FOR_A_BUNDLE = (3, 10)  # for unpack, build, verify, infer and benchmark, because JetPack 6 has no newer one


def start(module: str) -> int:
    """Import a module, run its ``main`` and return the exit status.

    Without the packages, or on a Python that is too old, print a sentence instead of a traceback.
    """
    present, for_a_bundle = sys.version_info[:2], sys.version_info < OLDEST
    make = "Run `make install` and use .venv/bin/python."
    if present < OLDEST_FOR_A_BUNDLE:
        return _refused(
            "Expected Python {}.{} to {}.{}, or {}.{} to run a bundle. Received: Python {}.{}, {}. {}".format(
                *OLDEST, *NEWEST, *OLDEST_FOR_A_BUNDLE, *present, sys.executable, make
            )
        )
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        file = "requirements-jetson.txt" if for_a_bundle else "requirements.txt"
        return _refused(
            "Expected the packages of {}. Received: no {} in {}. {}".format(
                file,
                error.name,
                sys.executable,
                f"Install them: {sys.executable} -m pip install -r {file}" if for_a_bundle else make,
            )
        )
    except KeyboardInterrupt:
        sys.stderr.write("error: Interrupted.\n")
        return 130
    return int(main())


def _refused(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 2
