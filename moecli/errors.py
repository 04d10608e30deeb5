"""What goes wrong, as one line and one exit code (design: 0 success, 1 bug, 2-8 below)."""


class MoeError(Exception):
    """A failure the user can act on: ``what (where): why. what to do`` and an exit code."""

    code = 1


class UsageError(MoeError):
    """A wrong command, key, value or combination."""

    code = 2


class DataError(MoeError):
    """A file, column or value of the user's data."""

    code = 3


class ArtifactError(MoeError):
    """A checkpoint or run folder that is corrupt, unsafe or incompatible."""

    code = 4


class EnvironmentFailure(MoeError):
    """The machine: disk full, no permission, a missing extra."""

    code = 5


class NumericalFailure(MoeError):
    """A loss or gradient that is not finite."""

    code = 6


class ConflictError(MoeError):
    """A run that exists already or is locked."""

    code = 7


class Interrupted(MoeError):
    """Ctrl-C (130), SIGTERM (143) or SIGHUP (129); what was saved stays."""

    def __init__(self, message: str, code: int = 130):
        super().__init__(message)
        self.code = code


class PartialSuccess(MoeError):
    """The answer was given, but some of what was asked for could not be read."""

    code = 8
