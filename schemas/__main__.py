"""`python -m schemas`: dictionary, freeze, migrate."""

import argparse
import sys
from pathlib import Path

from schemas.dictionary import data_dictionary, freeze
from schemas.errors import AmbientOmniError
from schemas.root import migrate


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m schemas", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    dictionary = commands.add_parser("dictionary", help="write the data dictionary")
    dictionary.add_argument("--out", type=Path, default=Path("docs/data_dictionary.md"))
    commands.add_parser("freeze", help="write the frozen dumps of all contracts")
    moving = commands.add_parser("migrate", help="bring a root to this code's schema version")
    moving.add_argument("--root", type=Path, required=True)
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
    passed = migrate(options.root)
    return f"{options.root} is at schema version {passed[-1]}" if passed else "nothing to migrate"


if __name__ == "__main__":
    sys.exit(main())
