"""regtrain: regularized training as a service. `from regtrain import Client, JobSpec`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regtrain.client import Client as Client
    from regtrain.contract.job import JobSpec as JobSpec

__version__ = "0.1.0"
__all__ = ["Client", "JobSpec", "__version__"]

_HOMES = {"Client": "regtrain.client", "JobSpec": "regtrain.contract.job"}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first asked for, so that `import regtrain` costs milliseconds."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'regtrain' has no attribute {name!r}")
