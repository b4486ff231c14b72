"""Errors whose message is meant for the user: one line with what is wrong, where, and the cure."""

from __future__ import annotations


class PipelineError(Exception):
    """Base of all errors that a command prints as one line, without a traceback."""


class DatasetError(PipelineError, ValueError):
    """The data on disk is not what the reader of its format needs."""


class NotThere(DatasetError):
    """What a reader looks for is not under the data root; nothing is wrong with what is."""


class CacheError(PipelineError, OSError):
    """The cache can not be written or read as asked."""


class IdentityMismatch(CacheError):
    """Two runs that must not be mixed; the message names every differing field with both values."""


class ModelError(PipelineError, RuntimeError):
    """A model's weights are missing, or it is built in a way that is not supported."""


class Stopped(PipelineError):
    """The user asked to stop; the same command goes on."""
