"""Remedies: changes to a spec that may cure a symptom (`candidates`), what chance would try in their place (`drawn`), and the job that tries both (`asking`)."""

from regtrain.contract.remedies.asking import BY_ITSELF, CONTROL, METADATA, Patient, Request, candidates_for, going_on, patient, request_of, trial_of
from regtrain.contract.remedies.candidates import MOST, remedies
from regtrain.contract.remedies.drawn import drawn
from regtrain.contract.remedies.remedy import Direction, Evidence, Remedy, accepted

__all__ = [
    "BY_ITSELF",
    "CONTROL",
    "METADATA",
    "MOST",
    "Direction",
    "Evidence",
    "Patient",
    "Remedy",
    "Request",
    "accepted",
    "candidates_for",
    "drawn",
    "going_on",
    "patient",
    "remedies",
    "request_of",
    "trial_of",
]
