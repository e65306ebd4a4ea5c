"""`python -m worker selftest`: the laws of worker/training/selftest.py, as lines for a person or as one JSON document."""

import json
import sys
from dataclasses import asdict
from math import isfinite

import torch

from regtrain.contract.errors import TrainingError
from worker.training import selftest as laws
from worker.training.device import device_of, environment

REFUSED, FAILED = 2, 1


def selftest(*, device: str, threads: int | None, as_json: bool) -> int:
    """Returns the exit code: 0, 1 where a law does not hold, 2 where there is no such device."""
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        where = device_of(device)
    except (TrainingError, RuntimeError) as error:
        print(f"selftest: {error}", file=sys.stderr)
        return REFUSED
    found: list[laws.Checked] = []
    for checked in laws.selftest(str(where)):
        found.append(checked)
        if not as_json:
            print(f"{'ok' if checked.ok else 'NO':2}  {checked.name:22} {checked.error:9.2e} of {checked.tolerance:7.1e}  {checked.formula}", flush=True)
    if as_json:
        rows = [{**asdict(one), "error": one.error if isfinite(one.error) else None} for one in found]
        print(json.dumps({"ok": all(one.ok for one in found), "environment": environment(where), "laws": rows}, allow_nan=False, ensure_ascii=False))
    return 0 if all(one.ok for one in found) else FAILED
