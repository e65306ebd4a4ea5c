"""`regtrain demo`: a server, a worker, one job, its curves and gradients in the terminal, and the requests that fetch the same."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule

from regtrain.cli import show
from regtrain.cli.processes import NotStarted, house
from regtrain.client import Client, Job, ServiceError, Unreachable
from regtrain.contract.errors import RegtrainError

EXAMPLE = Path(__file__).parents[2] / "examples" / "004_digits_l1.json"
LOG = "demo.log"


def run_demo(console: Console, *, file: Path | None, data: Path | None) -> int:
    """Trains the spec in `file` on a server of its own. Returns the exit status: 0 if the job succeeded.

    Raises:
        RegtrainError: there is no such file, or the server did not come up; what its processes wrote is in the message.
    """
    spec = _spec(file or EXAMPLE)
    with ExitStack() as stack:
        folder = data or Path(stack.enter_context(TemporaryDirectory(prefix="regtrain-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        console.print("Starting a server and a worker ...")
        try:
            running = stack.enter_context(house(workers=1, log=folder / LOG, host="127.0.0.1", port=0, data=folder))
            client = stack.enter_context(Client(running.url))
            job = _train(console, client, spec, file or EXAMPLE)
        except (NotStarted, Unreachable, ServiceError) as error:
            raise RegtrainError(f"{error}\n{_tail(folder / LOG)}") from error
        if job["state"] != "succeeded":
            show.job(console, job)
            return 1
        _tell(console, client, job)
    _goodbye(console, job, kept=data)
    return 0


def _spec(file: Path) -> bytes:
    if not file.exists():
        raise RegtrainError(f"there is no {file}: the demo needs the repository's examples, or `regtrain demo FILE`")
    return file.read_bytes()


def _train(console: Console, client: Client, spec: bytes, file: Path) -> Job:
    submitted = client.submit(spec)
    console.print(f"Submitted [bold]{file.name}[/] to {client.url}: [dim]{escape(submitted['name'])}[/]\nJob [bold]{submitted['id']}[/]", soft_wrap=True)
    return show.watch(console, client.watch(submitted["id"], every=0.1))


def _tell(console: Console, client: Client, job: Job) -> None:
    """The job's curves, penalties and gradients, each below the request that fetches it."""
    show.job(console, job)
    for title, resource, series in (
        ("the loss, and the penalty beside it", "curves", ["loss/train", *_penalties(job)]),
        ("gradient norm by layer: the loss gradient of each weight tensor", "gradients", ["gradient/norm"]),
        ("what the penalty adds to it", "gradients", ["penalty_gradient/norm"]),
    ):
        path, names = f"/v1/jobs/{job['id']}/{resource}", ",".join(series)
        console.print()
        console.print(Rule(title, align="left"))
        console.print(f"[dim]curl '{client.url}{path}?series={names}&format=text'[/]\n", soft_wrap=True)
        print(client.text(path, series=names), end="", flush=True)


def _penalties(job: Job) -> list[str]:
    """The penalty series of a job: one for each regularizer with a strength; the second of a kind is called `.2`."""
    kinds = [regularizer["kind"] for regularizer in job.get("spec", {}).get("regularizers", []) if "lambda" in regularizer]
    return [f"penalty/{kind}" + (f".{place}" if (place := kinds[: index + 1].count(kind)) > 1 else "") for index, kind in enumerate(kinds)]


def _goodbye(console: Console, job: Job, *, kept: Path | None) -> None:
    console.print()
    console.print(Rule("keep going", align="left"))
    console.print(
        f"This server has ended{'' if kept else ' and its data is gone'}. One that stays, with the job's numbers as JSON, CSV or text:\n\n"
        f"  .venv/bin/regtrain up{f' --data {kept}' if kept else ''}\n"
        "  curl --json @examples/004_digits_l1.json http://127.0.0.1:8321/v1/jobs\n"
        f"  curl 'http://127.0.0.1:8321/v1/jobs/{job['id'] if kept else 'ID'}/curves?series=loss/train&format=text'\n"
        f"  curl 'http://127.0.0.1:8321/v1/jobs/{job['id'] if kept else 'ID'}/gradients?series=gradient/norm'",
        soft_wrap=True,
    )


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""
