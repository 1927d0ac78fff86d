import json

import pytest

from dagster_project.operations.config import NotifyConfig
from dagster_project.operations.notices import Notice, notices, notify
from schemas.errors import BadInput
from tests.data.servers import Handler, serving


@pytest.fixture
def webhook(monkeypatch):
    """A server that keeps what is posted to it."""
    posted = []

    class Hook(Handler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

    with serving(Hook) as server:
        monkeypatch.setenv("HOOK", f"{server.url}/secret")
        yield posted


def test_a_notice_reaches_the_file_the_webhook_and_a_callable(root, webhook):
    config = NotifyConfig(webhook_variable="HOOK", extra=("builtins:repr",))
    notice = Notice("run_failed", "training failed", "look here", {"run": "r-1"})
    assert notify(root, config, notice) == []
    assert notices(root) == [notice]
    assert webhook[0]["text"] == "training failed\nlook here"
    assert webhook[0]["facts"] == {"run": "r-1"}


def test_a_webhook_that_does_not_answer_keeps_nobody_else_from_being_told(
    root, monkeypatch, caplog
):
    monkeypatch.setenv("HOOK", "http://127.0.0.1:9/secret-token")
    config = NotifyConfig(webhook_variable="HOOK", timeout_seconds=1)
    assert notify(root, config, Notice("run_failed", "x")) == ["webhook"]
    assert len(notices(root)) == 1
    assert "secret-token" not in caplog.text


def test_a_webhook_that_is_no_web_address_is_not_opened(root, monkeypatch):
    monkeypatch.setenv("HOOK", "file:///etc/passwd")
    assert notify(root, NotifyConfig(webhook_variable="HOOK"), Notice("run_failed", "x")) == [
        "webhook"
    ]


def test_a_notifier_that_cannot_be_imported_is_named(root):
    config = NotifyConfig(extra=("no.such:thing",))
    with pytest.raises(BadInput, match=r"no\.such:thing"):
        notify(root, config, Notice("run_failed", "x"))
