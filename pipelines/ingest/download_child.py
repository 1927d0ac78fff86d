"""The process that img2dataset runs in. It dies with its parent, and takes its workers along."""

import json
import os
import signal
import sys
import threading
import types
from pathlib import Path

# Most of the memory and of the start of this process and of each worker, which runs these lines
# too, would be imports of what is not used: webdataset can do without torch; resizing, lists in
# JSON and reports to a web service are off, and would fail aloud on the empty modules.
if __name__ in ("__main__", "__mp_main__"):
    sys.modules["torch"] = None  # type: ignore[assignment]
    for unused in ("albumentations", "pandas", "wandb"):
        sys.modules[unused] = types.ModuleType(unused)
    from pipelines.ingest import guard

    # No settings, no download: an unguarded one must not happen by oversight.
    guard.install(**json.loads(os.environ["AMBIENT_OMNI_DOWNLOAD_GUARD"]))


def _end_with_parent() -> None:
    # The parent holds the other end open and writes nothing: an end of input is its death.
    # The raw descriptor is read, because a buffered reader would hold a lock at interpreter exit.
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def main(folder: Path) -> None:
    """Run img2dataset with the options that lie in `folder`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from img2dataset import download

    download(**json.loads((folder / "options.json").read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
