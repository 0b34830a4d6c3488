"""One family of errors: whatever a user can cause is a `MmgptError`, a `ValueError` that names both numbers and the remedy."""


class MmgptError(ValueError):
    """Root of all errors that a user's input, file or setting can cause."""


class InputError(MmgptError):
    """A value that cannot be used: a broken picture, a prompt too long, a setting out of range."""


class LengthError(InputError):
    """More positions than the model holds."""


class CheckpointError(MmgptError):
    """A checkpoint that is missing, changed, incomplete or of another version."""


class VersionError(CheckpointError):
    """A checkpoint of a newer version of mmgpt: it is whole, but this one cannot read it."""


class DataError(MmgptError):
    """A data source that does not exist or a sample that cannot be read."""


class TrainingError(MmgptError):
    """A training run that cannot go on: no targets, a loss that is not finite, an unknown setting."""


class GuidanceError(MmgptError):
    """Guidance was asked for and cannot be applied."""
