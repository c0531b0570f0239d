"""The exceptions of the project: one sentence each, an exit code, and whether running again can help.

A command line prints the sentence and exits with the code; a campaign step also writes `failure_class` and `retryable`
into its launch record, so that a retry of a hopeless failure can end at once.
"""


class RoboimiError(Exception):
    """Something went wrong that a user can act on.

    The message is one sentence: what is wrong, where, and what to do.

    Attributes:
        exit_code: what a command line exits with.
        failure_class: short name of the failure for records and reports.
        retryable: whether the same command, run again unchanged, could succeed.
        cured_outside: whether what is wrong is the machine's or an account's (a driver, a network, a credential), so
            that a failure is not held against the next attempt.
    """

    exit_code = 1
    failure_class = "error"
    retryable = False
    cured_outside = False


class ConfigError(RoboimiError):
    """A setting that cannot work, or that contradicts another setting or the data."""

    exit_code = 2
    failure_class = "bad-config"


class DataError(RoboimiError):
    """A dataset, an episode or a feature cache that is missing, damaged or not what the contract says."""

    exit_code = 3
    failure_class = "bad-data"


class EncoderError(RoboimiError):
    """A vision encoder that is unknown, unreachable, or does not give what it should."""

    exit_code = 4
    failure_class = "encoder"
    cured_outside = True


class RenderError(RoboimiError):
    """No GL, or a renderer that gives no image."""

    exit_code = 5
    failure_class = "no-gl"
    cured_outside = True


class StoreError(RoboimiError):
    """A store that cannot be opened, written or trusted."""

    exit_code = 6
    failure_class = "store"
    retryable = True


class DiskFullError(StoreError):
    """Too little room for what is about to be written."""

    exit_code = 7
    failure_class = "disk-full"


class StoreUnavailableError(StoreError):
    """An object store that did not answer, or answered that it cannot now, until the patience was used up.

    Whether a write that was under way took place is not known: doing the same write again finds out.
    """

    exit_code = 10
    failure_class = "store-unavailable"


class StoreAccessError(StoreError):
    """An object store that answers and refuses: a wrong key, a missing bucket, no right to do this, a wrong clock."""

    exit_code = 11
    failure_class = "store-access"
    cured_outside = True
    retryable = False


class StoreDamagedError(StoreError):
    """Something in the store is not what was written there."""

    exit_code = 14
    failure_class = "store-damaged"
    retryable = False


class CheckpointError(RoboimiError):
    """Checkpoints exist but none can be read, or one belongs to another training."""

    exit_code = 8
    failure_class = "checkpoint"


class HeldByAnotherError(RoboimiError):
    """A live process already works under the same key."""

    exit_code = 9
    failure_class = "held-by-another"
    retryable = True


class FencedError(RoboimiError):
    """Another writer has taken this training over; what this one writes from now on counts for nothing."""

    exit_code = 12
    failure_class = "fenced"


class HungError(RoboimiError):
    """Something that takes moments has not ended for a long time: a data source, a device, a renderer."""

    exit_code = 13
    failure_class = "hung"
    retryable = True


class NonFiniteError(RoboimiError):
    """More non-finite losses or gradients than the configuration tolerates."""

    exit_code = 20
    failure_class = "non-finite"


class PolicyOutputError(RoboimiError):
    """A policy that returns non-finite actions, or actions of the wrong shape."""

    exit_code = 21
    failure_class = "policy-output"


class Interrupted(RoboimiError):
    """Stopped by a signal after its state was committed; running again goes on from there."""

    failure_class = "interrupted"
    retryable = True

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number
