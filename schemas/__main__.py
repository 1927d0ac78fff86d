"""`python -m schemas`: dictionary, freeze, create, migrate, check, repair."""

import argparse
import sys
from pathlib import Path

from schemas.dictionary import data_dictionary, freeze
from schemas.errors import AmbientOmniError, TableDamaged
from schemas.repair import check, repair
from schemas.root import Root, migrate


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m schemas", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    dictionary = commands.add_parser("dictionary", help="write the data dictionary")
    dictionary.add_argument("--out", type=Path, default=Path("docs/data_dictionary.md"))
    commands.add_parser("freeze", help="write the frozen dumps of all contracts")
    moving = commands.add_parser("migrate", help="bring a root to this code's schema version")
    moving.add_argument("--root", type=Path, required=True)
    making = commands.add_parser("create", help="make a root, with its tables on an object store")
    making.add_argument("--root", type=Path, required=True)
    making.add_argument("--tables", required=True, help="s3://bucket/prefix; joined if it stands")
    checking = commands.add_parser("check", help="name files of tables that are gone or damaged")
    checking.add_argument("--root", type=Path, required=True)
    checking.add_argument("--read-all", action="store_true", help="decode every data file")
    mending = commands.add_parser("repair", help="set damage aside; jobs then make it again")
    mending.add_argument("--root", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        sys.stdout.write(_run(options) + "\n")
    except AmbientOmniError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _run(options: argparse.Namespace) -> str:
    if options.command == "dictionary":
        options.out.write_text(data_dictionary(), encoding="utf-8")
        return f"wrote {options.out}"
    if options.command == "freeze":
        return f"froze {len(freeze())} contracts"
    if options.command == "check":
        return _check(options)
    if options.command == "repair":
        return "\n".join(repair(Root.open(options.root).tables)) or "nothing to repair"
    if options.command == "create":
        return f"the tables of {options.root} lie at {_create(options)}"
    passed = migrate(options.root)
    return f"{options.root} is at schema version {passed[-1]}" if passed else "nothing to migrate"


def _check(options: argparse.Namespace) -> str:
    found = check(Root.open(options.root).tables, read_all=options.read_all)
    if any(found):
        lines = "; ".join(damage.line() for damage in found)
        mend = ". `python -m schemas repair` mends it" if all(d.mendable for d in found) else ""
        raise TableDamaged(f"{lines}{mend}")
    return "all tables are whole"


def _create(options: argparse.Namespace) -> str:
    return Root.create(options.root, tables=options.tables).tables.place.location


if __name__ == "__main__":
    sys.exit(main())
