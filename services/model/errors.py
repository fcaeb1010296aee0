"""Errors of the model package.

ModelError
├── CheckpointError      a directory that is not a usable checkpoint: names the file or tensor and the cure
├── BlobError            a blob whose bytes are not what its digest says, or that holds something it may not
├── DeviceError          a device that was asked for and is not there
└── PromptError          a prompt that cannot be run: empty, or too long
"""


class ModelError(Exception):
    """Root of everything the model package raises on bad input."""


class CheckpointError(ModelError):
    pass


class BlobError(ModelError):
    pass


class DeviceError(ModelError):
    pass


class PromptError(ModelError):
    pass
