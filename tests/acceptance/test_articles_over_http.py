"""The numbers of the five articles, as a user gets them: their jobs from examples/ over HTTP, against closed forms and reference figures."""

from typing import Any

import numpy as np
import pytest
from doors import ARTICLES, House, example
from sklearn.linear_model import BayesianRidge

X = np.arange(1.0, 6.0)
Y = np.array([2.0, 4.0, 7.0, 11.0, 16.0])
SXX, SXY = ARTICLES["article001"]["Sxx_over_m"], ARTICLES["article001"]["Sxy_over_m"]
VARIANTS = ("plain", "init", "batch_norm", "relu", "structure", "l2", "dropout")


def weight(run: dict[str, Any]) -> float:
    return run["coefficients"]["weights"][0]


def line(run: dict[str, Any]) -> list[float]:
    """Slope and intercept."""
    return [weight(run), run["coefficients"]["intercept"]]


@pytest.fixture(scope="module")
def table(house: House) -> dict[str, dict[str, float]]:
    """Article 002: variant → gradient ratio of the first layer to the last hidden one at step 0, accuracy, milliseconds a step; means over two seeds."""
    return {name: row(house, name) for name in VARIANTS}


def row(house: House, name: str) -> dict[str, float]:
    spec = example(f"002_{name}")
    job = house.trained({**spec, "budget": {**spec["budget"], "epochs": 5}, "selection": {"seeds": 2}})
    runs = house.runs(job["id"])
    assert [run["seed"] for run in runs] == [0, 1]
    first = [house.gradient(job["id"], "gradient/norm", run=run["index"])[0] for run in runs]
    return {
        "ratio": float(np.mean([norms[0] / norms[-2] for norms in first])),
        "accuracy": float(np.mean([run["metrics"]["accuracy/val"] for run in runs])),
        "ms": 1000 * job["result"]["seconds"]["step"] / runs[0]["steps"],
    }


@pytest.fixture(scope="module")
def jobs(house: House) -> dict[str, dict[str, Any]]:
    """Article 004 on digits: variant → job."""
    return {name: house.trained({**example(f"004_digits_{name}"), "budget": {"epochs": 4, "batch_size": 64}}) for name in ("l1", "l1_subgradient", "l2", "dropout")}


class TestArticle000:
    """A penalty on the step; labels −1 and +1."""

    rows = np.random.default_rng(0).normal(size=(40, 10))
    targets = rows @ np.array([1.0, -2, 3, -4, 5, -6, 7, -8, 9, -10]) + 1

    def spec(self, name: str, *, epochs: int = 50, alpha: float = 0.01, **optimizer: Any) -> dict[str, Any]:
        """An example on rows that this test knows, from weights that are zero."""
        spec = example(name)
        spec["regularizers"][0]["lambda"] = alpha
        return {
            **spec,
            "dataset": {"kind": "inline", "x": self.rows.tolist(), "y": self.targets.tolist()},
            "model": {"kind": "linear"},
            "optimizer": {**spec["optimizer"], **optimizer},
            "budget": {"epochs": epochs, "batch_size": "all"},
            "dtype": "float64",
        }

    def by_hand(self, *, alpha: float, squared: bool, epochs: int = 50, lr: float = 0.01, momentum: float = 0.9) -> tuple[np.ndarray, list[float]]:
        """The update of the contract, one line a formula: weights and intercept, and the penalty of each step."""
        rows = np.c_[self.rows, np.ones(len(self.rows))]
        theta, velocity, penalties = np.zeros(11), np.zeros(11), []
        for _ in range(epochs):
            gradient = 2 * rows.T @ (rows @ theta - self.targets) / len(rows)
            velocity = momentum * velocity + gradient
            direction = gradient + momentum * velocity
            length = np.linalg.norm(direction)
            delta = -lr / (1 + lr * alpha) * direction if squared else -lr * max(0.0, 1 - alpha / length) * direction
            penalties.append(alpha / 2 * delta @ delta if squared else alpha * np.linalg.norm(delta))
            theta = theta + delta
        return theta, penalties

    @pytest.mark.parametrize(("name", "squared"), [("000_step_penalty", False), ("000_step_penalty_squared", True)])
    def test_every_step_is_that_of_the_closed_form(self, house: House, name: str, squared: bool) -> None:
        job = house.trained(self.spec(name, alpha=5))["id"]
        theta, penalties = self.by_hand(alpha=5, squared=squared)
        (run,) = house.runs(job)
        np.testing.assert_allclose([*run["coefficients"]["weights"], run["coefficients"]["intercept"]], theta, rtol=1e-10)
        np.testing.assert_allclose(list(house.curve(job, "penalty/step_penalty").values()), penalties, rtol=1e-9)

    def test_squared_is_a_smaller_learning_rate(self, house: House) -> None:
        """η/(1 + ηα) = 0.01/(1 + 0.01·100) = 0.005, with Nesterov's momentum too."""
        penalised = house.trained(self.spec("000_step_penalty_squared", alpha=100))["id"]
        slower = house.trained({**self.spec("000_step_penalty_squared", lr=0.005), "regularizers": []})["id"]
        np.testing.assert_allclose(house.runs(penalised)[0]["coefficients"]["weights"], house.runs(slower)[0]["coefficients"]["weights"], rtol=1e-10)

    def test_unsquared_moves_nothing_while_the_gradient_is_shorter_than_alpha(self, house: House) -> None:
        job = house.trained(self.spec("000_step_penalty", alpha=1000, epochs=3))["id"]
        assert all(norm < 1000 for norm in house.curve(job, "gradient/total").values())
        assert house.runs(job)[0]["coefficients"]["weights"] == [0.0] * 10

    def test_unsquared_stops_where_the_gradient_is_as_long_as_alpha(self, house: House) -> None:
        """−η·max(0, 1 − α/‖g‖)·g is zero at ‖g‖ = α, which is reached from above: the penalty also stops the training."""
        job = house.trained(self.spec("000_step_penalty", alpha=2, epochs=800, momentum=0.0, nesterov=False, lr=0.1))["id"]
        norms = list(house.curve(job, "gradient/total").values())
        assert norms[0] > 10
        assert norms[-1] == pytest.approx(2, rel=1e-6)
        assert min(norms) > 2 * (1 - 1e-9)

    def test_labels_of_plus_and_minus_one_are_labels(self, house: House) -> None:
        signs = example("000_binary")
        bits = {**signs, "dataset": {**signs["dataset"], "y": [(y + 1) // 2 for y in signs["dataset"]["y"]]}}
        assert set(signs["dataset"]["y"]) == {-1, 1}
        one, two = (house.trained(spec)["id"] for spec in (signs, bits))
        assert house.curve(one, "loss/train") == house.curve(two, "loss/train")
        (first,), (second,) = house.runs(one), house.runs(two)
        assert first["coefficients"] == second["coefficients"]
        assert first["metrics"]["accuracy/train"] > 0.85

    def test_softmax_starts_at_ln_10_and_learns(self, house: House) -> None:
        job = house.trained(example("000_softmax_digits"))
        losses = house.curve(job["id"], "loss/val")
        assert losses[0] == pytest.approx(np.log(10), abs=0.2)
        assert losses[115] < losses[0] - 0.1  # ⌈1438/64⌉ = 23 steps × 5 epochs


class TestArticle001:
    """y = 2, 4, 7, 11, 16 on x = 1 … 5: what L1 and L2 do to the slope, and to the largest stable learning rate."""

    def test_l1(self, house: House) -> None:
        """½·mean(SSE) + λ|w|: w = (Sxy − λ)/Sxx = (7 − λ)/2, exactly 0 from λ = 7; the intercept is mean(y) − 3w = 8 − 3w."""
        runs = house.runs(house.trained(example("001_l1_grid"))["id"])
        strengths = [run["values"]["regularizers.0.lambda"] for run in runs]
        assert strengths == [0, 1, 3.5, 6.9, 7, 8]
        for run, lam in zip(runs, strengths, strict=True):
            slope = max(0.0, (SXY - lam) / SXX)
            assert line(run) == pytest.approx([slope, 8 - 3 * slope], abs=1e-10)
            assert (weight(run) == 0.0) == (lam >= 7) == (run["zeros"] == {"head.weight": 1})
        assert line(runs[0]) == pytest.approx(ARTICLES["article001"]["ols"], abs=1e-10)
        assert line(runs[1]) == pytest.approx(ARTICLES["article001"]["lasso(1/2m SSE+lam|w|) lam=1"], abs=1e-10)
        assert line(runs[4]) == pytest.approx(ARTICLES["article001"]["lasso lam=7"], abs=1e-10)

    def test_l2(self, house: House) -> None:
        """λ/2m: w = 35/(10 + λ). Our λ is that of the mean objective: the article's divided by m = 5."""
        runs = house.runs(house.trained(example("001_l2_grid"))["id"])
        articles = [5 * run["values"]["regularizers.0.lambda"] for run in runs]
        assert articles == pytest.approx([0, 1, 5, 10, 100])
        for run, lam in zip(runs, articles, strict=True):
            assert line(run) == pytest.approx([35 / (10 + lam), 8 - 3 * 35 / (10 + lam)], abs=1e-10)
        assert line(runs[1]) == pytest.approx(ARTICLES["article001"]["ridge 1/2m+lam/2m w2 lam=1"], abs=1e-10)
        assert line(runs[2]) == pytest.approx(ARTICLES["article001"]["ridge 1/2m+lam/2 w2 lam=1"], abs=1e-10)

    @pytest.mark.parametrize(("bias", "lam", "limit"), [(False, 0, 0.1818), (False, 1, 0.1667), (True, 0, 0.1690), (True, 1, 0.1567)])
    def test_the_largest_stable_learning_rate(self, house: House, bias: bool, lam: float, limit: float) -> None:
        """2/L, L the largest eigenvalue of the curvature [[11 + λ, 3], [3, 1]], without intercept 11 + λ. L2 lowers it: it cures no explosion."""
        curvature = np.array([[11 + lam, 3], [3, 1]]) if bias else np.array([[11.0 + lam]])
        moments = np.array([X @ Y, Y.sum()][: len(curvature)]) / 5
        assert 2 / np.linalg.eigvalsh(curvature)[-1] == pytest.approx(limit, abs=6e-5)

        below = house.trained(self.at(0.98 * limit, bias=bias, lam=lam, dtype="float64"))
        solution = np.linalg.solve(curvature, moments)
        assert line(house.runs(below["id"])[0])[: len(curvature)] == pytest.approx(solution, rel=1e-9)

        above = house.trained(self.at(1.02 * limit, bias=bias, lam=lam, dtype="float32"), state="failed")
        assert above["reason"] == "diverged"
        assert "optimizer.lr" in above["error"]["detail"]
        (run,) = house.runs(above["id"])
        assert (run["state"], run["stop_reason"]) == ("failed", "diverged")
        losses = house.curve(above["id"], "loss/train")
        assert list(losses) == list(range(run["steps"] + 1))  # the last one is the loss that was not finite, or whose gradient was not
        assert losses[run["steps"] - 1] > 1e30
        assert run["first_nonfinite"]["step"] == run["steps"]
        last = run["first_nonfinite"]["last"]
        assert last["loss/train"][:-1] == pytest.approx([losses[step] for step in last["steps"][:-1]], rel=1e-6)
        assert last["steps"] == list(range(run["steps"] - 31, run["steps"] + 1))

    def at(self, lr: float, *, bias: bool, lam: float, dtype: str) -> dict[str, Any]:
        spec = example("001_stability")
        spec["regularizers"][0]["lambda"] = lam
        budget = {"epochs": 1500, "batch_size": "all"}
        return {**spec, "model": {"kind": "linear", "bias": bias}, "optimizer": {"kind": "sgd", "lr": lr}, "budget": budget, "dtype": dtype, "diagnostics": "light"}

    def test_the_example_shows_both_sides_of_the_limit(self, house: House) -> None:
        job = house.trained(example("001_stability"))
        for run in house.runs(job["id"]):
            lam, lr = run["values"]["regularizers.0.lambda"], run["values"]["optimizer.lr"]
            assert run["stop_reason"] == ("diverged" if lr > 2 / (11 + lam) else "budget"), run


class TestArticle002:
    """What helps a deep sigmoid net: the article's comparison, measured."""

    def test_the_comparison(self, table: dict[str, dict[str, float]]) -> None:
        print("\n".join(f"{name:12} ratio {row['ratio']:9.2e}  accuracy {row['accuracy']:.3f}  {row['ms']:.2f} ms a step" for name, row in table.items()))
        assert table["plain"]["ratio"] < 1e-4, "eight sigmoid layers let the gradient vanish"
        assert table["plain"]["accuracy"] < 0.3
        for name in ("batch_norm", "relu"):
            assert table[name]["ratio"] > 0.1
            assert table[name]["accuracy"] > 0.5
        assert table["init"]["ratio"] > 100 * table["plain"]["ratio"]
        assert table["structure"]["ratio"] > 100 * table["plain"]["ratio"]
        for name in ("l2", "dropout"):  # the article offers them against vanishing gradients: they do not help
            assert table[name]["ratio"] < 1e-4
            assert table[name]["accuracy"] < 0.3
        assert all(row["ms"] > 0 for row in table.values())

    def test_the_plain_net_is_warned_about(self, house: House) -> None:
        answer = house.http.post("/v1/jobs", json={**example("002_plain"), "budget": {"epochs": 1, "batch_size": 64}, "selection": {"seeds": 1}})
        assert "model.activation" in [warning["path"] for warning in answer.json()["warnings"]]


class TestArticle003:
    """Ridge on y = 2x + 1 + noise, λ/2m with λ = 0.01 and m = 100: our λ is 1e-4."""

    reference = ARTICLES["article003"]

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        dataset = example("003_ridge")["dataset"]
        return np.array(dataset["x"])[:, 0], np.array(dataset["y"])

    @pytest.mark.parametrize(
        ("name", "value", "rate"), [("003_ridge", "correct grad of stated J (1/m) 1000 it", 0.01), ("003_ridge_as_printed", "article_code_with_m_fixed(2/m) 1000 it", 0.02)]
    )
    def test_after_1000_iterations(self, house: House, name: str, value: str, rate: float) -> None:
        """θ_t = θ* + (θ_0 − θ*)·ρ^t with ρ = 1 − rate·(XᵀX + λ)/m. The article starts at its random θ_0, the example at 0."""
        best, start = self.reference["closed_no_bias"], self.reference["theta0"]
        rho = 1 - rate * (self.reference["XtX"] + 0.01) / 100
        assert best + (start - best) * rho**1000 == pytest.approx(self.reference[value], abs=1e-12)
        (run,) = house.runs(house.trained(example(name))["id"])
        assert weight(run) == pytest.approx(best + (0 - best) * rho**1000, abs=1e-12)

    def test_without_intercept(self, house: House) -> None:
        (run,) = house.runs(house.trained({**example("003_ridge"), "optimizer": {"kind": "sgd", "lr": 0.5}})["id"])
        assert weight(run) == pytest.approx(self.reference["closed_no_bias"], rel=1e-12)

    def test_with_intercept(self, house: House) -> None:
        (run,) = house.runs(house.trained(example("003_ridge_intercept"))["id"])
        assert line(run) == pytest.approx(self.reference["closed_with_bias"], rel=1e-12)

    def test_a_grid_of_strengths_and_the_one_that_it_chooses(self, house: House) -> None:
        """Each λ on the first 80 rows is ridge's closed form; the one with the least loss on the last 20 is chosen."""
        job = house.trained(example("003_grid"))
        (x, y), runs = self.rows(), house.runs(job["id"])
        assert len(runs) == 25
        losses = []
        for run in runs:
            lam = run["values"]["regularizers.0.lambda"]
            dx, dy = x[:80] - x[:80].mean(), y[:80] - y[:80].mean()
            slope = dx @ dy / (dx @ dx + 80 * lam)
            intercept = y[:80].mean() - slope * x[:80].mean()
            assert line(run) == pytest.approx([slope, intercept], rel=1e-9)
            losses.append(np.mean((slope * x[80:] + intercept - y[80:]) ** 2) / 2)
            assert run["metrics"]["loss/val"] == pytest.approx(losses[-1], rel=1e-9)
        best = int(np.argmin(losses))
        assert (job["result"]["chosen_run"], job["result"]["chosen_by"]) == (best, "loss/val")
        assert job["result"]["values"] == runs[best]["values"]
        assert house.runs(job["id"], sort="loss/val", limit=1)[0]["index"] == best

    def test_a_strength_that_finds_itself_is_that_of_bayesian_ridge_in_every_convention(self, house: House) -> None:
        """scikit-learn's, with all hyperpriors 0: its alpha is the ratio of its two precisions."""
        theirs = BayesianRidge(alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, tol=1e-12, max_iter=1000).fit(self.rows()[0][:, None], self.rows()[1])
        job = house.trained(example("003_adaptive"))
        (run,), of = house.runs(job["id"]), job["result"]["adaptation"]
        assert run["adaptation"] == of
        assert (of["method"], of["start"], of["verdict"], of["path"]) == ("evidence", 1.0, "settled", "regularizers.0.lambda")
        assert 100 * of["strength"] == pytest.approx(theirs.lambda_ / theirs.alpha_, rel=1e-6)
        assert run["metrics"]["strength/l2"] == of["strength"]
        conventions = {row["convention"]: row["value"] for row in job["result"]["lambda"]["regularizers.0.lambda"]}
        assert conventions["sklearn_ridge"] == pytest.approx(100 * of["strength"], rel=1e-12)
        assert line(run) == pytest.approx([theirs.coef_[0], theirs.intercept_], rel=1e-6)
        curve = house.curve(job["id"], "strength/l2")
        assert (len(curve), curve[0], curve[500]) == (501, 1.0, of["strength"])


class TestArticle004:
    """784-128-10 with L1, L2 or dropout, on digits (64-128-10)."""

    @pytest.mark.parametrize(("name", "kind"), [("l1", "l1"), ("l1_subgradient", "l1"), ("l2", "l2")])
    def test_the_penalty_stands_beside_the_loss(self, house: House, jobs: dict[str, dict[str, Any]], name: str, kind: str) -> None:
        """First layer uniform in ±1/√64: λΣ|w| = 0.01·8192/16 = 5.12 and λ/2·Σw² = 0.005·8192/(3·64) = 0.2133."""
        job = jobs[name]["id"]
        loss, penalty, objective = (house.curve(job, series) for series in ("loss/train", f"penalty/{kind}", "objective/train"))
        assert list(loss) == list(penalty) == list(objective) == list(range(92))  # ⌈1438/64⌉ = 23 steps × 4 epochs
        assert penalty[0] == pytest.approx(5.12 if kind == "l1" else 0.2133, rel=0.04)
        assert loss[0] == pytest.approx(np.log(10), abs=0.1)
        np.testing.assert_allclose(list(objective.values()), np.add(list(loss.values()), list(penalty.values())), rtol=1e-6)

    def test_only_the_first_layer_is_penalised(self, jobs: dict[str, dict[str, Any]]) -> None:
        assert jobs["l1"]["result"]["zeros"].keys() == {"layers.0.weight"}

    def test_zeros_are_exact_under_the_proximal_form_and_absent_under_the_subgradient(self, jobs: dict[str, dict[str, Any]]) -> None:
        assert jobs["l1"]["result"]["zeros"]["layers.0.weight"] > 100
        assert jobs["l1_subgradient"]["result"]["zeros"]["layers.0.weight"] == 0
        assert jobs["l2"]["result"]["zeros"]["layers.0.weight"] == 0

    def test_a_strength_that_is_far_too_large_is_warned_about_when_the_rows_are_known(self, jobs: dict[str, dict[str, Any]]) -> None:
        for name in ("l1", "l1_subgradient"):
            (warning,) = [w for w in jobs[name]["warnings"] if w["source"] == "data"]
            assert warning["path"] == "regularizers.0.lambda"
            assert "far too strong" in warning["message"]
        assert not any(warning["source"] == "data" for warning in jobs["l2"]["warnings"])
        assert "regularizers.0.method" in [w["path"] for w in jobs["l1_subgradient"]["warnings"] if w["source"] == "spec"]

    def test_at_the_size_of_mnist(self, house: House) -> None:
        """784·128 weights uniform in ±1/28: λΣ|w| = 0.01·100352/56 = 17.92, with a deviation of 0.01·√100352/(28·√12) = 0.033."""
        spec = example("004_mnist_l1")
        dataset = {"kind": "blobs", "rows": 640, "features": 784, "centers": 10}
        job = house.trained({**spec, "dataset": dataset, "budget": {"epochs": 1, "batch_size": 64}})
        assert house.curve(job["id"], "penalty/l1")[0] == pytest.approx(17.92, abs=0.13)

    def test_dropout_learns(self, house: House, jobs: dict[str, dict[str, Any]]) -> None:
        losses = house.curve(jobs["dropout"]["id"], "loss/val")
        assert list(losses) == [0, 23, 46, 69, 92]
        assert losses[92] < losses[0] - 0.05
