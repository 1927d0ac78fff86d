"""What a pilot found, for people."""

from typing import TextIO

from pipelines.job import JobReport
from pipelines.pilot.run import PilotResult


def lines(result: PilotResult) -> list[str]:
    """Return a table: per band, each candidate's gains in held-out loss, and its fine detail."""
    names = list(result.table[0]["candidates"])
    width = max(max(map(len, names)), 16)
    head = f"{'sigma band':<16} " + " ".join(f"{name:>{width}}" for name in names) + "  chosen"
    found = [head]
    for row in result.table:
        low, high = row["band"]
        band = f"{low:.3g} .. {'inf' if high is None else f'{high:.3g}'}"
        cells = [
            f"{100 * told['gain']:+.1f}±{100 * told['gain_error']:.1f} "
            f"{100 * told['fine_gain']:+.1f} {100 * told['missing']:+.0f}"
            for told in row["candidates"].values()
        ]
        joined = " ".join(f"{cell:>{width}}" for cell in cells)
        found.append(f"{band:<16} {joined}  {row['chosen']}")
    found.append(
        "(fall of held-out loss against only the references, % ± standard error; of its error at "
        "fine frequencies, %; by how much fine detail is too weak, %)"
    )
    return found


def job_report(result: PilotResult, out: TextIO) -> JobReport:
    """Write the table and return what the job tells its caller."""
    out.write("\n".join(lines(result)) + "\n")
    policy = f"policy {result.policy.policy_id}: apply it with annotate --policy-id"
    count = len(result.table[0]["candidates"])
    return JobReport("pilot", "", read=count, written=1, notes=(policy, *result.notes))
