"""The files of a deployment: settings that are read, secrets without defaults, whole files."""

import re
from pathlib import Path

import pytest
import yaml
from dagster._config import process_config
from dagster._core.instance.config import dagster_instance_config_schema
from dagster._core.workspace.config_schema import process_workspace_config

from dagster_project import cli
from dagster_project.settings import BY_NAME, SETTINGS

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
SERVERS = {"postgres", "storage"}  # others' images, with settings of theirs


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def environment_of(compose, service):
    return compose["services"][service].get("environment", {})


def variables_in(value):
    """Return the variables that Dagster is told to take from the environment."""
    if isinstance(value, dict):
        found = {str(value["env"])} if set(value) == {"env"} else set()
        return found.union(*(variables_in(v) for v in value.values()))
    if isinstance(value, list):
        return set().union(*(variables_in(v) for v in value))
    return set()


def test_every_setting_that_compose_passes_is_one_that_somebody_reads(compose):
    for name in set(compose["services"]) - SERVERS:
        unknown = set(environment_of(compose, name)) - set(BY_NAME)
        assert not unknown, f"{name} passes {unknown}"


def test_settings_are_read_where_the_list_says():
    sources = {
        file: file.read_text()
        for file in (*DEPLOY.glob("*.yaml"), *REPOSITORY.glob("*/**/*.py"))
        if ".venv" not in file.parts and "tests" not in file.parts
        and file.name not in ("settings.py", "compose.yaml")
    }  # fmt: skip
    for setting in SETTINGS:
        if not setting.name.startswith("AMBIENT_OMNI_"):
            continue  # documented by whoever reads it
        readers = [file for file, text in sources.items() if setting.name in text]
        assert readers, f"nobody reads {setting.name}"
        if setting.read_by.startswith("deploy/"):
            found = variables_in(yaml.safe_load((REPOSITORY / setting.read_by).read_text()))
            assert setting.name in found


def test_what_dagster_takes_from_the_environment_is_passed_to_all_of_its_services(compose):
    wanted = set()
    for name in ("dagster.yaml", "workspace.yaml"):
        wanted |= variables_in(yaml.safe_load((DEPLOY / name).read_text()))
    for service in ("code", "daemon", "web"):
        assert wanted <= set(environment_of(compose, service))


def test_no_secret_has_a_default_and_none_stands_in_a_file(compose):
    for setting in SETTINGS:
        if not setting.secret:
            continue
        for service in compose["services"]:
            for name, value in environment_of(compose, service).items():
                if name == setting.name or setting.name in str(value):
                    # ${X:?..} refuses to start without it; ${X:-} leaves a feature off.
                    assert re.fullmatch(rf"\$\{{{setting.name}(:\?[^}}]+|:-)\}}", value), (
                        service,
                        name,
                    )
    example = dict(
        line.split("=", 1)
        for line in (DEPLOY / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert set(example.values()) == {""}
    text = (DEPLOY / "compose.yaml").read_text()
    assert set(example) == set(re.findall(r"\$\{([A-Z_]+)", text))


def test_everything_that_may_be_reached_from_elsewhere_is_on_loopback(compose):
    ports = {name: s["ports"] for name, s in compose["services"].items() if "ports" in s}
    assert ports == {"web": ["127.0.0.1:3000:3000"]}
    assert compose["networks"]["inside"] == {"internal": True}
    outside = {name for name, s in compose["services"].items() if "outside" in s["networks"]}
    assert outside == {"code", "web"}
    text = (DEPLOY.parent / "docs" / "deployment.md").read_text()
    assert "`code` and `web` are also on `outside`" in text


def test_dagster_takes_its_settings_whole(monkeypatch):
    settings = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
    for name in variables_in(settings):
        monkeypatch.setenv(name, "5432")
    found = process_config(dagster_instance_config_schema(), settings)
    assert found.success, found.errors


def test_the_workspace_names_the_code_server(monkeypatch):
    monkeypatch.setenv("AMBIENT_OMNI_CODE_HOST", "code")
    monkeypatch.setenv("AMBIENT_OMNI_CODE_PORT", "4000")
    found = process_workspace_config(yaml.safe_load((DEPLOY / "workspace.yaml").read_text()))
    assert found.success, found.errors
    (server,) = found.value["load_from"]
    assert server["grpc_server"]["port"] == 4000


def test_the_image_copies_only_what_is_there_and_ignores_no_part_of_it():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for name in copied:
        assert (REPOSITORY / name).exists(), name
        assert f"!{name}" in ignored
    assert any(line.startswith("USER") and "root" not in line for line in lines)


def test_services_that_depend_on_each_other_exist(compose):
    for name, service in compose["services"].items():
        assert set(service.get("depends_on", ())) <= set(compose["services"]), name
        named = {v.split(":")[0] for v in service.get("volumes", ())}
        assert named <= set(compose["volumes"])


def test_a_person_sees_which_settings_are_set_and_no_secret(monkeypatch, capsys):
    monkeypatch.setenv("AMBIENT_OMNI_PG_PASSWORD", "hush-hush")
    monkeypatch.setenv("AMBIENT_OMNI_PG_HOST", "history.example")
    assert cli.main(["settings"]) == 0
    said = capsys.readouterr().out
    assert "hush-hush" not in said
    assert re.search(r"AMBIENT_OMNI_PG_PASSWORD +set ", said)
    assert "history.example" in said


def test_the_documents_name_every_setting():
    text = (REPOSITORY / "docs" / "deployment.md").read_text()
    for setting in SETTINGS:
        assert f"`{setting.name}`" in text, setting.name
