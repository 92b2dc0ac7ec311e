"""The command line: ``python -m pipeline VERB``."""

import sys


def _main() -> int:
    try:
        from pipeline.commands import main
    except ModuleNotFoundError as error:
        # Before any package is there: a sentence instead of a traceback.
        sys.stderr.write(
            f"error: Expected the packages of requirements.txt. Received: no {error.name} in {sys.executable}. "
            "Run `make install` and use .venv/bin/python.\n"
        )
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("error: Interrupted.\n")
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(_main())
