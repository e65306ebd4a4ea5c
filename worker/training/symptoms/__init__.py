"""What is wrong with a run, decided from what it has reported: pure numpy over the host's points, so that nothing waits for it and no weight knows of it.

`known` is what can be known before the first update, `window` how points become windows, `initialisation`, `course` and `outcome` the criteria,
`watch` what training asks after every report.
"""

from worker.training.symptoms.known import Known, known_of
from worker.training.symptoms.watch import Watch

__all__ = ["Known", "Watch", "known_of"]
