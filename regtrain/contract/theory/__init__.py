"""Mean-field theory: what a spec alone says about its signal before the first update. numpy only; docs/signal-propagation.md says what is predicted.

`moments` integrates activations over Gaussians, `field` passes them through layers, `scales` knows how large the numbers of a dataset are, `loss` what
the first loss is, `signal` reads a spec and puts all together.
"""

from regtrain.contract.theory.signal import Change, LayerSignal, Signal, log_ratio, ranking, signal, warning

__all__ = ["Change", "LayerSignal", "Signal", "log_ratio", "ranking", "signal", "warning"]
