"""The project's errors: each message names the file or case, what is wrong (with the value) and the remedy."""


class C2FError(Exception):
    """A stated error: the command prints its one sentence and ends with exit code 1."""


class DatasetError(C2FError):
    """The raw data set does not hold together (missing files, geometry, labels, dataset.json)."""


class ImageError(C2FError):
    """An image file cannot be read as a finite, three-dimensional volume with a sane geometry."""


class PlanError(C2FError):
    """A plan cannot be made, read or used."""


class WorkspaceError(C2FError):
    """A folder of the workspace is missing, ambiguous, locked or cannot be written."""


class Locked(WorkspaceError):
    """Another process is at work in a folder; the message names its host and pid."""


class TrainingError(C2FError):
    """A training cannot start or go on."""


class ModelError(C2FError):
    """A trained model is missing, damaged, or does not fit its plan."""


class RecordError(C2FError):
    """A JSON file does not hold what it should."""


class SomeCasesFailed(C2FError):
    """Some cases failed and the rest are done (exit code 3); the message lists the failed ones."""
