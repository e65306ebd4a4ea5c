"""What an operator can set: each by an environment variable REGTRAIN_<NAME>, the main ones also on the command line."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.limits import Limits

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Settings(BaseSettings):
    """The service's settings."""

    model_config = SettingsConfigDict(env_prefix="REGTRAIN_", env_nested_delimiter="__", frozen=True, env_ignore_empty=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8321, ge=0, le=65_535)
    """0 takes any free port."""
    data: Path = Path("regtrain-data")
    """Folder of the database, the uploads and the models."""
    database_url: str | None = None
    """Default: `regtrain.db` in the data folder."""
    allow_remote: bool = False
    """Let other machines in. There are no keys yet: whoever reaches the port may do everything."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Names by which requests may address this server, besides the loopback names; `*` allows every name."""
    body_bytes: int = Field(default=16 * 2**20, ge=1)
    """The largest JSON body."""
    body_seconds: float = Field(default=60, gt=0)
    """How long a client may take to send a JSON body; an upload may take ten times as long."""
    wait_seconds: float = Field(default=50, gt=0)
    """The longest that `wait` holds an answer back: shorter than the patience of common proxies."""
    upload: Limits = Limits()

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def split(cls, value: Any) -> Any:
        return tuple(part.strip().lower() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def is_loopback(host: str) -> bool:
    """Whether a host to bind to can be reached from this machine only."""
    return host == "localhost" or (is_address(host) and ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
