"""Everything that fedsim raises on purpose, in one tree.

FedsimError                 message is one line: what was given, what was expected, the way out
├── ConfigError             the experiment cannot mean anything (unknown key, impossible combination)
├── DataError               the data cannot be read or cannot be split as asked
├── WireError               bytes that are not a message of this protocol
├── CheckpointError         a run folder cannot be written or read back
├── DivergedError           the model is no longer finite
├── WorkerError             a process that computes for clients died, or cannot be reached
├── DeployError             the machines of a deployment cannot be reached, or do not reply
└── StoppedError            the user stopped the run; its folder holds the last complete round
"""


class FedsimError(Exception):
    """Base of every error that a user can cause or mend; the message is one line."""


class ConfigError(FedsimError):
    """The experiment is not valid. The message names the key, the value and the way out."""


class DataError(FedsimError):
    """Data that cannot be used. The message names the file and line, or the client."""


class WireError(FedsimError):
    """Bytes that do not decode to a message. Nothing else escapes from ``fedsim.wire`` decoders."""


class CheckpointError(FedsimError):
    """A run folder that cannot be written (disk full) or read (damaged, other version)."""


class DivergedError(FedsimError):
    """The model or an update is not finite. The message names the round and the step size."""


class WorkerError(FedsimError):
    """A worker process died, failed or cannot be reached. The message names it, what happened, and the way out."""


class DeployError(FedsimError):
    """Machines that cannot be reached or do not reply. The message names them and the way out; the run can go on."""


class StoppedError(FedsimError):
    """Raised by an observer between two rounds to stop a run; the run writes a checkpoint first."""


def one_line(text: str, longest: int = 500) -> str:
    """Text that was made elsewhere, fit for a terminal and a log: printable characters, one line, not endless.

    >>> one_line("no\\n\\x1b[2J \\u202e way")
    'no [2J way'
    """
    words = " ".join("".join(c if c.isprintable() else " " for c in text[: 2 * longest]).split())
    return words if len(words) <= longest else words[: longest - 4] + " ..."
