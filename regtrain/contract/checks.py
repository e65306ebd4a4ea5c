"""Rules that need more than one part of a spec, or the facts of its dataset: what is refused, and what is accepted with a warning."""

from collections.abc import Iterator
from dataclasses import replace

from regtrain.contract import adapting, begin, grouping, searching, trial
from regtrain.contract.datasets import Facts, Mnist, counts, feature_names
from regtrain.contract.errors import Problem, SpecRefused, Warned
from regtrain.contract.job import JobSpec, batch_size, steps, steps_per_epoch
from regtrain.contract.losses import Binary, CrossEntropy, HalfSquaredError, SquaredError
from regtrain.contract.models import (
    BatchNorm,
    Cnn,
    Layer,
    LayerNorm,
    LinearModel,
    Lsuv,
    Mlp,
    Rnn,
    SpectralNorm,
    WeightNorm,
    Zeros,
    hidden_layers,
    layers,
    parameters,
)
from regtrain.contract.optimizers import Adam, Lbfgs, Proximal, Sgd, Step
from regtrain.contract.ranges import ends_of
from regtrain.contract.regularizers import (
    L1,
    L2,
    Box,
    Dropout,
    EarlyStopping,
    ElasticNet,
    FeatureGroup,
    GroupLasso,
    L2Ball,
    MaxNorm,
    NonNegative,
    SparseGroupLasso,
    StepPenalty,
    UnitNorm,
    VanishingGradient,
    WeightDecay,
)
from regtrain.contract.runs import MOST_RUNS, count, expand, provisional, ranges
from regtrain.contract.selection import strength
from regtrain.contract.theory import warning
from regtrain.contract.variants import spec_of, specs_of

MOST_PARAMETERS = 2_000_000_000
MOST_STEPS = 1_000_000_000
UNSCALED = ("wine", "breast_cancer", "iris")
"""Bundled datasets whose columns have very different sizes."""


def check(spec: JobSpec, facts: Facts) -> list[Warned]:
    """Refuses what cannot be trained; returns what can be and was probably not meant.

    Raises:
        SpecRefused: with every problem found.
    """
    found = list(_refusals(spec, facts)) if not spec.variants else []
    for place, variant in enumerate(spec.variants):
        own = spec_of(spec, variant)
        found += [replace(problem, path=f"variants.{place}.set.{problem.path}") for problem in _refusals(own, facts)]
    if found or (found := [*searching.of_variants(spec), *trial.refusals(spec, facts), *_limits(spec, facts)]):
        raise SpecRefused(found)
    return list(dict.fromkeys(warning for _, variant in specs_of(spec) for warning in _warnings(variant, facts)))


def shape_of(spec: JobSpec, facts: Facts) -> list[Layer]:
    """The layers of this job's model on this dataset."""
    return layers(spec.model, features=facts.features, outputs=outputs(spec, facts), image=facts.image, sequence=facts.sequence)


def outputs(spec: JobSpec, facts: Facts) -> int:
    """Columns of the head: classes for cross-entropy, one for the binary loss, else columns of the target."""
    match spec.loss:
        case CrossEntropy():
            return facts.classes or 1
        case Binary():
            return 1
        case SquaredError() | HalfSquaredError():
            return facts.outputs


def _refusals(spec: JobSpec, facts: Facts) -> Iterator[Problem]:
    yield from _target(spec, facts)
    yield from _rows(spec, facts)
    shape: list[Layer] = []
    try:
        shape = shape_of(spec, facts)
    except ValueError as error:
        if isinstance(spec.model, Rnn):
            yield Problem("model.sequence", str(error), "adding, temporal_order and copying say it themselves; digits row by row are [8, 8]")
        else:
            yield Problem("model.image", str(error), "digits are [1, 8, 8], mnist is [1, 28, 28]")
    if isinstance(spec.model, Rnn) and isinstance(spec.model.init, Lsuv):
        yield Problem(
            "model.init.kind", "lsuv gives every layer's outputs unit variance, and a recurrent layer's depend on its own at every step", 'use "orthogonal" or "identity"'
        )
    if isinstance(spec.model, Mlp | Cnn) and spec.model.reparametrization is not None:
        yield from _reparametrized(spec.model, spec.model.reparametrization)
    yield from _regularizers(spec, shape)
    yield from _groups(spec, facts)
    yield from _together(spec, shape)
    yield from _solver(spec, facts)
    yield from adapting.refusals(spec, shape)
    yield from begin.refusals(spec, shape)
    yield from _selection(spec, facts)
    yield from searching.refusals(spec, facts)
    if isinstance(spec.optimizer, Sgd) and spec.optimizer.nesterov and ends_of(spec.optimizer.momentum)[0] == 0:
        yield Problem("optimizer.nesterov", "Nesterov looks ahead along the momentum, and the momentum is 0", "set optimizer.momentum above 0, such as 0.9")


def _reparametrized(model: Mlp | Cnn, by: WeightNorm | SpectralNorm) -> Iterator[Problem]:
    if isinstance(model.init, Zeros):
        yield Problem("model.init.kind", f"{by.kind} divides by the size of the weights, and these are all zero", "draw them, by he_normal for example")
    if isinstance(model.init, Lsuv) and isinstance(by, SpectralNorm):
        yield Problem("model.init.kind", "lsuv scales the weights of every layer, and spectral_norm takes their scale away again", 'use "orthogonal", or weight_norm')


def _target(spec: JobSpec, facts: Facts) -> Iterator[Problem]:
    match spec.loss:
        case CrossEntropy() | Binary() if facts.target == "real":
            yield Problem("loss.kind", f"{spec.loss.kind} needs labels; the target of dataset {spec.dataset.kind} is a quantity", "use squared_error or half_squared_error")
        case CrossEntropy() if (facts.classes or 0) < 2:
            yield Problem("loss.kind", "cross_entropy needs at least two classes; the target has one label", "give rows of at least two classes")
        case Binary() if facts.classes != 2:
            yield Problem("loss.kind", f"binary needs two classes; the target of dataset {spec.dataset.kind} has {facts.classes}", "use cross_entropy")
        case SquaredError() | HalfSquaredError() if facts.target == "class":
            yield Problem("loss.kind", f"{spec.loss.kind} needs a quantity; the target of dataset {spec.dataset.kind} is a class", "use cross_entropy or binary")
        case (CrossEntropy() | Binary()) as loss if isinstance(loss.class_weights, tuple) and len(loss.class_weights) != facts.classes:
            given = f"{len(loss.class_weights)} weights for the {facts.classes} classes of dataset {spec.dataset.kind}"
            yield Problem("loss.class_weights", given, 'give one weight a class, in the order of the labels, or "balanced"')
        case _:
            pass


def _rows(spec: JobSpec, facts: Facts) -> Iterator[Problem]:
    dataset, rows = spec.dataset, counts(spec.dataset, facts, seed=spec.seed)
    of_groups = list(grouping.split_refusals(spec, facts))
    yield from of_groups
    if not isinstance(dataset, Mnist):
        if dataset.split == "stratified" and facts.target == "real":
            yield Problem("dataset.split", "stratified needs classes; the target is a quantity", 'use "random"')
        if dataset.test > 0 and rows.test == 0:
            yield Problem("dataset.test", f"a share of {dataset.test} of {facts.rows} rows is no row", "hold out a larger share")
    if dataset.validation > 0 and rows.val == 0:
        yield Problem("dataset.validation", f"a share of {dataset.validation} of {facts.rows - rows.test} rows is no row", "hold out a larger share")
    if rows.train < 1 and of_groups:
        return
    if rows.train < 1:
        yield Problem("dataset", f"of {facts.rows} rows {rows.test} are test and {rows.val} validation rows: none is left to train on", "hold out less")
        return
    fewest = grouping.fewest(spec, facts)
    if spec.budget.batch_size != "all" and spec.budget.batch_size > fewest:
        yield Problem(
            "budget.batch_size",
            f"a batch of {spec.budget.batch_size} rows is larger than the {fewest} training rows" + (" of a fold" if spec.selection.folds else ""),
            'use a smaller batch, or "all"',
        )
    elif spec.budget.accumulate > batch_size(spec, rows):
        yield Problem(
            "budget.accumulate",
            f"a batch of {batch_size(spec, rows)} rows cannot be split into {spec.budget.accumulate} micro-batches",
            "accumulate at most as often as the batch has rows",
        )
    elif isinstance(_normalization(spec), BatchNorm) and batch_size(spec, rows) // spec.budget.accumulate < 2:
        yield Problem("budget.batch_size", "batch normalization needs at least two rows in each micro-batch", "use a larger batch, a smaller accumulate, or layer normalization")


def _selection(spec: JobSpec, facts: Facts) -> Iterator[Problem]:
    selection, rows = spec.selection, counts(spec.dataset, facts, seed=spec.seed)
    measured = selection.folds is not None or spec.dataset.validation > 0
    if selection.folds is not None and spec.dataset.validation > 0:
        yield Problem("selection.folds", "folds and dataset.validation both hold out validation rows", "keep one of them")
    if selection.folds is not None and selection.folds > rows.train:
        yield Problem("selection.folds", f"{rows.train} training rows cannot be cut into {selection.folds} folds", "use fewer folds")
    if selection.folds is None and selection.repeats > 1:
        yield Problem("selection.repeats", "only folds can be cut anew", "set selection.folds, such as 5")
    if selection.folds is not None and selection.repeats > 1 and not selection.shuffle:
        yield Problem("selection.repeats", "folds that are not shuffled are the same each time", 'set "shuffle": true, or repeats 1')
    if selection.stratified and facts.target == "real":
        yield Problem("selection.stratified", "stratified folds need classes; the target is a quantity", 'set "stratified": false')
    yield from grouping.fold_refusals(spec, facts)
    if selection.metric == "accuracy/val" and not isinstance(spec.loss, CrossEntropy | Binary):
        yield Problem("selection.metric", f"{spec.loss.kind} has no accuracy", 'use "loss/val"')
    if selection.refit in (True, "all") and not measured:
        yield Problem(
            "selection.refit", "without folds and validation rows every run has seen all training rows: there is nothing to refit on", "set selection.folds or dataset.validation"
        )
    if selection.rule == "one_standard_error":
        if strength([path for path, _ in ranges(spec)]) is None:
            yield Problem(
                "selection.rule",
                "one_standard_error takes the strongest regularization, so exactly one strength must be searched",
                "put a range in place of one lambda or rate, or use another rule",
            )
        if selection.repetitions < 2:
            yield Problem("selection.rule", "one run of each value has no standard error", "set selection.folds, such as 5, or selection.seeds")


def _regularizers(spec: JobSpec, shape: list[Layer]) -> Iterator[Problem]:
    names = [layer.name for layer in shape]
    proximal = any(isinstance(r, ElasticNet | GroupLasso | SparseGroupLasso) or (isinstance(r, L1) and r.method == "proximal") for r in spec.regularizers)
    for kind in (EarlyStopping, StepPenalty, VanishingGradient):
        places = [i for i, r in enumerate(spec.regularizers) if isinstance(r, kind)]
        for extra in places[1:]:
            yield Problem(f"regularizers.{extra}", f"{spec.regularizers[extra].kind} stands twice", "keep one of them")
    for index, regularizer in enumerate(spec.regularizers):
        path = f"regularizers.{index}"
        match regularizer:
            case L1() | L2() | ElasticNet() | GroupLasso() | SparseGroupLasso() | WeightDecay() | NonNegative() | Box() | L2Ball() | MaxNorm() | UnitNorm():
                yield from _layer_names(regularizer.on, names, path)
            case Dropout():
                yield from _layer_names(regularizer.on, [layer.name for layer in hidden_layers(shape)], path)
                if regularizer.on == "hidden" and isinstance(spec.model, LinearModel):
                    yield Problem(f"{path}.on", "a linear model has no hidden layers", 'use "on": "inputs"')
            case EarlyStopping():
                if spec.dataset.validation == 0 and spec.selection.folds is None:
                    yield Problem(f"{path}.metric", f"{regularizer.metric} needs validation rows", "set dataset.validation, such as 0.2, or selection.folds")
                if regularizer.metric == "accuracy/val" and not isinstance(spec.loss, CrossEntropy | Binary):
                    yield Problem(f"{path}.metric", f"{spec.loss.kind} has no accuracy", 'use "loss/val"')
            case VanishingGradient():
                if not isinstance(spec.model, Rnn):
                    yield Problem(path, "vanishing_gradient looks from one time step to the next, and only an rnn has them", 'use {"kind": "rnn", …}, or leave it out')
                elif spec.model.cell not in ("tanh", "relu", "identity"):
                    yield Problem(path, f"in {spec.model.cell} cells the gradient has other ways back than the recurrent matrix", 'use "cell": "tanh", "relu" or "identity"')
            case StepPenalty():
                if proximal:
                    yield Problem(
                        path,
                        "a step penalty changes the length of each step, on which the proximal threshold of l1, elastic_net and group penalties depends",
                        'use "method": "subgradient" for l1, or drop one of them',
                    )


OF_NORMS = (GroupLasso, SparseGroupLasso, L2Ball, MaxNorm, UnitNorm)
"""They see several weights at once: under Adam, whose steps differ by weight, their proximal step has no closed form."""
ALONE = (*OF_NORMS, Box)
"""Of these one acts on a tensor: their proximal steps do not compose. But for a group penalty inside a ball, which do."""


def _groups(spec: JobSpec, facts: Facts) -> Iterator[Problem]:
    for index, regularizer in enumerate(spec.regularizers):
        path = f"regularizers.{index}"
        if isinstance(regularizer, Box) and ends_of(regularizer.low)[1] >= ends_of(regularizer.high)[0]:
            yield Problem(f"{path}.low", "the low end of a box must be below its high end, in every run", "choose low < high")
        if isinstance(regularizer, OF_NORMS) and isinstance(spec.optimizer, Adam):
            reason = f"{regularizer.kind} acts on the norm of several weights, and Adam gives each its own step: their proximal step or projection has no closed form"
            yield Problem(path, reason, "use sgd; with adam use penalties and constraints of single weights: l1, elastic_net, non_negative, box")
        if isinstance(regularizer, GroupLasso | SparseGroupLasso) and isinstance(regularizer.groups, tuple):
            yield from _feature_groups(spec, facts, regularizer, regularizer.groups, path)


def _feature_groups(spec: JobSpec, facts: Facts, regularizer: GroupLasso | SparseGroupLasso, groups: tuple[FeatureGroup, ...], path: str) -> Iterator[Problem]:
    if not isinstance(spec.model, LinearModel):
        yield Problem(f"{path}.groups", "groups of features need a linear model: behind a hidden layer a weight belongs to no feature", 'use "columns" on the first layer')
        return
    if regularizer.on == "all":
        yield Problem(f"{path}.on", "groups of features have no place for the bias", 'use "on": "weights"')
    known, seen = feature_names(facts), dict[str, str]()
    for place, group in enumerate(groups):
        for number, name in enumerate(group.features):
            where = f"{path}.groups.{place}.features.{number}"
            if name not in known:
                yield Problem(where, f"the dataset has no feature {name!r}", "one of " + ", ".join(known[:20]))
            elif name in seen:
                yield Problem(where, f"feature {name!r} stands in group {seen[name]!r} already", "put each feature into one group")
            seen.setdefault(name, group.name)
    if missing := [name for name in known if name not in seen]:
        yield Problem(
            f"{path}.groups", f"no group has {', '.join(missing[:10])}{' …' if len(missing) > 10 else ''}", "put each feature into one group; a group may have one feature"
        )


def _together(spec: JobSpec, shape: list[Layer]) -> Iterator[Problem]:
    found = [(index, r, _layers_of(r, shape)) for index, r in enumerate(spec.regularizers) if isinstance(r, ALONE)]
    for place, (index, later, its) in enumerate(found):
        for _, earlier, others in found[:place]:
            ball_and_group = {L2Ball} < {type(later), type(earlier)} and any(isinstance(r, GroupLasso | SparseGroupLasso) for r in (later, earlier))
            if its & others and not ball_and_group:
                reason = f"{later.kind} and {earlier.kind} on the same weights: one after the other they are not the proximal step of their sum"
                yield Problem(f"regularizers.{index}", reason, 'keep one of them, or let them act "on" different layers')


def _solver(spec: JobSpec, facts: Facts) -> Iterator[Problem]:
    """What optimizers that choose their own steps cannot work with."""
    optimizer = spec.optimizer
    if not isinstance(optimizer, Proximal | Lbfgs):
        return
    rows = counts(spec.dataset, facts, seed=spec.seed)
    if rows.train >= 1 and steps_per_epoch(spec, rows) > 1:
        given = f"a batch has {batch_size(spec, rows)} of the {rows.train} training rows"
        yield Problem("budget.batch_size", f"{optimizer.kind} compares values of one objective, that of all rows; {given}", 'set "batch_size": "all"')
    if spec.clip is not None:
        yield Problem("clip", f"{optimizer.kind} chooses the length of its steps by itself", "leave clip out")
    for index, regularizer in enumerate(spec.regularizers):
        path, kind = f"regularizers.{index}", regularizer.kind
        match regularizer:
            case Dropout():
                yield Problem(path, f"{optimizer.kind} compares values of one objective, and dropout draws another one at every step", "use sgd or adam")
            case WeightDecay():
                yield Problem(path, f"decoupled decay follows a learning rate, and {optimizer.kind} has none", "use l2")
            case VanishingGradient():
                yield Problem(path, f"{optimizer.kind} compares values of one objective, and the immediate derivative of Ω is the gradient of none", "use sgd or adam")
            case StepPenalty():
                yield Problem(path, f"{optimizer.kind} chooses the length of its steps by itself", "use sgd or adam")
            case L1(method="subgradient") if isinstance(optimizer, Proximal):
                yield Problem(f"{path}.method", "the subgradient has a jump at 0, on which no step size settles", 'use "method": "proximal"')
            case L1() | ElasticNet() | GroupLasso() | SparseGroupLasso() | NonNegative() | Box() | L2Ball() | MaxNorm() | UnitNorm() if isinstance(optimizer, Lbfgs):
                yield Problem(path, f"lbfgs needs an objective without kinks and bounds, and {kind} has them", 'use {"kind": "proximal"}')
            case _:
                pass


def _layers_of(regularizer: GroupLasso | SparseGroupLasso | L2Ball | MaxNorm | UnitNorm | Box, shape: list[Layer]) -> set[str]:
    return set(regularizer.on) if isinstance(regularizer.on, tuple) else {layer.name for layer in shape}


def _layer_names(on: str | tuple[str, ...], names: list[str], path: str) -> Iterator[Problem]:
    if isinstance(on, tuple) and names:
        for place, name in enumerate(on):
            if name not in names:
                yield Problem(f"{path}.on.{place}", f"the model has no layer {name!r} to act on", "one of " + ", ".join(names[:20]))


def _limits(spec: JobSpec, facts: Facts) -> Iterator[Problem]:
    if (runs := count(spec)) > MOST_RUNS:
        try:
            expand(spec)
        except SpecRefused as refusal:
            yield from refusal.problems
        return
    rows = counts(spec.dataset, facts, seed=spec.seed)
    each = [(parameters(shape_of(variant, facts)), steps(variant, rows) if rows.train >= 1 else 0) for _, variant in specs_of(spec)]
    numbers, updates = max(number for number, _ in each), max(update for _, update in each)
    if runs * numbers > MOST_PARAMETERS:
        yield Problem("model", f"{runs} runs of {numbers:,} parameters are more than {MOST_PARAMETERS:,} in one job", "use a smaller model or fewer runs")
    if updates * runs > MOST_STEPS:
        yield Problem("budget.epochs", f"{updates:,} steps of {runs} runs are more than {MOST_STEPS:,} in one job", "use fewer epochs, larger batches or fewer runs")


def _warnings(spec: JobSpec, facts: Facts) -> Iterator[Warned]:
    normalization, shape, rows = _normalization(spec), shape_of(spec, facts), counts(spec.dataset, facts, seed=spec.seed)
    normalized = [layer.name for layer in shape if layer.normalization is not None]
    for index, regularizer in enumerate(spec.regularizers):
        match regularizer:
            case L1(method="subgradient"):
                yield Warned(f"regularizers.{index}.method", "the subgradient method never reaches an exact zero: count zeros with the proximal method")
            case L2() | WeightDecay() if normalization is not None and (not isinstance(regularizer.on, tuple) or set(regularizer.on) & set(normalized)):
                yield Warned(
                    f"regularizers.{index}",
                    f"weights in front of {normalization.kind} normalization can be scaled without changing the function: here this penalty only changes the effective learning rate",
                )
            case L2() | WeightDecay() if isinstance(spec.model, Mlp | Cnn) and spec.model.reparametrization is not None:
                yield Warned(
                    f"regularizers.{index}",
                    f"{spec.model.reparametrization.kind} takes the scale of the weights away: here this penalty only changes the effective learning rate",
                )
            case Dropout() if _in_front_of_batch_norm(regularizer, shape):
                yield Warned(f"regularizers.{index}", "dropout in front of batch normalization shifts the variance between training and evaluation (Li et al. 2019)")
            case EarlyStopping(patience=patience) if patience >= spec.budget.epochs:
                yield Warned(f"regularizers.{index}.patience", f"{patience} evaluations without improvement do not fit into {spec.budget.epochs} epochs: no run stops early")
            case _:
                pass
    yield from _idle_schedule(spec, steps(spec, rows))
    yield from grouping.warnings(spec, facts)
    yield from adapting.warnings(spec)
    if spec.dataset.kind in UNSCALED and not spec.dataset.standardize:
        yield Warned("dataset.standardize", f"the columns of {spec.dataset.kind} differ in size by orders of magnitude: one learning rate and one λ do not fit them all")
    if isinstance(normalization, BatchNorm) and rows.train - (steps_per_epoch(spec, rows) - 1) * batch_size(spec, rows) == 1:
        yield Warned("budget.batch_size", "the last batch of each epoch has one row, whose batch normalization is constant")
    if isinstance(normalization, BatchNorm) and spec.budget.accumulate > 1:
        yield Warned("budget.accumulate", "with batch normalization the statistics are those of each micro-batch, so accumulation is not the same as one large batch")
    if spec.begin is None and (said := warning(provisional(spec), facts, shape)) is not None:
        yield Warned("model.activation" if normalization is None else "model.normalization", said)


def _in_front_of_batch_norm(dropout: Dropout, shape: list[Layer]) -> bool:
    """Whether a layer that is normalised over the batch comes behind the places of a dropout."""
    names = [layer.name for layer in shape]
    first = 0 if dropout.on in ("inputs", "hidden") else min(names.index(name) for name in dropout.on) + 1
    behind = shape[1:] if dropout.on == "hidden" else shape[first:]
    return any(isinstance(layer.normalization, BatchNorm) for layer in behind)


def _idle_schedule(spec: JobSpec, steps: int) -> Iterator[Warned]:
    if not isinstance(spec.optimizer, Sgd | Adam):
        return
    schedule = spec.optimizer.schedule
    if schedule.warmup_steps >= steps:
        yield Warned("optimizer.schedule.warmup_steps", f"the budget of {steps} steps ends before the warm-up: the learning rate never reaches lr")
    elif isinstance(schedule, Step) and schedule.warmup_steps + schedule.every >= steps:
        yield Warned("optimizer.schedule.every", f"the budget of {steps} steps ends before the first reduction: the learning rate stays as it is")


def _normalization(spec: JobSpec) -> BatchNorm | LayerNorm | None:
    return None if isinstance(spec.model, LinearModel | Rnn) else spec.model.normalization
