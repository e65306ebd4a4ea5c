"""The `regtrain` command."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from regtrain.cli import show
from regtrain.contract.errors import RegtrainError, SpecRefused

if TYPE_CHECKING:
    from regtrain.client import Client

REFUSED, FAILED = 2, 1

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
out = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Url = Annotated[str, typer.Option(envvar="REGTRAIN_URL", help="Where the service is.", show_default="http://127.0.0.1:$REGTRAIN_PORT, or :8321")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's ID.")]
Host = Annotated[str, typer.Option(envvar="REGTRAIN_HOST", help="Address to bind to.")]
Port = Annotated[int, typer.Option(envvar="REGTRAIN_PORT", min=0, max=65_535, help="Port to bind to; 0 takes a free one.")]
Data = Annotated[Path, typer.Option(envvar="REGTRAIN_DATA", help="Folder of the database, datasets, checkpoints and models.")]
Workers = Annotated[int, typer.Option(envvar="REGTRAIN_WORKERS", min=0, help="Worker processes: one device and one job at a time each.")]
Device = Annotated[str, typer.Option(envvar="REGTRAIN_DEVICE", help="auto, cpu, cuda or cuda:N.")]
Over = Annotated[str, typer.Option(help="seeds or folds: runs with the same values as one curve, with mean, min, max, standard error.", show_default=False)]
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def main() -> None:
    """Runs the command. Errors that regtrain raises on purpose are one line each on stderr; a refused spec exits with 2, all else with 1."""
    try:
        app()
    except SpecRefused as refusal:
        for problem in refusal.problems:
            err.print(f"[red]{escape(problem.path or 'refused')}[/]: {escape(problem.message)}" + (f"\n    [dim]{escape(problem.hint)}[/]" if problem.hint else ""))
        sys.exit(REFUSED)
    except (RegtrainError, OSError) as error:
        err.print(f"[red]regtrain:[/] {escape(str(error))}")
        sys.exit(getattr(error, "exit_status", FAILED))


@app.command()
def demo(
    file: Annotated[Path | None, typer.Argument(help="A job spec; without one, article 004 on digits.", show_default=False)] = None,
    data: Annotated[Path | None, typer.Option(help="Folder to keep the results in; without one, a temporary folder.", show_default=False)] = None,
) -> None:
    """Start a server and a worker, train article 004, show its curves and gradients, stop."""
    from regtrain.cli.demo import run_demo

    raise typer.Exit(run_demo(out, file=file, data=data))


@app.command()
def up(
    host: Host = "127.0.0.1",
    port: Port = 8321,
    data: Data = Path("regtrain-data"),
    workers: Workers = 1,
    device: Device = "auto",
    allow_remote: Annotated[bool, typer.Option("--allow-remote", envvar="REGTRAIN_ALLOW_REMOTE", help="Let other machines in: there are no keys yet.")] = False,
) -> None:
    """Start the service and its workers together; Ctrl-C ends both."""
    from regtrain.cli.processes import house

    with house(workers=workers, host=host, port=port, data=data, device=device, allow_remote=allow_remote or None) as running:
        out.print(f"[green]regtrain is up[/] at [bold]{running.url}[/]: data in {data}, {workers} worker{'s' * (workers != 1)} on {device}. Ctrl-C ends it.")
        out.print(f"  regtrain submit examples/004_digits_l1.json --url {running.url}\n  {running.url}/docs describes the API")
        status = running.watch(lambda text: err.print(f"[yellow]regtrain:[/] {escape(text)}"))
        out.print("ending: running jobs are handed back and go on at the next start")
    raise typer.Exit(status)


@app.command(context_settings=PASS_ON, add_help_option=False)
def serve(context: typer.Context) -> None:
    """Start the service alone: `python -P -m service`, whose options it takes."""
    _become("service", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def work(context: typer.Context) -> None:
    """Start one worker alone: `python -P -m worker`, whose options it takes."""
    _become("worker", context.args)


@app.command(context_settings=PASS_ON, add_help_option=False)
def run(context: typer.Context) -> None:
    """Train a spec without server or database, events as JSON Lines: `python -P -m worker run FILE`."""
    _become("worker", ["run", *context.args])


@app.command()
def selftest(
    url: Url = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    here: Annotated[bool, typer.Option("--here", help="On this machine, without a service.")] = False,
    device: Device = "auto",
) -> None:
    """Have every worker measure what gradients obey exactly, on its device; exits with 1 where something does not hold."""
    if here:
        _become("worker", ["selftest", "--device", device, *(["--json"] if as_json else [])])
    with _client(url) as client:
        found = client.measure()
    out.print_json(data=found) if as_json else show.selftest(out, found)
    if not found["ok"]:
        raise typer.Exit(FAILED)


@app.command()
def plan(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A job spec as JSON; - reads standard input.")],
    url: Url = "",
    as_json: Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")] = False,
) -> None:
    """Say what a job would come to, without submitting it: runs, packs, steps, memory, time, warnings."""
    with _client(url) as client:
        found = client.plan(_read(file))
        out.print_json(data=found) if as_json else show.plan(out, found)


@app.command()
def submit(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A job spec as JSON; - reads standard input.")],
    url: Url = "",
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same submission with the same key makes one job.", show_default=False)] = None,
    watched: Annotated[bool, typer.Option("--watch", help="Watch it until it ends.")] = False,
) -> None:
    """Submit a job; prints its ID."""
    with _client(url) as client:
        job = client.submit(_read(file), key=key)
        for warning in job.get("warnings", []):
            err.print(f"[yellow]warning:[/] {escape(warning['path'])}: {escape(warning['message'])}")
        print(job["id"], flush=True)
        if watched:
            _watch(client, job["id"])


@app.command()
def watch(job: JobId, url: Url = "") -> None:
    """Watch a job until it ends; exits with 1 unless it succeeds."""
    with _client(url) as client:
        _watch(client, job)


@app.command(name="show")
def show_(job: JobId, url: Url = "", as_json: Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")] = False) -> None:
    """Show a job: state, progress, metrics, warnings, result."""
    with _client(url) as client:
        found = client.job(job)
        out.print_json(data=found) if as_json else show.job(out, found)


@app.command()
def curves(
    job: JobId,
    series: Annotated[str, typer.Option(help="Names with commas between; without any, what the service shows first.", show_default=False)] = "",
    runs: Annotated[str, typer.Option(help="Run numbers with commas between.", show_default=False)] = "",
    over: Over = "",
    url: Url = "",
) -> None:
    """Show a job's curves: a small chart and a table."""
    _face(url, job, "curves", series=series, runs=runs, over=over)


@app.command()
def gradients(
    job: JobId,
    series: Annotated[str, typer.Option(help="Names with commas between; without any, what the service shows first.", show_default=False)] = "",
    runs: Annotated[str, typer.Option(help="Run numbers with commas between.", show_default=False)] = "",
    over: Over = "",
    url: Url = "",
) -> None:
    """Show what every layer's gradient did."""
    _face(url, job, "gradients", series=series, runs=runs, over=over)


@app.command()
def path(
    job: JobId,
    format: Annotated[str, typer.Option(help="text, json, jsonl or csv.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")] = False,
    url: Url = "",
) -> None:
    """Show a job's regularization path: score, zeros and features from the strongest λ down, and what each rule takes."""
    if not as_json:
        return _face(url, job, "path", format=format)
    with _client(url) as client:
        out.print_json(data=client.path(job))


@app.command()
def diagnose(
    job: JobId,
    run: Annotated[int | None, typer.Option(min=0, help="This run alone.", show_default=False)] = None,
    url: Url = "",
    as_json: Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")] = False,
) -> None:
    """Say what is wrong with a job: symptoms in causal order, with their figures."""
    if as_json:
        with _client(url) as client:
            out.print_json(data=client.diagnosis(job, run=run))
        return
    _face(url, job, "diagnosis", run="" if run is None else str(run))


@app.command()
def remedies(
    job: JobId,
    url: Url = "",
    tried: Annotated[bool, typer.Option("--try", help="Try them against an untouched control, and wait for the verdicts.")] = False,
    continued: Annotated[bool, typer.Option("--continue", help="With --try: go on from the job's trained weights, with surgery among the candidates.")] = False,
    in_turn: Annotated[bool, typer.Option("--in-turn", help="With --try: one after the other, until one is confirmed.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="With --try: runs of each; with --in-turn fewer than 8 take the first that helps.", show_default="8")] = None,
    symptom: Annotated[str, typer.Option(help="Remedies for another symptom than the job's own.", show_default=False)] = "",
) -> None:
    """Show what may cure a job, and what trials have said."""
    asked = {"symptom": symptom, "continue": continued, "order": "in_turn" if in_turn else "", "seeds": seeds}
    if not tried and (lost := next((option for option, given in (("--continue", continued), ("--in-turn", in_turn), ("--seeds", seeds)) if given), None)):
        raise typer.BadParameter("it says how remedies are tried: give --try too", param_hint=lost)
    with _client(url) as client:
        if tried:
            trial = client.try_remedies(job, **{name: value for name, value in asked.items() if value})
            for warning in trial.get("warnings", []):
                err.print(f"[yellow]warning:[/] {escape(warning['path'])}: {escape(warning['message'])}")
            _watch(client, trial["id"])
    _face(url, job, "remedies", symptom=symptom)


@app.command(name="list")
def list_(
    state: Annotated[str, typer.Option(help="queued, running, succeeded, failed, cancelled.", show_default=False)] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    url: Url = "",
) -> None:
    """List jobs, newest first."""
    from itertools import islice

    with _client(url) as client:
        show.jobs(out, list(islice(client.jobs(**({"state": state} if state else {}), limit=min(limit, 100)), limit)))


@app.command()
def cancel(job: JobId, url: Url = "") -> None:
    """Cancel a job; a running one ends after its current step."""
    with _client(url) as client:
        show.job(out, client.cancel(job))


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False) -> None:
    """Regularized training as a service."""
    if version:
        from regtrain import __version__

        print(f"regtrain {__version__}")
        raise typer.Exit


def _read(file: str) -> bytes:
    return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()


def _client(url: str) -> "Client":
    from regtrain.client import Client

    return Client(url or f"http://127.0.0.1:{os.environ.get('REGTRAIN_PORT', '8321')}")


def _watch(client: "Client", job: str) -> None:
    last = show.watch(out, client.watch(job))
    show.job(out, last)
    if last["state"] != "succeeded":
        raise typer.Exit(FAILED)


def _face(url: str, job: str, resource: str, **query: str) -> None:
    with _client(url) as client:
        print(client.text(f"/v1/jobs/{job}/{resource}", **{name: value for name, value in query.items() if value}), end="")


def _become(module: str, arguments: list[str]) -> None:
    """Replaces this process, so that signals and exit status are the module's own. -P: a folder named like it is not run."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])
