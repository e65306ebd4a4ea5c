"""Trials of remedies: whom they are for, which there are, and what they have confirmed. A trial is found by the idempotency key that it was submitted with."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from math import isfinite
from typing import Any

from pydantic import ValidationError
from sqlalchemy import RowMapping, select

from regtrain.contract.datasets import Facts, Upload, facts_of
from regtrain.contract.diagnosis import GRAVE, diagnose
from regtrain.contract.errors import NotFound, SpecRefused
from regtrain.contract.job import JobSpec, resolved
from regtrain.contract.remedies import BY_ITSELF, Evidence, Patient, Request, patient, trial_of
from regtrain.contract.runs import warm_axis
from regtrain.contract.states import RunState, State
from regtrain.contract.symptoms import SymptomName
from regtrain.contract.variants import specs_of
from regtrain.store import symptoms
from regtrain.store.database import Database
from regtrain.store.jobs.asking import Submission, submission
from regtrain.store.jobs.reading import Job, job_of
from regtrain.store.tables import datasets, dumps, idempotency, jobs, runs

KEYS = "remedies:"
NEWEST = 500
"""So many trials are looked at for what has helped before."""


def key_of(job: str, request: Mapping[str, Any]) -> tuple[str, str]:
    """Idempotency key and digest of a request for a trial: repeated, it gives the same trial."""
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    return f"{KEYS}{job}:{digest}", digest


def patient_of(db: Database, job: str, spec: JobSpec, symptom: SymptomName | None = None) -> Patient:
    """The run of a job that shows a symptom (default: the root of its diagnosis), and what was measured there: the chosen run if it does, else the first that does; where
    none does, the chosen or the first."""
    found = symptoms.every(db, job)
    with db.read() as connection:
        row = connection.execute(select(jobs.c.runs, jobs.c.result).where(jobs.c.id == job)).one()
        symptom = symptom or diagnose(found, runs=row.runs, preset=spec.diagnostics).root
        result: dict[str, Any] = row.result or {}
        chosen: int = result.get("chosen_run") or 0
        signs = {noticed.run: noticed for noticed in reversed(found) if noticed.symptom == symptom}
        sign = signs.get(chosen) or signs.get(min(signs, default=0))
        index = chosen if sign is None else sign.run
        run = connection.execute(select(runs).where(runs.c.job == job, runs.c.index == index)).mappings().one()
    evidence = None if sign is None else Evidence(sign.value, sign.bound)
    shown: frozenset[SymptomName] = frozenset(noticed.symptom for noticed in found if noticed.run == index and noticed.severity in GRAVE)
    of_run: dict[str, Any] = {"variant": run["variant"], "values": run["values"], "refit": bool(run["refit"]), "reached": _reached(spec, run)}
    return patient(job, spec, symptom, evidence=evidence, run=index, shown=shown, **of_run)


def _reached(spec: JobSpec, run: RowMapping) -> dict[str, float | None] | None:
    """The metrics of a run that a control with seed 0 would repeat: of one that trained on all training rows, with seed 0, and not from the weights of another."""
    ended, alone = run["state"] in (RunState.SUCCEEDED, RunState.FAILED), (run["fold"], run["outer"]) == (None, None) and not run["refit"]
    if not ended or not alone or run["seed"] != 0 or warm_axis(dict(specs_of(spec)).get(run["variant"], spec)) is not None:
        return None
    return {name: value if run["state"] == RunState.SUCCEEDED and isfinite(value) else None for name, value in run["metrics"].items()}


def trials_of(db: Database, job: str) -> list[Job]:
    """The trials of remedies for a job, newest first."""
    ours = idempotency.c.key.startswith(f"{KEYS}{job}:", autoescape=True)
    query = select(jobs).join(idempotency, idempotency.c.job == jobs.c.id).where(ours).order_by(jobs.c.id.desc())
    with db.read() as connection:
        return [job_of(row) for row in connection.execute(query).mappings()]


def confirmed_before(db: Database, symptom: SymptomName | None, *, goes_on: bool = False) -> dict[str, int]:
    """Label → how often that remedy has been confirmed for a symptom in this installation, as far as its newest trials tell; of those that begin from trained weights, or
    of those that do not."""
    ours = idempotency.c.key.startswith(KEYS, autoescape=True)
    query = select(jobs.c.result).join(idempotency, idempotency.c.job == jobs.c.id).where(ours, jobs.c.state == State.SUCCEEDED)
    found: Counter[str] = Counter()
    with db.read() as connection:
        for result in connection.execute(query.order_by(jobs.c.id.desc()).limit(NEWEST)).scalars():
            trial: dict[str, Any] = result.get("trial") or {}
            if trial.get("symptom") == symptom and bool(result.get("begin")) == goes_on:
                found.update(verdict["label"] for verdict in trial["verdicts"] if verdict["verdict"] == "confirmed")
    return dict(found)


def following(db: Database, job: str, spec: JobSpec) -> Submission | str | None:
    """The trial of remedies that a job asks for with `"remedy"`, now that it has ended with a symptom; or why there cannot be one; None where nothing was asked."""
    if spec.remedy is None:
        return None
    asked = BY_ITSELF[spec.remedy]
    of = patient_of(db, job, spec)
    if of.symptom is None:
        return None
    try:
        made, warnings = trial_of(of, _facts(db, spec), Request.model_validate(asked), before=confirmed_before(db, of.symptom))
    except (SpecRefused, NotFound, ValidationError) as refusal:
        return f"remedies for {of.symptom} cannot be tried: {refusal}"
    key = key_of(job, asked)
    with db.read() as connection:
        if connection.execute(select(idempotency.c.key).where(idempotency.c.key == key[0])).one_or_none() is not None:
            return None
    return submission(made, given=resolved(made), warnings=warnings, idempotency=key)


def _facts(db: Database, spec: JobSpec) -> Facts:
    if not isinstance(spec.dataset, Upload):
        facts = facts_of(spec.dataset)
        assert facts is not None
        return facts
    with db.read() as connection:
        facts = connection.execute(select(datasets.c.facts).where(datasets.c.id == spec.dataset.id)).scalar()
    if facts is None:
        raise NotFound(f"there is no dataset {spec.dataset.id}")
    return Facts.model_validate_json(dumps(facts))
