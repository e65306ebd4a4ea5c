"""How much of one upload is taken. The process that parses knows nothing else of the settings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Each is set by REGTRAIN_UPLOAD__<NAME>."""

    bytes: int = 256 * 2**20
    """Of the body, and of all that it unpacks to."""
    rows: int = 2_000_000
    columns: int = 10_000
    cells: int = 20_000_000
    """Rows × columns."""
    ratio: int = 200
    """How many times larger than itself a compressed member may unpack."""
    memory: int = 2 * 2**30
    """Address space of the process that parses, in bytes."""
    seconds: int = 60
    """Processor time, and nearly the wall time, of the process that parses."""
