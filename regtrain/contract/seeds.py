"""Every random number is a function of its place: (job seed, run seed, purpose, step or epoch, layer)."""

from hashlib import blake2b


def seed_at(*place: int | str) -> int:
    """A 64-bit seed for one place."""
    return int.from_bytes(blake2b(repr(place).encode(), digest_size=8).digest(), "little")
