"""What people write by hand, as fairly as we can: the articles' loop, and a lean one. Both use one thread, like ours."""

import itertools
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import softshrink


def net(sizes: list[int], activation: type[nn.Module]) -> nn.Sequential:
    """A multilayer perceptron of ordinary modules."""
    layers: list[nn.Module] = []
    for index, (i, o) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(i, o)] + ([activation()] if index < len(sizes) - 2 else [])
    return nn.Sequential(*layers)


def criterion(sizes: list[int]) -> nn.Module:
    """Mean squared error for one output, cross-entropy for several."""
    return nn.MSELoss() if sizes[-1] == 1 else nn.CrossEntropyLoss()


def article_loop(sizes: list[int], x: Tensor, y: Tensor, *, epochs: int, batch: int, lr: float, activation: type[nn.Module] = nn.ReLU, lam: float = 0.0) -> float:
    """The articles' loop: DataLoader with shuffling, an L1 penalty on the first layer when `lam` is set, and `.item()` for the running loss. Seconds of training."""
    model, loss_of = net(sizes, activation), criterion(sizes)
    first = model[0]
    assert isinstance(first, nn.Linear)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=batch, shuffle=True)
    begin = time.perf_counter()
    for _ in range(epochs):
        running = 0.0
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = loss_of(model(inputs), labels)
            if lam:
                loss = loss + lam * first.weight.abs().sum()
            loss.backward()
            optimizer.step()
            running += loss.item()
    return time.perf_counter() - begin


def lean_loop(sizes: list[int], x: Tensor, y: Tensor, *, epochs: int, batch: int, lr: float, activation: type[nn.Module] = nn.ReLU, watch: str = "nothing") -> float:
    """Preloaded tensors, one index a step, no `.item()`. `watch`: `item` logs the norm of every gradient tensor each step, `histogram` its histogram too."""
    model, loss_of = net(sizes, activation), criterion(sizes)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses: list[Tensor] = []
    log: list[object] = []
    begin = time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            loss = loss_of(model(x[rows]), y[rows])
            loss.backward()
            if watch != "nothing":
                log.extend(_watched(model, watch))
            optimizer.step()
            losses.append(loss.detach())
    torch.stack(losses).tolist()
    return time.perf_counter() - begin


def lean_fit(
    sizes: list[int],
    x: Tensor,
    y: Tensor,
    *,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    epochs: int,
    batch: int,
    lr: float,
    momentum: float = 0.0,
    l1: float = 0.0,
    l2: float = 0.0,
) -> nn.Sequential:
    """The lean loop once more, with a penalty on the weights (not the biases) and the trained ReLU net as its answer: L2 as the optimizer's own
    weight decay, L1 by a soft threshold after each step. One training of a search written by hand."""
    model = net(sizes, nn.ReLU)
    weights, biases = ([p for p in model.parameters() if (p.dim() > 1) == wanted] for wanted in (True, False))
    optimizer = torch.optim.SGD([{"params": weights, "weight_decay": l2}, {"params": biases}], lr=lr, momentum=momentum)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            loss_of(model(x[rows]), y[rows]).backward()
            optimizer.step()
            if l1:
                with torch.no_grad():
                    for weight in weights:
                        weight.copy_(softshrink(weight, lr * l1))
    return model


def _watched(model: nn.Module, watch: str) -> Iterator[object]:
    for parameter in model.parameters():
        if parameter.grad is not None:
            yield parameter.grad.norm().item()
            if watch == "histogram":
                yield torch.histc(parameter.grad, bins=64)
