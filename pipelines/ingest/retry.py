"""URLs that failed and may not fail another day, as a list that can be ingested."""

import json
from collections.abc import Sequence
from pathlib import Path

from pipelines.ingest.config import IngestConfig
from pipelines.ingest.items import TRANSIENT_REASONS, ListedItem
from pipelines.ingest.verify import Verdict


def write_retry_list(
    path: Path, items: Sequence[ListedItem], verdicts: Sequence[Verdict], config: IngestConfig
) -> list[str]:
    """Write the URLs worth another try, with captions and labels; remove the list if none is.

    Returns:
        What to tell the user: nothing, or how many there are and how to try them again.
    """
    failed = [
        item
        for item, verdict in zip(items, verdicts, strict=True)
        if verdict.reason in TRANSIENT_REASONS
    ]
    if not failed:
        path.unlink(missing_ok=True)
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(_line(item, config) for item in failed), encoding="utf-8")
    return [
        f"{len(failed)} of {len(items)} URLs could not be fetched; to try them again, ingest "
        f"{path} as another batch"
    ]


def _line(item: ListedItem, config: IngestConfig) -> str:
    row = {config.download.url_column: item.uri}
    for keys, words in ((config.caption_keys, item.caption), (config.label_keys, item.label)):
        if keys and words is not None:
            row[keys[0]] = words
    return json.dumps(row) + "\n"
