"""One thread and no denormal surprises: the numbers of these tests do not depend on the machine's cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
