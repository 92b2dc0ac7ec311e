"""The one base error of the export package."""


class ExportError(Exception):
    """A model could not be transformed. The message says what was expected, what was received and what to do."""
