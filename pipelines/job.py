"""What a job tells its caller, the same for every job."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class JobReport:
    """What one run of one job on one batch did.

    Attributes:
        job: name of the job.
        batch: ingest batch it worked on; empty for a job that is not about one batch.
        read: items looked at.
        written: rows written to the job's main table.
        unchanged: rows that already stood as they should; a second run has them all here.
        rejected: items refused, counted by reason code. Never silent, so never left out.
        versions: Delta version of each table after the job, by table name.
        seconds: wall time.
        notes: what the caller should know or can do, a sentence each.
    """

    job: str
    batch: str
    read: int = 0
    written: int = 0
    unchanged: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def num_rejected(self) -> int:
        """Items refused, all reasons together."""
        return sum(self.rejected.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self) | {
            "rejected": dict(self.rejected),
            "versions": dict(self.versions),
            "notes": list(self.notes),
        }

    def line(self) -> str:
        """Return the report as one line of text for a person."""
        name = f"{self.job} {self.batch}".strip()
        parts = [f"read {self.read}", f"written {self.written}", f"unchanged {self.unchanged}"]
        if self.rejected:
            reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(self.rejected.items()))
            parts.append(f"rejected {self.num_rejected} ({reasons})")
        done = f"{name}: {', '.join(parts)} in {self.seconds:.1f} s"
        return "; ".join([done, *self.notes])
