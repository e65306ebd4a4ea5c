"""The command line that touches the store without the server: `python -m regtrain.store backup | restore | migrate`."""

import argparse
import os
import sys
from pathlib import Path

from sqlalchemy import make_url

from regtrain.contract.errors import RegtrainError
from regtrain.store.backup import backup, restore
from regtrain.store.database import StoreError, open_database


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
    match chosen.command:
        case "backup":
            return f"backed up to {backup(_file(chosen), chosen.file)}"
        case "restore":
            return f"restored {restore(chosen.file, _file(chosen))}"
        case _:
            db = open_database(chosen.database_url, chosen.data)
            db.close()
            return f"{db.writer.url.render_as_string()} is up to date"


def _file(chosen: argparse.Namespace) -> Path:
    """The SQLite file of the data folder or of the URL."""
    data: Path = chosen.data
    if not chosen.database_url:
        return data / "regtrain.db"
    address = make_url(chosen.database_url)
    if address.get_backend_name() != "sqlite" or not address.database:
        raise StoreError("this command is for SQLite; PostgreSQL has pg_dump and pg_restore")
    return Path(address.database)


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
