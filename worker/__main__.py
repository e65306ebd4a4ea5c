"""`python -P -m worker`: claims jobs and trains them until it is told to stop. `python -P -m worker run FILE`: trains one spec, alone.
`python -P -m worker selftest`: measures on this machine what gradients obey exactly.
"""

import argparse
import os
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    match arguments[:1]:
        case ["run"]:
            return _run(arguments[1:])
        case ["selftest"]:
            return _selftest(arguments[1:])
        case _:
            return _work(arguments)


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="worker run", description="Train a spec without server or database; print the events as JSON Lines.")
    parser.add_argument("file", metavar="FILE", help="a job spec; - reads standard input")
    parser.add_argument("--arrays", action="store_true", help="print every point, not only the latest")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--threads", type=int, help="threads of the arithmetic on the CPU")
    parser.add_argument("--data", type=Path, default=Path("regtrain-data"), help="data folder, for sets like mnist (default: regtrain-data)")
    parser.add_argument("--out", type=Path, help="folder for the model: model.safetensors")
    options = parser.parse_args(arguments)
    try:
        from worker.run import run

        return run(options.file, device=options.device, threads=options.threads, data=options.data, out=options.out, arrays=options.arrays)
    except KeyboardInterrupt:  # during the imports
        return 130


def _selftest(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="worker selftest", description="Measure on this machine what gradients obey exactly; exit with 1 where something does not hold.")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--threads", type=int, help="threads of the arithmetic on the CPU")
    parser.add_argument("--parent", type=int, metavar="PID", help="the process with which this one is to end")
    parser.add_argument("--nice", type=int, default=0, help="give way to others: 0 to 19")
    options = parser.parse_args(arguments)
    try:
        os.nice(options.nice)
        if options.parent is not None:
            from worker.trainer import die_with

            die_with(options.parent)
        from worker.selftest import selftest

        return selftest(device=options.device, threads=options.threads, as_json=options.json)
    except KeyboardInterrupt:
        return 130


def _work(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="worker", description="Claim jobs and train them. Every option is also a variable: REGTRAIN_DATA, REGTRAIN_DEVICE, …")
    parser.add_argument("--data", type=Path, help="data folder, shared with the service")
    parser.add_argument("--database-url", help="SQLAlchemy URL; without one, SQLite in the data folder")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="threads of the arithmetic on the CPU")
    parser.add_argument("--lease-seconds", type=float, help="a job is taken from a worker that is silent for so long (30)")
    parser.add_argument("--checkpoint-seconds", type=float, help="the most work that a crash can cost (30)")
    parser.add_argument("--stall-seconds", type=float, help="a trainer that reports nothing for so long is killed (300)")
    parser.add_argument("--poll-seconds", type=float, help="how often an idle worker looks by itself (0.25)")
    parser.add_argument("--selftest-seconds", type=float, help="a worker idle for so long measures the laws of gradients once (5); inf: only when asked")
    parser.add_argument("--idle-exit", type=float, metavar="SECONDS", help="leave when nothing has been queued or running for so long")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    from pydantic import ValidationError

    from regtrain.store.database import StoreError
    from worker.loop import work
    from worker.settings import Settings

    try:
        return work(Settings(**given))
    except ValidationError as refusal:
        for error in refusal.errors():
            print(f"worker: {'.'.join(map(str, error['loc']))}: {error['msg']}", file=sys.stderr)
    except StoreError as error:
        print(f"worker: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
