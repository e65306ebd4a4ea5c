"""The update in which a run met its first bad number, replayed: layer, operation and rows by construction, the size by float64."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_jobs import FROZEN, inline, sgd, spec

from regtrain.contract.errors import Diverged
from regtrain.contract.events import RunFinished
from regtrain.contract.job import parse
from worker.training.train import train

ROWS, BAD = 40, (7, 31)


def data(big: float) -> dict[str, object]:
    """Two rows that are so large that something overflows in float32; each batch of eight has one of them at most."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(ROWS, 3))
    x[list(BAD)] = [[big, 0, 0], [0, big, 0]]
    return inline(x, draw.normal(size=ROWS))


def lost(job: dict[str, Any]) -> dict[str, Any]:
    """What the only run of a job, which fails, says of its failure; the job's own error repeats it."""
    ends: list[RunFinished] = []
    with tempfile.TemporaryDirectory() as folder, pytest.raises(Diverged) as failed:
        ends.extend(event for event in train(parse(json.dumps({"diagnostics": "light", **job})), data=Path(folder)) if isinstance(event, RunFinished))
    assert ends[0].first_nonfinite is not None
    assert ends[0].first_nonfinite["in_words"] in str(failed.value)
    return ends[0].first_nonfinite


@pytest.mark.parametrize("diagnostics", ["off", "full"])
def test_the_first_layer_that_overflows_is_named_with_its_rows_and_its_size(diagnostics: str) -> None:
    """Weights of 100 take 1e38 to 1e40 in the first layer: beyond float32's 3.4e38, and finite in float64."""
    init = {"kind": "uniform", "bound": 1.0, "scale": 1e3}
    job = spec(data(3e37), {"kind": "mlp", "hidden": [4, 4], "activation": "relu", "init": init}, "squared_error", sgd(FROZEN), batch_size=8, epochs=1, dtype="float32")
    found = lost({**job, "diagnostics": diagnostics})
    assert (found["operation"], found["layer"]) == ("forward", "layers.0")
    assert len(found["rows"]) == found["rows_affected"] == 1
    assert found["rows"][0] in BAD
    assert found["float64"]["finite"] is True
    assert 3.4e38 < found["float64"]["largest"] < 3e40 * 1.01
    assert "layers.0" in str(found["in_words"])
    assert "beyond 3.4e+38" in str(found["in_words"])


def test_a_loss_that_overflows_by_squaring_is_the_loss() -> None:
    job = spec(data(1e20), {"kind": "linear", "init": {"kind": "uniform", "bound": 1.0}}, "squared_error", sgd(FROZEN), epochs=1, dtype="float32")
    found = lost(job)
    assert (found["operation"], found["step"]) == ("loss", 0)
    assert "layer" not in found
    assert found["float64"]["finite"] is True


def test_an_exploding_run_is_replayed_at_the_weights_of_its_failure() -> None:
    """lr far beyond stability: the loss of a linear model squares what grows by a constant factor; in float64 it is finite and just above the largest float32."""
    job = spec(data(1.0), {"kind": "linear"}, "squared_error", sgd(50.0), epochs=400, dtype="float32")
    found = lost(job)
    assert found["operation"] in ("loss", "backward", "gradient", "forward")
    assert found["step"] > 3
    assert found["float64"]["finite"] is True
    assert found["float64"]["largest"] > 1e36  # the sum over the rows overflows, whose mean would not


def test_in_float64_there_is_nothing_wider_to_compare_with() -> None:
    job = spec(data(1.0), {"kind": "linear"}, "squared_error", sgd(50.0), epochs=4000)
    found = lost(job)
    assert "in float64 as well" in found["in_words"]
