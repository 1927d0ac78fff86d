"""Telling people: a line in a file, a post to a webhook, or whatever a recipe names."""

import importlib
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from dagster_project.operations.config import NotifyConfig
from schemas.errors import BadInput
from schemas.root import Root

FILE = "notices.jsonl"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Notice:
    """Something that a person should know.

    Attributes:
        kind: run_failed, batch_held, retrain_proposed, candidate_ready.
        title: one line.
        text: what happened and what can be done.
        facts: names of batches, runs and the like.
        at: when, UTC.
    """

    kind: str
    title: str
    text: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


Notifier = Callable[[Notice], None]


def notify(root: Root, config: NotifyConfig, notice: Notice) -> list[str]:
    """Tell everyone; return who could not be told. One that fails does not keep the others."""
    failed = []
    for name, notifier in notifiers(root, config):
        try:
            notifier(notice)
        except Exception as error:  # noqa: BLE001 - notifiers are anyone's code
            # A webhook's URL is a secret, and so may be what its error says of it.
            _LOG.warning("notifier %s failed: %s", name, type(error).__name__)
            failed.append(name)
    return failed


def notifiers(root: Root, config: NotifyConfig) -> list[tuple[str, Notifier]]:
    """Return the notifiers of a recipe by name; the file is always among them.

    Raises:
        BadInput: an extra one cannot be imported.
    """
    found: list[tuple[str, Notifier]] = [("file", FileNotifier(root.dagster / FILE))]
    url = os.environ.get(config.webhook_variable, "")
    if url:
        found.append(("webhook", WebhookNotifier(url, config.timeout_seconds)))
    return [*found, *((name, _imported(name)) for name in config.extra)]


@dataclass(frozen=True)
class FileNotifier:
    """Appends a line of JSON to a file."""

    path: Path

    def __call__(self, notice: Notice) -> None:
        """Append the notice."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(notice)) + "\n")


@dataclass(frozen=True)
class WebhookNotifier:
    """Posts the notice as JSON; `text` alone says it all, as chat services want it."""

    url: str = field(repr=False)
    timeout_seconds: float = 5.0

    def __call__(self, notice: Notice) -> None:
        """Post the notice.

        Raises:
            BadInput: the address is not one of the web.
            URLError: it did not answer, or refused.
        """
        if not self.url.startswith(("https://", "http://")):
            raise BadInput("the webhook's address must begin with https:// or http://")
        body = asdict(notice) | {"text": f"{notice.title}\n{notice.text}".strip()}
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            self.url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=self.timeout_seconds) as answer:  # noqa: S310
            answer.read(0)


def notices(root: Root) -> list[Notice]:
    """Return what was told, oldest first."""
    file = root.dagster / FILE
    if not file.exists():
        return []
    return [Notice(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def _imported(name: str) -> Notifier:
    module, _, attribute = name.partition(":")
    try:
        notifier: Notifier = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"notifier {name!r} cannot be imported: {error}") from error
    return notifier
