"""What a dataset is, and the facts about it that are known without its rows. Loaded in worker/training/datasets.py."""

from dataclasses import dataclass
from typing import Annotated, Literal, assert_never

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from regtrain.contract.base import Part, Unfit
from regtrain.contract.groups import Numbers, Parts, group_parts, numbered
from regtrain.contract.models import Image, Sequence

Fraction = Annotated[float, Field(ge=0, lt=1)]
Rows = Annotated[int, Field(ge=2, le=10_000_000)]
Cell = Annotated[float, Field(ge=-1e300, le=1e300)]
Group = Annotated[int, Field(ge=-(2**53), le=2**53)] | Annotated[str, Field(min_length=1, max_length=200)]


class Facts(Part):
    """What the service knows of a dataset without its rows: a table for bundled sets, computed once for uploads."""

    rows: int
    """All rows: train, val and test together."""
    features: int
    """Numbers in a row."""
    target: Literal["real", "class", "either"]
    """`either`: whole numbers that can be labels or quantities."""
    classes: int | None = None
    """How many distinct labels, where the target can be a label."""
    outputs: int = 1
    """Columns of a real target."""
    feature_names: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None
    """Labels in the order of the model's outputs."""
    image: Image | None = None
    sequence: Sequence | None = None
    test_rows: int | None = None
    """Rows that the publisher has set apart as test rows, the last ones."""
    group_sizes: tuple[int, ...] | None = None
    """Rows of each group, in rising order of the groups' labels; None where rows have no groups."""

    @property
    def groups(self) -> int | None:
        """How many different groups."""
        return None if self.group_sizes is None else len(self.group_sizes)


def feature_names(facts: Facts) -> tuple[str, ...]:
    """One name a column: its own, else x0, x1, …"""
    return facts.feature_names or tuple(f"x{i}" for i in range(facts.features))


class _Split(Part):
    validation: Fraction = 0.0
    """Share of the rows (without the test rows) held out for the `val` curves and early stopping."""
    standardize: bool = False
    """Subtract the mean and divide by the population deviation of each column, both fitted on the training rows."""


class _Dataset(_Split):
    test: Fraction = 0.0
    """Share of the rows held out for the final `test` metrics; touched once, at the end."""
    split: Literal["random", "stratified", "last", "grouped"] = "random"
    """How held-out rows are chosen: at random from the job's seed, at random with the same share of every class, the last ones as they stand, or whole groups at random."""


class Inline(_Dataset):
    """Rows in the spec itself."""

    kind: Literal["inline"]
    x: Annotated[tuple[Annotated[tuple[Cell, ...], Field(min_length=1, max_length=10_000)], ...], Field(min_length=1, max_length=100_000)]
    """One list of numbers a row."""
    y: Annotated[tuple[Cell, ...], Field(min_length=1, max_length=100_000)]
    """One target a row: a quantity, or a whole number as label."""
    groups: Annotated[tuple[Group, ...], Field(min_length=1, max_length=100_000)] | None = None
    """One label a row, all whole numbers or all words: rows of one label belong together, such as those of one patient. See `split` and `selection.grouped`."""

    @model_validator(mode="after")
    def rows_agree(self) -> "Inline":
        if len(self.x) != len(self.y):
            raise Unfit(f"x has {len(self.x)} rows and y has {len(self.y)} targets", "give one target a row")
        if len({len(row) for row in self.x}) != 1:
            raise Unfit("the rows of x have different lengths", "give every row the same number of columns")
        return self

    @field_validator("groups")
    @classmethod
    def a_label_a_row(cls, given: tuple[int | str, ...] | None, info: ValidationInfo) -> tuple[int | str, ...] | None:
        rows = len(info.data.get("x", given or ()))
        if given is not None and len(given) != rows:
            raise Unfit(f"x has {rows} rows and groups has {len(given)} labels", "give one label a row, or leave groups out")
        if given is not None and len({type(label) for label in given}) > 1:
            raise Unfit("some groups are numbers and some are words", "give all labels as whole numbers, or all as words")
        return given


class Digits(_Dataset):
    """1,797 handwritten digits, 8 × 8 pixels divided by 16, 10 classes (Alpaydin & Kaynak 1998; scikit-learn's copy)."""

    kind: Literal["digits"]


class Iris(_Dataset):
    """150 irises, 4 measurements in cm, 3 classes (Fisher 1936; scikit-learn's copy)."""

    kind: Literal["iris"]


class Wine(_Dataset):
    """178 wines, 13 measurements, 3 classes (Aeberhard et al. 1992; scikit-learn's copy)."""

    kind: Literal["wine"]


class BreastCancer(_Dataset):
    """569 tumours, 30 measurements, 2 classes: 0 malignant, 1 benign (Street et al. 1993; scikit-learn's copy)."""

    kind: Literal["breast_cancer"]


class Diabetes(_Dataset):
    """442 patients, 10 columns centred and of Euclidean norm 1, target: progression after a year (Efron et al. 2004; scikit-learn's copy)."""

    kind: Literal["diabetes"]


class Mnist(_Split):
    """70,000 handwritten digits, 28 × 28 pixels divided by 255, 10 classes; the last 10,000 are the test rows (LeCun et al. 1998).

    Its files are read from `<data folder>/mnist/`: the four published IDX files (plain or .gz), or `mnist.npz`.
    """

    kind: Literal["mnist"]


class _Generator(_Dataset):
    rows: Rows = 1000
    """How many rows are drawn."""
    draw: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Seed of the rows; the job's own seed does not change them."""


class LinearRows(_Generator):
    """x ~ N(0, 1) in each column, y = intercept + Σ_j coefficients_j·x_j + noise·N(0, 1)."""

    kind: Literal["linear"]
    coefficients: Annotated[tuple[Cell, ...], Field(min_length=1, max_length=10_000)] = (2.0,)
    """One a column."""
    intercept: Cell = 1.0
    """What y is where all columns are 0."""
    noise: Annotated[float, Field(ge=0, le=1e300)] = 0.5
    """Standard deviation of the noise."""


class Blobs(_Generator):
    """Gaussian clouds of deviation `std` around centers that are uniform in ±10; the label is the cloud."""

    kind: Literal["blobs"]
    centers: Annotated[int, Field(ge=2, le=1000)] = 3
    """Clouds, and so classes."""
    features: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Columns."""
    std: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Standard deviation of a cloud in each column."""


class Circles(_Generator):
    """Two circles around 0, of radius 1 (label 0) and `factor` (label 1), plus noise·N(0, 1) in both columns."""

    kind: Literal["circles"]
    noise: Annotated[float, Field(ge=0, le=1e6)] = 0.1
    """Standard deviation of the noise."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Radius of the inner circle."""


class Adding(_Generator):
    """Two channels at each of `length` steps: a number uniform in [0, 1), and a mark that is 1 at one step of the first half and at one of the second.

    The target is the sum of the two marked numbers (Hochreiter & Schmidhuber 1997, in the form of Le et al. 2015). A model that always answers 1
    has a mean squared error of 1/6, the variance of that sum: below it something has been carried over up to `length` steps.
    """

    kind: Literal["adding"]
    length: Annotated[int, Field(ge=2, le=10_000)] = 50
    """Steps of a sequence."""


class TemporalOrder(_Generator):
    """Which of A and B came first and which second, among distractors c, d, e, f: six channels, the symbol of each of `length` steps as 0 and 1.

    The first of the two stands in the second tenth of the sequence, the second in its fifth tenth, all other steps are distractors; the four
    classes AA, AB, BA, BB are equally frequent, so that a constant answer has cross-entropy ln 4 (Hochreiter & Schmidhuber 1997, experiment 6a,
    in the form of Pascanu et al. 2013).
    """

    kind: Literal["temporal_order"]
    length: Annotated[int, Field(ge=10, le=10_000)] = 50
    """Steps of a sequence."""


class Copying(_Generator):
    """`memory` symbols of an `alphabet`, then `blanks` steps of nothing, then one step that asks for one of the symbols by its place: the label is that symbol.

    Channels: one a symbol, one for nothing, one a place that can be asked for. The copying problem of Hochreiter & Schmidhuber (1997) and
    Arjovsky et al. (2016) asks for all symbols, one step after the other; here each row asks for one, drawn uniformly, so that the expected loss is the
    mean of theirs over the places. A constant answer has cross-entropy ln(alphabet).
    """

    kind: Literal["copying"]
    memory: Annotated[int, Field(ge=1, le=1000)] = 10
    """Symbols to be remembered."""
    alphabet: Annotated[int, Field(ge=2, le=1000)] = 8
    """Different symbols, and so classes."""
    blanks: Annotated[int, Field(ge=0, le=10_000)] = 50
    """Steps between the symbols and the question."""


class Upload(_Dataset):
    """Rows that were uploaded to /v1/datasets."""

    kind: Literal["upload"]
    id: Annotated[str, Field(pattern=r"^ds_[0-9A-Za-z]{1,64}$")]
    """The dataset's ID."""


Dataset = Annotated[
    Inline | Digits | Iris | Wine | BreastCancer | Diabetes | Mnist | LinearRows | Blobs | Circles | Adding | TemporalOrder | Copying | Upload, Field(discriminator="kind")
]

_WINE = "alcohol malic_acid ash alcalinity_of_ash magnesium total_phenols flavanoids nonflavanoid_phenols proanthocyanins color_intensity hue od280/od315_of_diluted_wines proline"
_TUMOUR = ("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points", "symmetry", "fractal dimension")

BUNDLED: dict[str, Facts] = {
    "digits": Facts(
        rows=1797, features=64, target="class", classes=10, image=(1, 8, 8), class_names=tuple("0123456789"),
        feature_names=tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8)),
    ),
    "iris": Facts(
        rows=150, features=4, target="class", classes=3, class_names=("setosa", "versicolor", "virginica"),
        feature_names=("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"),
    ),
    "wine": Facts(rows=178, features=13, target="class", classes=3, class_names=("class_0", "class_1", "class_2"), feature_names=tuple(_WINE.split())),
    "breast_cancer": Facts(
        rows=569, features=30, target="class", classes=2, class_names=("malignant", "benign"),
        feature_names=(*(f"mean {m}" for m in _TUMOUR), *(f"{m} error" for m in _TUMOUR), *(f"worst {m}" for m in _TUMOUR)),
    ),
    "diabetes": Facts(rows=442, features=10, target="real", feature_names=("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")),
    "mnist": Facts(rows=70_000, features=784, target="class", classes=10, image=(1, 28, 28), class_names=tuple("0123456789"), test_rows=10_000),
}  # fmt: skip


def facts_of(dataset: Dataset) -> Facts | None:
    """The facts that follow from the spec alone; None for an upload, whose facts the store keeps."""
    match dataset:
        case Inline(x=x, y=y):
            return Facts.model_validate({"rows": len(x), "features": len(x[0]), "group_sizes": inline_groups(dataset)[1], **target_facts(y)})
        case LinearRows(rows=rows, coefficients=coefficients):
            return Facts(rows=rows, features=len(coefficients), target="real")
        case Blobs(rows=rows, features=features, centers=centers):
            return Facts(rows=rows, features=features, target="class", classes=centers, class_names=tuple(map(str, range(centers))))
        case Circles(rows=rows):
            return Facts(rows=rows, features=2, target="class", classes=2, class_names=("0", "1"))
        case Adding(rows=rows, length=length):
            return Facts(rows=rows, features=2 * length, target="real", sequence=(length, 2))
        case TemporalOrder(rows=rows, length=length):
            return Facts(rows=rows, features=6 * length, target="class", classes=4, class_names=("AA", "AB", "BA", "BB"), sequence=(length, 6))
        case Copying(rows=rows, memory=memory, alphabet=alphabet, blanks=blanks):
            steps, channels = memory + blanks + 1, alphabet + 1 + memory
            names = tuple(map(str, range(alphabet)))
            return Facts(rows=rows, features=steps * channels, target="class", classes=alphabet, class_names=names, sequence=(steps, channels))
        case Upload():
            return None
        case Digits() | Iris() | Wine() | BreastCancer() | Diabetes() | Mnist():
            return BUNDLED[dataset.kind]
        case _:
            assert_never(dataset)


def inline_groups(dataset: Inline) -> tuple[Numbers | None, tuple[int, ...] | None]:
    """The number of each row's group, and the rows of each group; None where there are no groups."""
    return (None, None) if dataset.groups is None else numbered(dataset.groups)


def target_facts(y: tuple[float, ...]) -> dict[str, object]:
    """Whether targets can be labels: whole numbers, at most 1,000 different ones. Labels are numbered in rising order."""
    labels = sorted(set(y))
    if len(labels) > 1000 or any(label != int(label) for label in labels):
        return {"target": "real"}
    return {"target": "either", "classes": len(labels), "class_names": tuple(str(int(label)) for label in labels)}


@dataclass(frozen=True)
class Counts:
    """How many rows each split has."""

    train: int
    val: int
    test: int


def counts(dataset: Dataset, facts: Facts, *, seed: int) -> Counts:
    """Test rows are taken first, then validation rows from what is left; both are rounded to whole rows.

    How many rows whole groups come to depends on which are drawn, so on the job's seed; nothing else does.
    """
    if (found := parts_of(dataset, facts, seed=seed)) is not None:
        assert facts.group_sizes is not None
        sizes = np.array(facts.group_sizes)
        return Counts(*(int(sizes[part].sum()) for part in (found.train, found.val, found.test)))
    test = facts.test_rows if facts.test_rows is not None else 0 if isinstance(dataset, Mnist) else round(facts.rows * dataset.test)
    val = round((facts.rows - test) * dataset.validation)
    return Counts(train=facts.rows - test - val, val=val, test=test)


def parts_of(dataset: Dataset, facts: Facts, *, seed: int) -> Parts | None:
    """Which groups are held out; None where single rows are."""
    if isinstance(dataset, Mnist) or dataset.split != "grouped" or facts.group_sizes is None:
        return None
    return group_parts(facts.group_sizes, test=dataset.test, validation=dataset.validation, seed=seed)
