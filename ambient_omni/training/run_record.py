"""A run on disk and in the table: its identity, its parents, its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ambient_omni.code_version import code_version
from ambient_omni.data.training_data import READ_TABLES, Pinned, held_out
from ambient_omni.training.config import TrainConfig
from ambient_omni.training.models import frozen_weights, settled, space_of
from schemas.errors import AnnotationMissing, BadInput
from schemas.ids import canonical_hash
from schemas.known import instead_of, require_batches
from schemas.registry import contract
from schemas.root import Root, write_json, write_whole

_CONFIG_FILE = "config.json"
_METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class RunRecord:
    """One training run: what it is made of and where it lies. See `RunRecord.of`."""

    root: Root
    config: TrainConfig
    run_id: str
    versions: dict[str, int]
    noise_space: str
    frozen_weights: dict[str, str]
    pinned: Pinned = field(default_factory=Pinned)

    @classmethod
    def of(cls, root: Root, config: TrainConfig) -> RunRecord:
        """Identify the run of a config on the root's present data.

        The id is a hash of the config and of what the slices that the run reads were made from. So
        the same command finds the same run, and a commit to another batch starts no new one. A run
        that began keeps the table versions that it pinned, and the deviation of its data.

        Raises:
            AnnotationMissing: the policy was never applied to one of the batches.
            BadInput: there is no such batch, or what the run began with cannot be read; or
                `table_versions` names a table that no run reads.
            TableMissing: a version that it names is gone.
        """
        config = settled(config)
        versions = _versions(root, config)
        space, frozen = space_of(config).noise_space, frozen_weights(config)
        inputs = {
            "config": config.identity(),
            "noise_space": space,
            "pretrained": frozen.get("pretrained"),
            "slices": _slices(root, config, versions),
            # As it was defined: a take-down changes what a run trains on, not which run it is.
            "held_out": held_out(root, versions, exclude=False).fingerprint,
        }
        if "text_encoder" in frozen:
            inputs["text_encoder"] = frozen["text_encoder"]
        run = cls(root, config, canonical_hash(inputs), versions, space, frozen)
        if not run.has_begun:
            return run
        versions, pinned = _read_begun(run.folder / _CONFIG_FILE)
        return replace(run, versions=versions, pinned=pinned)

    @property
    def folder(self) -> Path:
        """Where the run's files lie."""
        return self.root.runs / self.run_id

    @property
    def has_begun(self) -> bool:
        """Whether it has written what it is made of."""
        return (self.folder / _CONFIG_FILE).exists()

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints lie."""
        return self.folder / "checkpoints"

    @property
    def snapshots(self) -> Path:
        """Where its snapshots of power-function averages lie."""
        return self.folder / "snapshots"

    @property
    def parents(self) -> dict[str, Any]:
        """What a checkpoint of the run descends from."""
        return {
            "run_id": self.run_id,
            "policy_id": self.config.policy_id,
            "ingest_batches": list(self.config.batches),
            "table_versions": self.versions,
            "noise_space": self.noise_space,
            "frozen_weights": self.frozen_weights,
            "config": self.config.model_dump(mode="json"),
            "code_version": code_version(),
        }

    def begin(self, pinned: Pinned) -> None:
        """Write the run's config and parents, and what it keeps of its data."""
        write_json(self.folder / _CONFIG_FILE, {**self.parents, **asdict(pinned)})

    def row(self) -> dict[str, Any] | None:
        """Return the run's row of training_runs, or None."""
        rows = self.root.tables.read("training_runs", where={"run_id": self.run_id}).to_pylist()
        return rows[0] if rows else None

    def is_finished(self) -> bool:
        """Say whether the run reached its end and its selected checkpoint is there."""
        row = self.row()
        return (
            row is not None
            and row["status"] == "finished"
            and row["checkpoint"] is not None
            and (self.root.path / row["checkpoint"]).is_dir()
        )

    def write(
        self,
        status: str,
        *,
        num_images_seen: int = 0,
        checkpoint: Path | None = None,
        metrics: Mapping[str, Any] | None = None,
        audit: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the run's row of training_runs, in place of the one before."""
        values = {
            "run_id": self.run_id,
            "name": self.config.name,
            "policy_id": self.config.policy_id,
            "ingest_batches": list(self.config.batches),
            "table_versions": json.dumps(self.versions),
            "noise_space": self.noise_space,
            "config": json.dumps(self.config.model_dump(mode="json")),
            "code_version": code_version(),
            "status": status,
            "num_images_seen": num_images_seen,
            "checkpoint": None if checkpoint is None else self._relative(checkpoint),
            "metrics": json.dumps(dict(metrics or {})),
            "audit": json.dumps(dict(audit or {})),
        }
        schema = contract("training_runs").arrow_schema
        self.root.tables.upsert(
            "training_runs", pa.Table.from_pylist([values], schema=schema), job="train"
        )

    def log(self, values: Mapping[str, Any]) -> None:
        """Append a line to the run's metrics.jsonl."""
        with (self.folder / _METRICS_FILE).open("a") as file:
            file.write(json.dumps(dict(values)) + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that are about to be done again."""
        path = self.folder / _METRICS_FILE
        if not path.exists():
            return
        lines = path.read_text().splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        if len(kept) < len(lines):
            write_whole(path, "".join(line + "\n" for line in kept))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root.path).as_posix()


def find_run(root: Root, run_id: str) -> dict[str, Any]:
    """Return the row of a run in training_runs.

    Raises:
        BadInput: there is no such run.
    """
    rows = root.tables.read("training_runs", where={"run_id": run_id}).to_pylist()
    if not rows:
        known = root.tables.read("training_runs", ["run_id", "name"]).to_pylist()
        names = ", ".join(f"{row['run_id']} ({row['name']})" for row in known) or "none yet"
        raise BadInput(f"there is no training run {run_id}; runs of this root: {names}")
    found: dict[str, Any] = rows[0]
    return found


def _read_begun(file: Path) -> tuple[dict[str, int], Pinned]:
    """Return the table versions that a run pinned, and what else it keeps of its data."""
    try:
        begun = json.loads(file.read_text())
        pinned = Pinned(
            begun.get("sigma_data"),
            tuple(begun.get("label_names", ())),
            tuple(begun.get("source_names", ())),
        )
        return dict(begun["table_versions"]), pinned
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{file} is damaged ({error!r}): restore it, or remove {file.parent} to begin anew"
        ) from error


def _versions(root: Root, config: TrainConfig) -> dict[str, int]:
    """Return the table versions of a run that begins now: the newest, or those that are named."""
    unread = sorted(set(config.table_versions) - set(READ_TABLES))
    if unread:
        raise BadInput(
            f"table_versions names {unread[0]}, which no run reads; there are "
            f"{', '.join(READ_TABLES)}"
        )
    for name, version in config.table_versions.items():
        root.tables.open(name, version)
    return root.tables.versions(READ_TABLES) | config.table_versions


def _slices(root: Root, config: TrainConfig, versions: Mapping[str, int]) -> dict[str, list[str]]:
    slices, at = {}, versions.get
    for batch in config.batches:
        samples = root.tables.fingerprint("samples", {"ingest_batch": batch}, at("samples"))
        if samples is None:
            require_batches(root.tables, [batch])
            raise BadInput(f"batch {batch} has no samples; run ingest on it again")
        policy = {"policy_id": config.policy_id, "ingest_batch": batch}
        levels = root.tables.fingerprint("noise_annotations", policy, at("noise_annotations"))
        if levels is None:
            registered = root.tables.read("policies", ["policy_id"])["policy_id"].to_pylist()
            if config.policy_id not in registered:
                raise BadInput(
                    f"no policy {config.policy_id!r} is registered"
                    + instead_of(config.policy_id, registered)
                )
            raise AnnotationMissing(
                f"policy {config.policy_id} was never applied to batch {batch}: run the annotate "
                "job on it"
            )
        slices[batch] = [samples, levels]
    return slices


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        # The line that a kill cut off.
        return 1 << 62
