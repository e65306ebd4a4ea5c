"""Every example is accepted, and the articles' data is the articles' data."""

import json
from pathlib import Path

import numpy as np
import pytest

from regtrain.contract.checks import check
from regtrain.contract.datasets import facts_of
from regtrain.contract.job import parse
from regtrain.contract.runs import count

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.json"))
RUNS = {
    "adaptive_starts": 3,
    "001_l1_grid": 6,
    "001_l2_grid": 5,
    "001_stability": 10,
    "003_grid": 25,
    "cross_validation": 171,
    "diabetes_lasso_path": 300,
    "digits_search": 121,
    "002_variants": 40,
    "sweep_l1_seeds": 128,
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_accepted(path: Path) -> None:
    spec = parse(path.read_bytes())
    facts = facts_of(spec.dataset)
    assert facts is not None
    check(spec, facts)
    assert spec.name
    assert count(spec) == RUNS.get(path.stem, 5 if path.stem.startswith("002") else 1)


def test_all_five_articles_are_there() -> None:
    assert {path.stem[:3] for path in EXAMPLES} >= {"000", "001", "002", "003", "004"}


@pytest.mark.parametrize("stem", ["003_ridge", "003_ridge_as_printed", "003_ridge_intercept", "003_grid", "003_adaptive"])
def test_article_003_has_the_rows_that_its_code_draws(stem: str) -> None:
    draw = np.random.RandomState(0)
    x = draw.randn(100, 1)
    y = 2 * x + 1 + draw.randn(100, 1) * 0.5
    dataset = json.loads((EXAMPLES[0].parent / f"{stem}.json").read_bytes())["dataset"]
    assert dataset["x"] == x.tolist()
    assert dataset["y"] == y[:, 0].tolist()
    assert float((x * x).sum()) == pytest.approx(101.94036179371047, rel=1e-14)  # XᵀX in the reference values
