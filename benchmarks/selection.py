"""λ chosen by 5 folds among 20 values and trained once more on all rows: one job against Optuna around a lean torch loop, and against GridSearchCV with scikit-learn's MLP.

OMP_NUM_THREADS=1 python benchmarks/selection.py [--quick: two rounds, nothing kept]

All see the same folds (as the rows stand), scale the columns on the training rows of each fold, and train the same ReLU net with the same objective
(mean loss + λ/2·Σw² over the weights), plain SGD with momentum, batch and epochs. They draw their own initial weights and row orders, so scores agree
within the spread of a seed, not to the digit; the second table says how near they are. The job is measured in this process and, once a round, through
a service with a warm worker, from before the POST to the answer that it has ended.
"""

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import optuna
import torch
from harness import interleaved, publish, quartiles, ratios, timed
from numpy.typing import NDArray
from peers import lean_fit
from sklearn.datasets import load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from regtrain.cli.processes import house
from regtrain.client import Client
from regtrain.contract.events import Finished
from regtrain.contract.job import parse
from worker.training.train import train

FOLDS, BATCH, MOMENTUM = 5, 64, 0.9


@dataclass(frozen=True)
class Case:
    """One net on one dataset, and the λ to choose from."""

    dataset: str
    sizes: tuple[int, ...]
    low: float
    high: float
    points: int
    lr: float
    epochs: int

    @property
    def name(self) -> str:
        return f"{'-'.join(map(str, self.sizes))} on {self.dataset}"

    @property
    def real(self) -> bool:
        return self.sizes[-1] == 1

    @property
    def lambdas(self) -> list[float]:
        return [float(value) for value in np.geomspace(self.low, self.high, self.points)]


@dataclass(frozen=True)
class Table:
    """What a search found: mean and standard error over the folds for every λ, in rising order of λ."""

    means: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def best(self) -> int:
        return min(range(len(self.means)), key=lambda place: self.means[place])


CASES = (
    Case("diabetes", (10, 16, 1), low=1e-2, high=1e2, points=20, lr=0.001, epochs=100),
    Case("digits", (64, 32, 10), low=1e-4, high=1e0, points=20, lr=0.05, epochs=20),
)


def main(quick: bool) -> None:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", ConvergenceWarning)  # as many epochs as everybody: no early stop
    rounds = 2 if quick else 5
    with (
        TemporaryDirectory() as folder,
        house(workers=1, log=Path(folder) / "log", port=0, data=folder, threads=1, device="cpu", selftest_seconds="inf") as running,
        Client(running.url) as client,
    ):
        rows = [row for case in CASES for row in measured(case, client, rounds=rounds)]
    publish("selection", rows, keep=not quick)


def measured(case: Case, client: Client, *, rounds: int) -> list[dict[str, Any]]:
    found: dict[str, Table] = {}
    x, y = rows_of(case)

    def contestant(name: str, search: Callable[[], Table]) -> Callable[[], float]:
        return lambda: timed(lambda: found.update({name: search()}))

    ours = {
        "ours, standard": lambda: in_process(case, "standard"),
        "ours, off": lambda: in_process(case, "off"),
        "ours over HTTP, standard": lambda: over_http(case, client),
    }
    peers = {"Optuna + torch": lambda: with_optuna(case, x, y), "GridSearchCV": lambda: with_sklearn(case, x, y)}
    taken = interleaved({name: contestant(name, search) for name, search in (ours | peers).items()}, rounds=rounds)
    times = [
        {
            "net": case.name,
            "what": name,
            "against": peer,
            "runs": rounds,
            "seconds": quartiles(taken[name]),
            "peer_seconds": quartiles(taken[peer]),
            "ratio": quartiles(ratios(taken[name], taken[peer])),
        }
        for name in ours
        for peer in peers
    ]
    return [*times, *(agreement(case, found["ours, standard"], found[name], name) for name in found)]


def agreement(case: Case, ours: Table, theirs: Table, name: str) -> dict[str, Any]:
    """How near a search's choice is to ours: by its λ, by its score, and by what its λ scores in our own table, both over our best score."""
    least = ours.means[ours.best]
    return {
        "net": case.name, "found_by": name, "best_lambda": case.lambdas[theirs.best], "score": theirs.means[theirs.best], "standard_error": theirs.errors[theirs.best],
        "places_from_ours": theirs.best - ours.best, "score_to_ours": theirs.means[theirs.best] / least, "its_lambda_in_our_table_to_ours": ours.means[theirs.best] / least,
    }  # fmt: skip


# ---------------------------------------------------------------- ours


def spec(case: Case, diagnostics: str) -> str:
    return json.dumps({
        "dataset": {"kind": case.dataset, "standardize": True}, "model": {"kind": "mlp", "hidden": case.sizes[1:-1], "activation": "relu"},
        "loss": {"kind": "half_squared_error" if case.real else "cross_entropy"}, "regularizers": [{"kind": "l2", "lambda": {"log": [case.low, case.high], "points": case.points}}],
        "optimizer": {"kind": "sgd", "lr": case.lr, "momentum": MOMENTUM}, "budget": {"epochs": case.epochs, "batch_size": BATCH},
        "selection": {"folds": FOLDS, "shuffle": False}, "diagnostics": diagnostics,
    })  # fmt: skip


def in_process(case: Case, diagnostics: str) -> Table:
    *_, end = train(parse(spec(case, diagnostics)))
    assert isinstance(end, Finished)
    return table_of(end.result)


def over_http(case: Case, client: Client) -> Table:
    job = client.wait(client.submit(spec(case, "standard"))["id"])
    assert job["state"] == "succeeded", job
    return table_of(job.get("result") or {})


def table_of(result: dict[str, Any]) -> Table:
    scores = result["selection"]["table"]
    return Table(tuple(score["mean"] for score in scores), tuple(score["standard_error"] for score in scores))


# ---------------------------------------------------------------- peers


def rows_of(case: Case) -> tuple[NDArray[np.float32], NDArray[Any]]:
    load: Any = load_diabetes if case.dataset == "diabetes" else load_digits
    x, y = load(return_X_y=True)
    return x.astype(np.float32), y.astype(np.float32 if case.real else np.int64)


def with_optuna(case: Case, x: NDArray[np.float32], y: NDArray[Any]) -> Table:
    """A grid of λ as trials, each a loop over the folds; then the best λ on all rows. The study is kept in memory."""
    folds, scores = list(KFold(FOLDS).split(x)), dict[float, list[float]]()

    def objective(trial: optuna.Trial) -> float:
        lam = trial.suggest_float("lambda", case.low, case.high, log=True)
        scores[lam] = [fold(case, x, y, rows, held, lam) for rows, held in folds]
        return fmean(scores[lam])

    study = optuna.create_study(sampler=optuna.samplers.GridSampler({"lambda": case.lambdas}, seed=0))
    study.optimize(objective, n_trials=case.points)
    fitted(case, scaled(x, x), y, study.best_params["lambda"])
    return Table(tuple(fmean(scores[lam]) for lam in case.lambdas), tuple(stdev(scores[lam]) / sqrt(FOLDS) for lam in case.lambdas))


def fold(case: Case, x: NDArray[np.float32], y: NDArray[Any], rows: NDArray[np.int64], held: NDArray[np.int64], lam: float) -> float:
    """The loss on the rows that were held out."""
    model = fitted(case, scaled(x[rows], x[rows]), y[rows], lam)
    with torch.no_grad():
        return loss(case)(model(scaled(x[held], x[rows])), target(case, y[held])).item()


def fitted(case: Case, x: Tensor, y: NDArray[Any], lam: float) -> torch.nn.Sequential:
    return lean_fit(list(case.sizes), x, target(case, y), loss_of=loss(case), epochs=case.epochs, batch=BATCH, lr=case.lr, momentum=MOMENTUM, l2=lam)


def scaled(x: NDArray[np.float32], rows: NDArray[np.float32]) -> Tensor:
    """Columns of mean 0 and deviation 1 on the training `rows`."""
    deviation = rows.std(0)
    return torch.from_numpy((x - rows.mean(0)) / np.where(deviation > 0, deviation, 1))


def target(case: Case, y: NDArray[Any]) -> Tensor:
    return torch.from_numpy(y).unsqueeze(1) if case.real else torch.from_numpy(y)


def loss(case: Case) -> Callable[[Tensor, Tensor], Tensor]:
    return (lambda f, y: mse_loss(f, y) / 2) if case.real else cross_entropy


def with_sklearn(case: Case, x: NDArray[np.float32], y: NDArray[Any]) -> Table:
    """Its alpha is divided by the rows of each batch: λ times the batch is the same objective."""
    kind: Any = MLPRegressor if case.real else MLPClassifier
    scoring = "neg_mean_squared_error" if case.real else "neg_log_loss"
    net = kind(
        hidden_layer_sizes=case.sizes[1:-1], activation="relu", solver="sgd", batch_size=BATCH, learning_rate_init=case.lr, momentum=MOMENTUM, nesterovs_momentum=False,
        max_iter=case.epochs, n_iter_no_change=case.epochs, tol=0, random_state=0,
    )  # fmt: skip
    name = kind.__name__.lower()
    search = GridSearchCV(make_pipeline(StandardScaler(), net), {f"{name}__alpha": [lam * BATCH for lam in case.lambdas]}, scoring=scoring, cv=KFold(FOLDS)).fit(x, y)
    halved = 0.5 if case.real else 1.0
    scores = -halved * np.stack([search.cv_results_[f"split{k}_test_score"] for k in range(FOLDS)])
    return Table(tuple(scores.mean(0).tolist()), tuple((scores.std(0, ddof=1) / sqrt(FOLDS)).tolist()))


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
