"""`ambient-omni`: the whole graph on the command line."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagster_project.interrupts import end_spark
from dagster_project.steps import STEP_NAMES
from schemas.errors import AmbientOmniError
from schemas.root import ROOT_VARIABLE

INTERRUPTED = 130
BROKEN = 1
_STOPPED = "stopped; what is finished stays. Run the same command again to go on."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, 2 for what a user can mend, 130 for ctrl-C."""
    options = build_parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except AmbientOmniError as error:
        _complain(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt as stop:
        # The trainer says how far it came.
        _complain(f"\n{str(stop) or _STOPPED}")
        if arguments is None:  # this process is ours alone, and about to end
            end_spark()
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN
    except Exception as error:
        if options.verbose:
            raise
        logging.getLogger(__name__).debug("unexpected", exc_info=True)
        _complain(
            f"error: unexpected {type(error).__name__}: {_one_line(error)}; run again with "
            "--verbose before the command to see where"
        )
        return BROKEN
    return code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="ambient-omni",
        description="Gives every image of a pool the lowest noise level at which it still teaches "
        "the truth, and trains a diffusion model on all of them.",
    )
    parser.add_argument("--verbose", action="store_true", help="show tracebacks of defects")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (
        *(_add_run, _add_demo, _add_ui, _add_status, _add_explain, _add_what_if, _add_rescore),
        *(_add_train, _add_compare, _add_candidate, _add_promote, _add_accept, _add_take),
        _add_settings,
    ):
        add(commands)
    return parser


Commands = Any  # argparse keeps the type of its subparsers to itself


def _add_run(commands: Commands) -> None:
    run = commands.add_parser(
        "run",
        help="the whole graph on your own images; started again, it goes on where it was",
        description="Ingests, scores, annotates, trains and reports. A run that was stopped goes "
        "on when the same command, or just `run --root DIR`, is given again. More --source come "
        "in as further batches.",
    )
    _root(run)
    run.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="PATH",
        help="images of mixed quality: a folder, tar shards, or a list of URLs "
        "(csv, jsonl, parquet); may be given several times",
    )
    run.add_argument(
        "--source-name",
        action="append",
        default=[],
        metavar="NAME",
        help="name of the batch that a --source becomes, in their order; by default the folder's",
    )
    run.add_argument("--reference", metavar="PATH", help="images to trust: a folder or tar shards")
    run.add_argument(
        "--evaluation", metavar="PATH", help="more good images, kept for the report's figures alone"
    )
    run.add_argument(
        "--recipe", metavar="NAME", help="a bundled recipe or a YAML file (default: default)"
    )
    run.add_argument("--until", choices=STEP_NAMES, metavar="STEP", help=", ".join(STEP_NAMES))
    run.add_argument("--truth", metavar="PARQUET", help="what was done to the images; report only")
    run.add_argument(
        "--labels-from-folders",
        action="store_true",
        help="an image's folder is its class label",
    )
    run.add_argument("--dry-run", action="store_true", help="print recipe and steps, do nothing")
    run.set_defaults(command=_run)


def _add_demo(commands: Commands) -> None:
    demo = commands.add_parser(
        "demo", help="the whole graph on bundled drawings that were damaged in known ways"
    )
    demo.add_argument("--root", type=Path, help="where to (default: demo, or demo-quick)")
    demo.add_argument("--quick", action="store_true", help="three minutes and poor samples")
    demo.add_argument("--until", choices=STEP_NAMES, metavar="STEP", help=", ".join(STEP_NAMES))
    demo.add_argument("--dry-run", action="store_true", help="print recipe and steps, do nothing")
    demo.set_defaults(command=_demo)


def _add_ui(commands: Commands) -> None:
    ui = commands.add_parser("ui", help="the graph as a web page on this machine")
    _root(ui)
    ui.add_argument("--port", type=int, default=3000, help="port on 127.0.0.1 (default: 3000)")
    ui.add_argument(
        "--no-daemon",
        action="store_true",
        help="the page alone: no queue, no sensors, no schedules; runs start at once",
    )
    ui.set_defaults(command=_ui)


def _add_status(commands: Commands) -> None:
    status = commands.add_parser("status", help="tables, batches and training runs of a root")
    _root(status)
    status.set_defaults(command=_status)


def _add_explain(commands: Commands) -> None:
    explain = commands.add_parser("explain", help="why one image has its level")
    _root(explain)
    _sample(explain)
    explain.add_argument("--image", type=Path, metavar="FILE", help="write the image there")
    explain.set_defaults(command=_explain)


def _add_what_if(commands: Commands) -> None:
    what_if = commands.add_parser(
        "what-if", help="how many samples each noise band gets under each policy"
    )
    _root(what_if)
    what_if.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="RULE",
        help="hold a rule that was not applied yet against the main arm's: changes to it "
        "(tau=0.4), an arm, a rule as YAML or a file of one, or a policy_id; several times",
    )
    what_if.set_defaults(command=_what_if)


def _add_rescore(commands: Commands) -> None:
    rescore = commands.add_parser(
        "rescore", help="compute what is new or stale in the tables, and nothing else"
    )
    _root(rescore)
    rescore.add_argument("--dry-run", action="store_true", help="only say what that is")
    rescore.set_defaults(command=_rescore)


def _add_train(commands: Commands) -> None:
    train = commands.add_parser(
        "train",
        help="train one arm in a process of its own; again, it goes on from its checkpoint",
    )
    _root(train)
    train.add_argument("--arm", default="", help="an arm of the recipe (default: its main arm)")
    train.add_argument("--policy-id", default="", help="obey another policy than the arm's")
    _training(train)
    train.set_defaults(command=_train)


def _add_compare(commands: Commands) -> None:
    compare = commands.add_parser(
        "compare", help="train several arms from one state of the tables and compare them"
    )
    _root(compare)
    compare.add_argument(
        "--arm", action="append", default=[], help="an arm of the recipe (default: all)"
    )
    _training(compare)
    compare.set_defaults(command=_compare)


def _training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", default="", help="a bundled recipe or a YAML file")
    parser.add_argument("--steps", type=_count, help="budget (default: the recipe's)")
    parser.add_argument(
        "--devices",
        type=_count,
        help="processes of torchrun on this machine (default: the recipe's)",
    )


def _add_candidate(commands: Commands) -> None:
    candidate = commands.add_parser(
        "candidate", help="train a noise classifier on the present pool; compare it with the old"
    )
    _root(candidate)
    candidate.set_defaults(command=_candidate)


def _add_promote(commands: Commands) -> None:
    promote = commands.add_parser(
        "promote",
        help="let a noise classifier grade every batch from now on, also those that come",
    )
    _root(promote)
    promote.add_argument(
        "classifier_id", nargs="?", default="", help="which (default: the newest candidate)"
    )
    promote.add_argument(
        "--force", action="store_true", help="also if it does not beat the promoted one"
    )
    promote.set_defaults(command=_promote)


def _add_accept(commands: Commands) -> None:
    accept = commands.add_parser(
        "accept", help="let a batch in that a check held back; or hold one back yourself"
    )
    _root(accept)
    accept.add_argument("batch", metavar="BATCH")
    accept.add_argument("--why", required=True, help="what a person saw")
    accept.add_argument("--hold", action="store_true", help="hold the batch back instead")
    accept.set_defaults(command=_accept)


def _add_take(commands: Commands) -> None:
    exclude = commands.add_parser(
        "exclude", help="take one image down; every reader leaves it out from now on"
    )
    _root(exclude)
    exclude.add_argument(
        "name",
        metavar="NAME",
        help="SHA-256 of the image file, its first digits, or the URL or path it was listed by",
    )
    exclude.add_argument("--why", required=True, help="the request or finding behind it")
    exclude.set_defaults(command=_exclude)


def _add_settings(commands: Commands) -> None:
    settings = commands.add_parser(
        "settings", help="what comes from the environment; of secrets only whether they are set"
    )
    settings.set_defaults(command=_settings)


def _root(parser: argparse.ArgumentParser) -> None:
    known = os.environ.get(ROOT_VARIABLE)
    parser.add_argument(
        "--root",
        type=Path,
        required=not known,
        default=known and Path(known),
        help=f"the project's folder (default: {ROOT_VARIABLE})",
    )


def _sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sample_id", metavar="SAMPLE_ID", help="SHA-256 of the image file, or its first digits"
    )


# Commands are imported when they run: `--help` answers at once.


def _run(options: argparse.Namespace) -> int:
    from dagster_project.commands.run import run

    return run(options)


def _demo(options: argparse.Namespace) -> int:
    from dagster_project.commands.demo import demo

    return demo(options.root, quick=options.quick, until=options.until, dry_run=options.dry_run)


def _ui(options: argparse.Namespace) -> int:
    from dagster_project.commands.ui import serve

    return serve(options.root, options.port, daemon=not options.no_daemon)


def _status(options: argparse.Namespace) -> int:
    from dagster_project.commands.status import status

    return _say(status(options.root))


def _explain(options: argparse.Namespace) -> int:
    from dagster_project.commands.explain import explain

    return _say(explain(options.root, options.sample_id, options.image))


def _what_if(options: argparse.Namespace) -> int:
    from dagster_project.commands.what_if import what_if

    return _say(what_if(options.root, options.policy))


def _rescore(options: argparse.Namespace) -> int:
    from dagster_project.commands.operate import rescore

    return rescore(options.root, dry_run=options.dry_run)


def _train(options: argparse.Namespace) -> int:
    from dagster_project.commands.operate import train

    arm = {"arm": options.arm, "policy_id": options.policy_id}
    return train(options.root, arm | _asked(options))


def _compare(options: argparse.Namespace) -> int:
    from dagster_project.commands.operate import compare

    return compare(options.root, {"arms": options.arm} | _asked(options))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    asked: dict[str, Any] = {"recipe": options.recipe}
    if options.steps is not None:
        asked["steps"] = options.steps
    if options.devices is not None:
        asked["launcher"] = {"kind": "torchrun", "num_processes": options.devices}
    return asked


def _candidate(options: argparse.Namespace) -> int:
    from dagster_project.commands.operate import candidate

    return candidate(options.root)


def _promote(options: argparse.Namespace) -> int:
    from dagster_project.commands.operate import promote

    return promote(options.root, options.classifier_id, force=options.force)


def _accept(options: argparse.Namespace) -> int:
    from dagster_project.commands.operate import accept

    return _say(accept(options.root, options.batch, options.why, hold=options.hold))


def _exclude(options: argparse.Namespace) -> int:
    from dagster_project.commands.exclude import exclude

    return _say(exclude(options.root, options.name, options.why))


def _settings(options: argparse.Namespace) -> int:
    from dagster_project.commands.lookup import text_table
    from dagster_project.settings import shown

    return _say(text_table(("variable", "value", "what it is"), shown()))


def _say(text: str) -> int:
    sys.stdout.write(text.rstrip("\n") + "\n")
    return 0


def _complain(line: str) -> None:
    sys.stderr.write(line + "\n")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:299] + "…"


if __name__ == "__main__":
    sys.exit(main())
