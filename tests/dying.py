"""A job whose net collapses: what surgery is tried on, from weights that a run has ended with."""

from typing import Any

DYING: dict[str, Any] = {
    "dataset": {"kind": "digits", "validation": 0.2},
    "model": {"kind": "mlp", "hidden": [16, 16, 16], "init": {"kind": "he_normal", "scale": 3.0}},
    "loss": {"kind": "cross_entropy"},
    "optimizer": {"kind": "sgd", "lr": 0.3},
    "budget": {"epochs": 2, "batch_size": 64},
    "dtype": "float64",
}
"""A net of which most units die."""
