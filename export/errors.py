"""The one base error of the project."""


class ProjectError(Exception):
    """Something a person can mend: bad input, a missing file, a missing device, a model that cannot be transformed.

    The message says what was expected, what was received and what to do. The command exits with status 2.
    """
