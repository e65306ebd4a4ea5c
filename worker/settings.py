"""What an operator can set: each also as an environment variable, REGTRAIN_DATA for `data` and so on."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="REGTRAIN_", frozen=True, env_ignore_empty=True, use_attribute_docstrings=True)

    data: Path = Path("regtrain-data")
    """The data folder, shared with the service."""
    database_url: str | None = None
    """SQLAlchemy URL; without one, SQLite in the data folder."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of the arithmetic on the CPU; None leaves it to torch. Part of what makes a job repeatable bit for bit."""
    lease_seconds: Seconds = 30.0
    """A job whose worker has not been heard of for this long is taken from it. Six heartbeats fit in."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0
    """The most work that a crash can cost."""
    stall_seconds: Seconds = 300.0
    """A trainer that reports nothing for this long is killed."""
    poll_seconds: Seconds = 0.25
    """How often an idle worker looks into the queue when nobody nudges it."""
    selftest_seconds: Annotated[float, Field(ge=0)] = 5.0
    """A worker that has had nothing to do for so long measures the laws of gradients once, in a process of its own, which a job ends; inf: only when asked."""
    idle_exit: Annotated[float, Field(ge=0)] | None = None
    """Leave when nothing has been queued or running for this many seconds."""

    @property
    def heartbeat_seconds(self) -> float:
        return self.lease_seconds / 6
