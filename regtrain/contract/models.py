"""What a model is, and the shapes of its parameters. Computed in worker/training/models.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Annotated, Literal, assert_never

from pydantic import Field

from regtrain.contract.base import Part
from regtrain.contract.ranges import Number, Searchable

Activation = Literal["sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softsign", "softplus", "identity"]
Width = Annotated[int, Field(ge=1, le=65_536)]
Image = tuple[Width, Width, Width]
"""Channels, height, width."""
Sequence = tuple[Width, Width]
"""Time steps, channels: a row holds the channels of the first step, then those of the second, and so on."""


class _Init(Part):
    scale: Annotated[Number, Searchable(gt=0)] = 1.0
    """Every drawn weight is multiplied with this."""


class TorchInit(_Init):
    """torch's own default: weights and biases uniform in ±1/√fan_in, in recurrent layers ±1/√hidden."""

    kind: Literal["torch"]


class Uniform(_Init):
    """Weights uniform in ±bound, biases 0."""

    kind: Literal["uniform"]
    bound: Annotated[float, Field(gt=0)] = 0.05
    """The largest absolute weight."""


class Normal(_Init):
    """Weights normal with mean 0 and deviation `std`, biases 0."""

    kind: Literal["normal"]
    std: Annotated[float, Field(gt=0)] = 0.01
    """Standard deviation."""


class XavierUniform(_Init):
    """Uniform with variance 2/(fan_in + fan_out), biases 0 (Glorot & Bengio 2010)."""

    kind: Literal["xavier_uniform"]


class XavierNormal(_Init):
    """Normal with variance 2/(fan_in + fan_out), biases 0 (Glorot & Bengio 2010)."""

    kind: Literal["xavier_normal"]


class HeUniform(_Init):
    """Uniform with variance 2/fan_in, biases 0 (He et al. 2015)."""

    kind: Literal["he_uniform"]


class HeNormal(_Init):
    """Normal with variance 2/fan_in, biases 0 (He et al. 2015)."""

    kind: Literal["he_normal"]


class LecunUniform(_Init):
    """Uniform with variance 1/fan_in, biases 0 (LeCun et al. 1998)."""

    kind: Literal["lecun_uniform"]


class LecunNormal(_Init):
    """Normal with variance 1/fan_in, biases 0 (LeCun et al. 1998)."""

    kind: Literal["lecun_normal"]


class Orthogonal(_Init):
    """Rows or columns orthonormal, biases 0 (Saxe et al. 2014)."""

    kind: Literal["orthogonal"]


class Identity(_Init):
    """Square matrices are the identity, the others normal with mean 0 and deviation `std`, biases 0: with `relu` cells the IRNN of Le et al. (2015).

    In an `rnn` every gate's recurrent matrix is square; so is any layer as wide as what it reads. Filters are not.
    """

    kind: Literal["identity"]
    std: Annotated[float, Field(ge=0)] = 0.001
    """Standard deviation of what is not square."""


class Lsuv(_Init):
    """Layer-sequential unit variance: orthogonal matrices, biases 0, then, from the first layer to the head, W ← scale·W/√Var(Wh), with the variance over all rows
    and units of the run's first batch of training rows, so that every linear output starts with deviation `scale` (Mishkin & Matas 2016).

    One division is exact, since biases are 0; a layer whose outputs are all equal keeps its orthogonal weights. What came out is `signal/forward` at step 0.
    """

    kind: Literal["lsuv"]


class Zeros(_Init):
    """All weights and biases 0: for linear models."""

    kind: Literal["zeros"]


Init = Annotated[
    TorchInit | Uniform | Normal | XavierUniform | XavierNormal | HeUniform | HeNormal | LecunUniform | LecunNormal | Orthogonal | Identity | Lsuv | Zeros,
    Field(discriminator="kind"),
]


class BatchNorm(Part):
    """γ·(v − mean)/√(var + ε) + β over the rows (and pixels) of the batch, biased variance; running averages in evaluation (Ioffe & Szegedy 2015)."""

    kind: Literal["batch"]
    eps: Annotated[float, Field(ge=0)] = 1e-5
    """ε."""
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """How much of a new batch enters the running averages."""


class LayerNorm(Part):
    """γ·(v − mean)/√(var + ε) + β over the features of each row (for images: channels and pixels, γ and β one a channel) (Ba et al. 2016)."""

    kind: Literal["layer"]
    eps: Annotated[float, Field(ge=0)] = 1e-5
    """ε."""


Normalization = Annotated[BatchNorm | LayerNorm, Field(discriminator="kind")]


class WeightNorm(Part):
    """W = g·v/‖v‖ for each unit (each filter): its length g and its direction v are learned apart (Salimans & Kingma 2016).

    `weight` of a layer is v, `gain` is g, which starts at ‖v‖, so that W starts as the init drew it. The length of v is free: ⟨v, ∇v⟩ = 0.
    """

    kind: Literal["weight_norm"]


class SpectralNorm(Part):
    """W/σ(W): every layer's largest singular value is 1 (Miyato et al. 2018). Filters are matrices of one row a filter.

    σ = uᵀWv with running singular vectors, one iteration of the power method at each update (15 before the first), as in torch; the gradient
    is that of uᵀWv at fixed u and v. So σ follows W with a delay: it is exact where W stands still, and slightly too small where it moves.
    Evaluation uses the vectors of the last update; micro-batches share those of their update.
    """

    kind: Literal["spectral_norm"]


Reparametrization = Annotated[WeightNorm | SpectralNorm, Field(discriminator="kind")]


class LinearModel(Part):
    """f(x) = Wx + b: linear, logistic or softmax regression, depending on the loss. Its one layer is `head`."""

    kind: Literal["linear"]
    bias: bool = True
    """Fit b, the intercept."""
    init: Init = Zeros(kind="zeros")
    """Initial weights."""


class Mlp(Part):
    """Fully connected: `layers.0` … `layers.n`, each linear → normalization → activation, then the linear `head`.

    With `residual`, a layer as wide as what it reads gives h + φ(norm(Wh + b)): the identity goes around the whole layer, as in He et al. 2016
    ("Identity Mappings"), so that the gradient has a path on which nothing is multiplied. The addition comes behind the activation, and dropout
    acts on the branch φ(…) alone. Layers of another width have no such path.
    """

    kind: Literal["mlp"]
    hidden: Annotated[tuple[Width, ...], Field(min_length=1, max_length=512)]
    """Width of each hidden layer."""
    activation: Activation = "relu"
    """φ of the hidden layers."""
    bias: bool = True
    """Biases in every layer."""
    normalization: Normalization | None = None
    """In front of the activation of every hidden layer."""
    reparametrization: Reparametrization | None = None
    """Of the weights of every layer, the head included."""
    residual: bool = False
    """Add its input to the output of every hidden layer that is as wide as its input."""
    init: Init = TorchInit(kind="torch")
    """Initial weights."""


class Cnn(Part):
    """Convolutional: each `layers.i` is conv (padding kernel//2) → normalization → activation → pool, then dense layers, then the linear `head`."""

    kind: Literal["cnn"]
    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=64)]
    """Filters of each convolution."""
    kernel: Annotated[int, Field(ge=1, le=31)] = 3
    """Height and width of the filters; with odd ones and stride 1 the image keeps its size."""
    stride: Annotated[int, Field(ge=1, le=8)] = 1
    """Stride of the convolutions."""
    pool: Literal["max", "average", "none"] = "max"
    """2 × 2 after each activation, as long as both sides are at least 2."""
    hidden: Annotated[tuple[Width, ...], Field(max_length=512)] = ()
    """Width of each dense layer behind the convolutions."""
    activation: Activation = "relu"
    """φ of the hidden layers."""
    bias: bool = True
    """Biases in every layer."""
    normalization: Normalization | None = None
    """In front of the activation of every hidden layer."""
    reparametrization: Reparametrization | None = None
    """Of the weights of every layer, the head included."""
    init: Init = TorchInit(kind="torch")
    """Initial weights."""
    image: Image | None = None
    """[channels, height, width] of a row, where the dataset does not say it."""


Cell = Literal["tanh", "relu", "identity", "lstm", "gru"]
GATES: dict[Cell, int] = {"tanh": 1, "relu": 1, "identity": 1, "lstm": 4, "gru": 3}
"""How many linear maps of its own width a cell has."""


class Rnn(Part):
    """Recurrent: every row is a sequence, h_t = φ(W x_t + U h_{t−1} + b) from h_0 = 0, and the linear `head` reads the last h_T of the last layer.

    `tanh`, `relu` and `identity` are plain (Elman 1990); `lstm` (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000) and `gru` (Cho et al.
    2014, in cuDNN's form, r ⊙ (U_n h + b)) have torch's equations and order of gates: input, forget, cell, output; reset, update, new. W and b are
    `layers.i.input` (torch's weight_ih, and the sum of its two biases), U is `layers.i.recurrent` (weight_hh; in `gru` with its own bias), so penalties
    and inits see them apart. Dropout on a `layers.i.recurrent` acts on what the next layer reads of its h_t, not on the recurrence (Zaremba et al. 2014).
    """

    kind: Literal["rnn"]
    hidden: Annotated[tuple[Width, ...], Field(min_length=1, max_length=64)]
    """Units of each recurrent layer."""
    cell: Cell = "tanh"
    """How a layer goes from one time step to the next."""
    bias: bool = True
    """Biases in every layer."""
    init: Init = TorchInit(kind="torch")
    """Initial weights; those of an `lstm` or `gru` gate by gate."""
    sequence: Sequence | None = None
    """[time steps, channels] of a row, where the dataset does not say it."""


Model = Annotated[LinearModel | Mlp | Cnn | Rnn, Field(discriminator="kind")]


@dataclass(frozen=True)
class Recurrence:
    """One of the two linear maps of a recurrent layer: of its input, or of its own last state."""

    half: Literal["input", "recurrent"]
    cell: Cell
    steps: int
    """T, of every row."""

    @property
    def gates(self) -> int:
        return GATES[self.cell]


@dataclass(frozen=True)
class Layer:
    """The shape of one layer of one run. `weight` is (out, in) or (out, in, kernel, kernel)."""

    name: str
    weight: tuple[int, ...]
    bias: bool
    activation: Activation | None
    normalization: BatchNorm | LayerNorm | None
    pool: Literal["max", "average", "none"]
    signal: tuple[int, ...]
    """Shape of a row's linear output: (units,), or (channels, height, width) in front of the pooling."""
    output: tuple[int, ...]
    """Shape of a row behind the whole layer."""
    residual: bool = False
    """Whether the layer's input is added to its output."""
    recurrence: Recurrence | None = None
    reparametrization: WeightNorm | SpectralNorm | None = None

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every parameter, in the order in which they are stored."""
        units = self.weight[:1]
        return {
            f"{self.name}.weight": self.weight,
            **({f"{self.name}.bias": units} if self.bias else {}),
            **({f"{self.name}.gain": units} if isinstance(self.reparametrization, WeightNorm) else {}),
            **({f"{self.name}.norm.weight": units, f"{self.name}.norm.bias": units} if self.normalization else {}),
        }


def layers(model: Model, *, features: int, outputs: int, image: Image | None = None, sequence: Sequence | None = None) -> list[Layer]:
    """The layers of a model for rows of `features` numbers (or of an image, or a sequence), in forward order.

    Raises:
        ValueError: a convolution meets rows that are no images, or shrinks them to nothing; a recurrent net meets rows that are no sequences.
    """
    return list(_layers(model, features, outputs, image, sequence))


def hidden_layers(shape: list[Layer]) -> list[Layer]:
    """Those behind which a dropout can act: all but the head, and of a recurrent layer its recurrent half."""
    return [layer for layer in shape[:-1] if layer.recurrence is None or layer.recurrence.half == "recurrent"]


def times(shape: list[Layer]) -> dict[str, int]:
    """Recurrent layer → how many time steps it makes."""
    return {layer.name.removesuffix(".input"): layer.recurrence.steps for layer in shape if layer.recurrence is not None and layer.recurrence.half == "input"}


def parameters(shape: list[Layer]) -> int:
    """How many numbers one run learns."""
    return sum(prod(s) for layer in shape for s in layer.tensors.values())


def _layers(model: Model, features: int, outputs: int, image: Image | None, sequence: Sequence | None) -> Iterator[Layer]:
    match model:
        case LinearModel():
            yield Layer("head", (outputs, features), model.bias, None, None, "none", (outputs,), (outputs,))
        case Mlp():
            yield from _dense(model, features, outputs, first=0)
        case Cnn():
            size = model.image or image
            if size is None:
                raise ValueError("a cnn needs rows that are images: set model.image to [channels, height, width]")
            if size[0] * size[1] * size[2] != features:
                raise ValueError(f"model.image {list(size)} has {size[0] * size[1] * size[2]} numbers, a row of the dataset has {features}")
            channels, height, width = size
            for index, filters in enumerate(model.channels):
                height, width = ((side + 2 * (model.kernel // 2) - model.kernel) // model.stride + 1 for side in (height, width))
                signal = (filters, height, width)
                pool = model.pool if min(height, width) >= 2 else "none"
                if pool != "none":
                    height, width = height // 2, width // 2
                weight = (filters, channels, model.kernel, model.kernel)
                of = model.reparametrization
                yield Layer(f"layers.{index}", weight, model.bias, model.activation, model.normalization, pool, signal, (filters, height, width), reparametrization=of)
                channels = filters
            yield from _dense(model, channels * height * width, outputs, first=len(model.channels))
        case Rnn():
            yield from _recurrent(model, features, outputs, model.sequence or sequence)
        case _:
            assert_never(model)


def _dense(model: Mlp | Cnn, features: int, outputs: int, *, first: int) -> Iterator[Layer]:
    for index, width in enumerate(model.hidden, start=first):
        around = isinstance(model, Mlp) and model.residual and width == features
        of = model.reparametrization
        yield Layer(f"layers.{index}", (width, features), model.bias, model.activation, model.normalization, "none", (width,), (width,), around, reparametrization=of)
        features = width
    yield Layer("head", (outputs, features), model.bias, None, None, "none", (outputs,), (outputs,), reparametrization=model.reparametrization)


def _recurrent(model: Rnn, features: int, outputs: int, sequence: Sequence | None) -> Iterator[Layer]:
    if sequence is None:
        raise ValueError("an rnn needs rows that are sequences: set model.sequence to [time steps, channels]")
    steps, channels = sequence
    if steps * channels != features:
        raise ValueError(f"model.sequence {list(sequence)} has {steps * channels} numbers, a row of the dataset has {features}")
    for index, width in enumerate(model.hidden):
        units, last = GATES[model.cell] * width, index == len(model.hidden) - 1
        signal, output = (steps, units), (width,) if last else (steps, width)
        of_input, of_state = Recurrence("input", model.cell, steps), Recurrence("recurrent", model.cell, steps)
        yield Layer(f"layers.{index}.input", (units, channels), model.bias, None, None, "none", signal, signal, recurrence=of_input)
        yield Layer(f"layers.{index}.recurrent", (units, width), model.bias and model.cell == "gru", None, None, "none", signal, output, recurrence=of_state)
        channels = width
    yield Layer("head", (outputs, channels), model.bias, None, None, "none", (outputs,), (outputs,))
