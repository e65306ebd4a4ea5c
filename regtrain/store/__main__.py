"""The command line that touches the store without the server: `python -m regtrain.store backup | restore | migrate`."""

import argparse
import os
import sys
from pathlib import Path

from regtrain.contract.errors import RegtrainError
from regtrain.store.backup import backup, restore
from regtrain.store.database import open_database


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 0 when it is done, 1 with a sentence on stderr when it cannot be."""
    chosen = _parser().parse_args(arguments)
    try:
        print(_run(chosen))
    except (RegtrainError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(chosen: argparse.Namespace) -> str:
    data: Path = chosen.data
    if chosen.command == "restore":
        return f"restored {restore(chosen.file, data / 'regtrain.db')}"
    db = open_database(chosen.database_url, data)
    try:
        return f"backed up to {backup(db, chosen.file)}" if chosen.command == "backup" else f"{db.writer.url.render_as_string()} is up to date"
    finally:
        db.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m regtrain.store", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in {
        "backup": "copy the database into FILE while it is in use; copy the folders jobs and datasets after it",
        "restore": "put the backup FILE in the place of the database, when service and workers are stopped",
        "migrate": "bring the tables up to date (opening the database does so too)",
    }.items():
        command = commands.add_parser(name, help=words, description=words)
        command.add_argument("--data", type=Path, default=Path(os.environ.get("REGTRAIN_DATA", "regtrain-data")), help="the data folder (REGTRAIN_DATA)")
        command.add_argument("--database-url", default=os.environ.get("REGTRAIN_DATABASE_URL"), help="if the database is elsewhere (REGTRAIN_DATABASE_URL)")
        if name != "migrate":
            command.add_argument("file", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
