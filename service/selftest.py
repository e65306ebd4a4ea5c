"""The laws that gradients obey exactly, measured on the machine of this service: asked of a worker's own program, since the service knows no torch."""

import asyncio
import json
import os
import sys
import time
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from service.faces import json_answer
from service.jobs import moment
from service.problems import Refusal, responses

router = APIRouter(tags=["health"])
SECONDS = 300
"""How long it may take."""
FRESH_SECONDS = 60
"""For how long an answer is given again: measuring keeps a core busy for seconds."""
PASSED_ON = ("PATH", "PYTHONPATH", "HOME", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG")


class LawAnswer(BaseModel):
    name: str
    formula: str
    error: float | None
    """Relative to the size of the quantity; null where it is not finite."""
    tolerance: float
    ok: bool
    seconds: float


class SelftestAnswer(BaseModel):
    ok: bool
    """Whether every law holds."""
    measured_at: datetime
    environment: dict[str, Any]
    """Versions, device and threads."""
    laws: list[LawAnswer] = Field(description="Each is measured by training small jobs on the device of `environment`.")


EXAMPLE = {
    "ok": True,
    "measured_at": "2026-11-21T12:00:00Z",
    "environment": {"torch": "2.13.0+cpu", "device": "x86_64 CPU", "device_kind": "cpu", "threads": 2},
    "laws": [
        {"name": "class_sum", "formula": "Σ_c g_c = 0 in the head of softmax cross-entropy", "error": 1.8e-16, "tolerance": 1e-12, "ok": True, "seconds": 0.05},
    ],
}


@router.get(
    "/v1/selftest",
    summary="Selftest: exact laws of gradients, measured here",
    responses={
        200: {"model": SelftestAnswer, "description": "Every law with its error; `ok` says whether all hold.", "content": {"application/json": {"example": EXAMPLE}}},
        **responses(422, 503),
    },
)
async def selftest(request: Request) -> Response:
    """Takes some seconds. It runs `python -m worker selftest` beside the service, on the device named by REGTRAIN_DEVICE; measured at most once a minute."""
    state = request.app.state
    async with state.measuring:
        if state.measured is None or time.monotonic() - state.measured[0] > FRESH_SECONDS:
            found = await measured()
            state.measured = (time.monotonic(), {**found, "measured_at": moment(datetime.now(UTC))})
        return json_answer(state.measured[1])


async def measured() -> dict[str, Any]:
    """The laws, from a process of their own.

    Raises:
        Refusal: 503, no worker can be started on this machine, or it takes too long.
    """
    environment = {"LC_ALL": "C.UTF-8", **{name: os.environ[name] for name in PASSED_ON if name in os.environ}}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "worker", "selftest", "--json", "--device", os.environ.get("REGTRAIN_DEVICE", "auto"),
        env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(SECONDS):
            answer, complaints = await child.communicate()
    except TimeoutError:
        raise Refusal(503, f"the laws were not measured within {SECONDS} seconds", hint="try again when the machine has less to do") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    try:
        return json.loads(answer)
    except ValueError:
        last = (complaints.decode(errors="replace").strip().splitlines() or [f"it ended with status {child.returncode}"])[-1]
        raise Refusal(503, f"no worker can be started beside this service: {last[:300]}", hint="run `regtrain selftest` on a machine that has a worker") from None
