"""``python -m benchmarks.evidence run | report``: does bad data make a better model?"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import cache_folder
from benchmarks.evidence import plan
from benchmarks.evidence.run import run
from schemas.errors import BadInput


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="compute what is missing; stop it at any time")
    running.add_argument(
        "--form", choices=plan.FORMS, default="full",
        help="quick: one problem and seed, in 20 minutes; long: thrice the budget, one problem",
    )  # fmt: skip
    running.add_argument("--only", nargs="*", default=[], help="groups, or parts of cells' names")
    running.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    running.add_argument("--cache", type=Path, default=None, help="folder of the results")
    running.add_argument(
        "--again", action="store_true",
        help="also cells whose results are exported; without it only what no results are of",
    )  # fmt: skip
    running.add_argument("--list", action="store_true", help="name the tasks and do nothing")
    reporting = commands.add_parser("report", help="write docs/evidence.md from stored results")
    reporting.add_argument(
        "--form", choices=("full", "quick"), default="full",
        help="full: with what there is of the long form; quick: beside its cache",
    )  # fmt: skip
    reporting.add_argument("--cache", type=Path, default=None, help="folder of the results")
    given = parser.parse_args()
    form = plan.FORMS[given.form]
    folder = given.cache or cache_folder("evidence")
    from benchmarks.evidence import report, results

    if given.command == "run":
        finished = set() if given.again else results.exported(form, folder)
        if given.workers < 1:
            parser.error(f"--workers {given.workers}: at least one has to do the work")
        try:
            tasks = plan.tasks(form, given.only, finished)
        except BadInput as error:
            parser.error(f"--only: {error}")
        pilots = plan.pilot_tasks(form, tasks)
        if given.list:
            print("\n".join(task.name for task in (*pilots, *tasks)))
            return
        if form.pilots:
            run(pilots, form.pilots, folder, given.workers)
        run(tasks, form, folder, given.workers)
    print(results.export(form, folder))
    if form is plan.FULL and given.command == "report":
        print(results.export(plan.LONG, folder))
    if given.command == "report" or form is plan.QUICK:
        report.write(form, folder)


if __name__ == "__main__":
    main()
