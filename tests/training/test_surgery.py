"""Beginning from an earlier job's weights, and operations on them that keep the function: against a forward pass written with torch.nn.functional in float64."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from training_jobs import FROZEN, Outcome, events, inline, outcome, sgd, spec

from regtrain.contract.errors import DataError
from regtrain.contract.events import Checkpointed, Log
from worker.training.checkpoints import save

X, Y = (array[:200] for array in load_digits(return_X_y=True))
X = X / 16.0
DIGITS = inline(X, Y, validation=0.2)
ROWS = torch.from_numpy(X)
PHI = {"relu": F.relu, "leaky_relu": F.leaky_relu, "identity": lambda z: z}
ORIGIN = "job_1"


def mlp(*hidden: int, activation: str = "relu", **more: Any) -> dict[str, Any]:
    return {"kind": "mlp", "hidden": list(hidden), "activation": activation, "init": {"kind": "he_normal"}, **more}


def cnn(**more: Any) -> dict[str, Any]:
    return {"kind": "cnn", "channels": [4, 3], "hidden": [6], "image": [1, 8, 8], "activation": "relu", **more}


def by_hand(model: dict[str, Any], weights: dict[str, Tensor], x: Tensor = ROWS) -> tuple[Tensor, list[Tensor]]:
    """Outputs, and what each hidden layer gives."""
    w = {name: tensor[0].double() for name, tensor in weights.items()}
    names, h, seen = [name.removesuffix(".weight") for name in sorted(w) if name.startswith("layers") and name.endswith(".weight")], x, []
    for name in names:
        weight, bias = w[f"{name}.weight"], w.get(f"{name}.bias")
        if weight.dim() == 4:
            h = PHI[model["activation"]](F.conv2d(h.view(len(h), *([1, 8, 8] if not seen else h.shape[1:])), weight, bias, padding=1))
            seen.append(h)
            h = F.max_pool2d(h, 2)
        else:
            h = PHI[model["activation"]](F.linear(h.flatten(1), weight, bias))
            seen.append(h)
    return F.linear(h.flatten(1), w["head.weight"], w.get("head.bias")), seen


def job(model: dict[str, Any], **more: Any) -> dict[str, Any]:
    return spec(DIGITS, model, "cross_entropy", sgd(more.pop("lr", 0.1)), batch_size=20, **{"diagnostics": "off", **more})


def stored(weights: dict[str, Tensor], folder: Path, runs: Any = ({"index": 0, "variant": None},)) -> Path:
    """A model file with these tensors, as a job leaves it."""
    folder.mkdir(exist_ok=True)
    save(folder / "origin.safetensors", weights, {"runs": list(runs)})
    return folder / "origin.safetensors"


def begun(of: dict[str, Any], weights: dict[str, Tensor], folder: Path, *surgery: str, run: int = 0, **how: Any) -> Outcome:
    """The job that begins from these weights."""
    of = {**of, "begin": {"job": ORIGIN, "run": run, "surgery": [{"kind": kind} for kind in surgery]}}
    return outcome(events(of, scratch=folder, origins={ORIGIN: stored(weights, folder / "of")}, **how))


def operated(of: dict[str, Any], weights: dict[str, Tensor], folder: Path, *surgery: str) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The weights before the first update, and what was done to them."""
    found = begun({**of, "optimizer": sgd(FROZEN), "budget": {"epochs": 1, "batch_size": 20}}, weights, folder, *surgery)
    (told,) = found.finished.result["begin"]
    return found.weights, told["operations"]


@pytest.fixture
def trained(tmp_path: Path) -> Any:
    def train(of: dict[str, Any]) -> dict[str, Tensor]:
        (tmp_path / "first").mkdir()
        return outcome(events(of, scratch=tmp_path / "first")).weights

    return train


def norms(weights: dict[str, Tensor], layer: str, behind: str) -> tuple[np.ndarray, np.ndarray]:
    """‖W‖² + b² of each unit of a dense layer, and ‖·‖² of what reads it."""
    read = weights[f"{layer}.weight"][0].square().sum(1) + (weights[f"{layer}.bias"][0].square() if f"{layer}.bias" in weights else 0)
    return read.numpy(), weights[f"{behind}.weight"][0].square().sum(0).numpy()


# ---------------------------------------------------------------- the function


@pytest.mark.parametrize("model", [mlp(7, 5, 6), mlp(7, 5, activation="leaky_relu", bias=False), mlp(6, 6, activation="identity"), cnn(), cnn(pool="max", hidden=[])])
@pytest.mark.parametrize("surgery", [("rebalance",), ("rescale",), ("revive",), ("revive", "rebalance", "rescale")])
def test_outputs_are_what_they_were(model: dict[str, Any], surgery: tuple[str, ...], trained: Any, tmp_path: Path) -> None:
    if "revive" in surgery and model["activation"] != "relu":
        surgery = ("rebalance", "rescale")
    weights = trained(job(model))
    after, done = operated(job(model), weights, tmp_path, *surgery)
    expected, found = by_hand(model, weights)[0], by_hand(model, after)[0]
    if "revive" not in surgery:  # a unit that is dead on the training rows may fire on others
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-12
        assert any(not torch.equal(after[name], weights[name]) for name in weights)
    assert [one["applied"] for one in done] == [True] * len(surgery)
    assert max(one["difference"] for one in done) < 1e-12


def test_in_float32_the_weights_that_are_trained_give_the_same_to_a_millionth(trained: Any, tmp_path: Path) -> None:
    of = job(mlp(12, 12, 12), dtype="float32")
    weights = trained(of)
    after, (done,) = operated(of, weights, tmp_path, "rebalance")
    assert after["head.weight"].dtype == torch.float32
    expected, found = by_hand(of["model"], weights)[0], by_hand(of["model"], after)[0]
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6
    assert done["difference"] < 1e-6


def test_where_rounding_is_too_much_scales_are_powers_of_two(trained: Any, tmp_path: Path) -> None:
    """Outputs that are small differences of large numbers lose digits to any rounding; a power of two has none, and leaves norms within a factor of two."""
    of = job(mlp(2, activation="identity", bias=False), dtype="float32")
    weights = trained(of)
    weights["layers.0.weight"][0, 1] = weights["layers.0.weight"][0, 0] * (1 + 1e-4)
    weights["head.weight"][0, :, 1] = -weights["head.weight"][0, :, 0]
    weights["layers.0.weight"] *= 37.0
    after, (done,) = operated(of, weights, tmp_path, "rebalance")
    assert (done["powers_of_two"], done["difference"]) == (True, 0.0)
    assert done["after"] <= 2 < done["before"]
    assert torch.equal(by_hand(of["model"], weights)[0], by_hand(of["model"], after)[0])


# ---------------------------------------------------------------- rebalance, rescale


def test_every_unit_of_an_unbalanced_net_gets_equal_norms(trained: Any, tmp_path: Path) -> None:
    of = job(mlp(7, 5, 6))
    weights = trained(of)
    skewed = {name: tensor.clone() for name, tensor in weights.items()}
    factors = torch.tensor([1e-3, 1e3, 1.0, 7.0, 0.2], dtype=torch.float64)
    skewed["layers.1.weight"][0] *= factors.unsqueeze(1)
    skewed["layers.1.bias"][0] *= factors
    skewed["layers.2.weight"][0] /= factors
    after, (done,) = operated(of, skewed, tmp_path, "rebalance")
    for layer, behind in pairwise(["layers.0", "layers.1", "layers.2", "head"]):
        read, reading = norms(after, layer, behind)
        np.testing.assert_allclose(read, reading, rtol=1e-8)
    assert done["before"] > 100
    assert done["after"] == pytest.approx(1, abs=1e-8)
    same, _ = operated(of, weights, tmp_path, "rebalance")
    for name in weights:  # both are the net of the smallest norm among those with this function, and it is unique
        np.testing.assert_allclose(after[name], same[name], rtol=1e-7, atol=1e-12)


def test_a_balanced_net_has_the_smallest_sum_of_squares(trained: Any, tmp_path: Path) -> None:
    of = job(mlp(7, 5))
    after, _ = operated(of, trained(of), tmp_path, "rebalance")
    best = sum(float(tensor.square().sum()) for name, tensor in after.items() if name != "head.bias")
    for unit, factor in [(0, 1.05), (3, 0.95)]:
        other = {name: tensor.clone() for name, tensor in after.items()}
        other["layers.0.weight"][0, unit] *= factor
        other["layers.0.bias"][0, unit] *= factor
        other["layers.1.weight"][0, :, unit] /= factor
        assert sum(float(tensor.square().sum()) for name, tensor in other.items() if name != "head.bias") > best


def test_rescaled_layers_have_signal_gradients_of_one_length(tmp_path: Path, trained: Any) -> None:
    """χ = 1, on all training rows by autograd; and the first layer and the head have equal ‖∇W‖/‖W‖."""
    of = job(mlp(9, 6, 8, init={"kind": "normal", "std": 0.2}))
    after, (done,) = operated({**of, "dataset": inline(X, Y)}, trained({**of, "dataset": inline(X, Y)}), tmp_path, "rescale")
    w = {name: tensor[0].clone().requires_grad_() for name, tensor in after.items()}
    h, linear = ROWS, []
    for place in range(3):
        z = F.linear(h, w[f"layers.{place}.weight"], w[f"layers.{place}.bias"])
        z.retain_grad()
        linear.append(z)
        h = F.relu(z)
    F.cross_entropy(F.linear(h, w["head.weight"], w["head.bias"]), torch.from_numpy(Y).long()).backward()
    lengths = [float(z.grad.norm()) for z in linear if z.grad is not None]
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-9)
    ratios = [float(of.grad.norm() / of.detach().norm()) for name in ("layers.0.weight", "head.weight") if (of := w[name]).grad is not None]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-9)
    assert done["before"] != pytest.approx(1, abs=0.05)
    assert done["after"] == pytest.approx(1, abs=1e-9)


# ---------------------------------------------------------------- revive


@pytest.mark.parametrize("model", [mlp(8, 8), cnn()])
def test_dead_units_fire_and_live_ones_stay_as_they_are(model: dict[str, Any], trained: Any, tmp_path: Path) -> None:
    of = {**job(model), "dataset": inline(X, Y)}
    weights = trained(of)
    for layer, units in (("layers.0", [1, 2]), ("layers.1", [0])):
        weights[f"{layer}.bias"][0, units] = -100.0
    dead = [(h.movedim(1, -1).flatten(0, -2).amax(0) <= 0) for h in by_hand(model, weights)[1]]
    assert int(dead[0].sum()) >= 2
    assert bool(dead[1][0])
    after, (done,) = operated(of, weights, tmp_path, "revive")
    assert torch.equal(by_hand(model, weights)[0], by_hand(model, after)[0])
    for h in by_hand(model, after)[1]:
        assert bool((h.movedim(1, -1).flatten(0, -2).amax(0) > 0).all())
    assert done["units"] == {f"layers.{place}": int(mask.sum()) for place, mask in enumerate(dead) if mask.any()}
    assert done["fire"] == sum(done["units"].values())
    assert torch.equal(after["layers.0.weight"][0][~dead[0]], weights["layers.0.weight"][0][~dead[0]])
    assert float(after["layers.1.weight"][0][~dead[1]][:, dead[0]].abs().max()) < 1e-290  # 0 but for a rate of 1e-300
    again, _ = operated(of, weights, tmp_path, "revive")
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_a_revived_unit_learns_and_a_dead_one_does_not(trained: Any, tmp_path: Path) -> None:
    of = {**job(mlp(8, 8)), "dataset": inline(X, Y)}
    weights = trained(of)
    weights["layers.0.bias"][0, 3] = -100.0
    for surgery, learns in ((("revive",), True), ((), False)):
        start = operated(of, weights, tmp_path, *surgery)[0]["layers.0.weight"][0, 3]
        end = begun(of, weights, tmp_path, *surgery).weights["layers.0.weight"][0, 3]
        assert bool((start != end).any()) is learns


# ---------------------------------------------------------------- the beginning


def test_a_job_goes_on_where_the_earlier_one_has_ended(trained: Any, tmp_path: Path) -> None:
    """Two epochs, or one and one more: without momentum the weights are all that there is, if the second sees the rows in the order that the first would have."""
    of = {**job(mlp(6), lr=0.1), "budget": {"epochs": 1, "batch_size": "all"}, "dataset": inline(X, Y)}
    middle = trained(of)
    end = begun(of, middle, tmp_path).weights
    (tmp_path / "whole").mkdir()
    whole = outcome(events({**of, "budget": {"epochs": 2, "batch_size": "all"}}, scratch=tmp_path / "whole")).weights
    assert all(torch.equal(end[name], whole[name]) for name in whole)


def test_of_many_runs_and_variants_one_is_taken(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    variants = [{"label": "narrow", "set": {"model.hidden": [4]}}, {"label": "wide", "set": {"model.hidden": [9]}}]
    many = outcome(events({**job(mlp(6)), "variants": variants, "selection": {"seeds": 2}}, scratch=tmp_path / "first"))
    runs = [{"index": index, "variant": label} for index, label in enumerate(["narrow", "narrow", "wide", "wide"])]
    of = {**job(mlp(9)), "optimizer": sgd(FROZEN), "begin": {"job": ORIGIN, "run": 3}}
    found = outcome(events(of, scratch=tmp_path, origins={ORIGIN: stored(many.weights, tmp_path / "of", runs)}))
    assert torch.equal(found.weights["layers.0.weight"][0], many.weights["wide/layers.0.weight"][1])


def test_running_averages_come_along(trained: Any, tmp_path: Path) -> None:
    """The loss of the validation rows at step 0 is the one with which the earlier job has ended."""
    of = job(mlp(6, normalization={"kind": "batch"}))
    (tmp_path / "first").mkdir()
    first = outcome(events(of, scratch=tmp_path / "first"))
    found = begun(of, first.weights, tmp_path)
    assert found.curve("loss/val")[0] == first.curve("loss/val")[-1]


def test_resumed_from_a_checkpoint_it_ends_with_the_same_bits_and_says_the_same(trained: Any, tmp_path: Path) -> None:
    of = {**job(mlp(8, 8)), "budget": {"epochs": 40, "batch_size": 20}}
    weights = trained(job(mlp(8, 8)))
    weights["layers.0.bias"][0, 3] = -100.0
    whole = begun(of, weights, tmp_path, "revive", "rebalance")
    of = {**of, "begin": {"job": ORIGIN, "run": 0, "surgery": [{"kind": "revive"}, {"kind": "rebalance"}]}}
    seen: list[Checkpointed] = []
    how = {"scratch": tmp_path, "origins": {ORIGIN: tmp_path / "of" / "origin.safetensors"}}
    first = iter(events_until_checkpoint(of, seen, **how))
    list(first)
    assert not seen[0].path.endswith("model.tmp")
    rest = events(of, resume={0: Path(seen[0].path)}, packs=[[0]], **how)
    found = outcome(rest)
    assert all(torch.equal(found.weights[name], whole.weights[name]) for name in whole.weights)
    assert found.finished.result["begin"] == whole.finished.result["begin"]
    assert not [event for event in rest if isinstance(event, Log)]


def events_until_checkpoint(of: dict[str, Any], seen: list[Checkpointed], **how: Any) -> Any:
    from regtrain.contract.job import parse
    from worker.training.train import train

    for event in train(parse(json.dumps(of)), data=how["scratch"], wants_checkpoint=lambda: True, **how):
        yield event
        if isinstance(event, Checkpointed):
            seen.append(event)
            return


def test_other_weights_than_those_that_were_meant_are_not_trained(trained: Any, tmp_path: Path) -> None:
    of = {**job(mlp(6)), "begin": {"job": ORIGIN, "run": 0, "sha256": "0" * 64}}
    path = stored(trained(job(mlp(6))), tmp_path / "of")
    with pytest.raises(DataError, match="are not those from which the job was to begin"):
        events(of, scratch=tmp_path, origins={ORIGIN: path})
    with pytest.raises(DataError, match="are gone"):
        events(of, scratch=tmp_path, origins={ORIGIN: tmp_path / "nowhere"})
    with pytest.raises(DataError, match="has no run 7"):
        events({**of, "begin": {"job": ORIGIN, "run": 7}}, scratch=tmp_path, origins={ORIGIN: path})
