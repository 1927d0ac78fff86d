"""Every setting that comes from the environment: what it means, and whether it is a secret.

A root's own settings stand in its recipe; what differs from machine to machine, and every secret,
comes from here. `deploy/` passes these and nothing else, which a test holds it to. A secret has no
default, and its value is never shown: `ambient-omni settings` says whether it is set.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from dagster_project.defs.project import RECIPE_VARIABLE
from dagster_project.instance import HOME_VARIABLE
from dagster_project.operations.config import NotifyConfig
from pipelines.spark import MASTER_VARIABLE
from schemas.root import ROOT_VARIABLE

WEBHOOK_VARIABLE = str(NotifyConfig.model_fields["webhook_variable"].default)


@dataclass(frozen=True)
class Setting:
    """One environment variable.

    Attributes:
        name: of the variable.
        meaning: what it decides.
        read_by: whose code reads it.
        secret: its value is shown nowhere and has no default.
    """

    name: str
    meaning: str
    read_by: str = "ambient-omni"
    secret: bool = False


SETTINGS = (
    Setting(ROOT_VARIABLE, "the root's folder, the same path on every machine"),
    Setting(RECIPE_VARIABLE, "recipe that overrides the root's own"),
    Setting(HOME_VARIABLE, "folder of a dagster.yaml of your own; else <root>/dagster"),
    Setting(MASTER_VARIABLE, "Spark's master, spark://host:7077; else this machine"),
    Setting(WEBHOOK_VARIABLE, "URL that notices are posted to", secret=True),
    Setting("AMBIENT_OMNI_CODE_HOST", "host of the code server", "deploy/workspace.yaml"),
    Setting("AMBIENT_OMNI_CODE_PORT", "port of the code server", "deploy/workspace.yaml"),
    Setting("AMBIENT_OMNI_PG_HOST", "PostgreSQL's host", "deploy/dagster.yaml"),
    Setting("AMBIENT_OMNI_PG_PORT", "PostgreSQL's port", "deploy/dagster.yaml"),
    Setting("AMBIENT_OMNI_PG_DATABASE", "the history's database", "deploy/dagster.yaml"),
    Setting("AMBIENT_OMNI_PG_USER", "the history's user", "deploy/dagster.yaml"),
    Setting("AMBIENT_OMNI_PG_PASSWORD", "that user's password", "deploy/dagster.yaml", secret=True),
    Setting("AMBIENT_OMNI_LOGS_BUCKET", "bucket of what runs print", "deploy/dagster.yaml"),
    Setting("DAGSTER_HOME", "folder of dagster.yaml", "dagster"),
    Setting("AWS_ENDPOINT_URL", "address of the object store; else Amazon's", "s3fs, boto3"),
    Setting("AWS_DEFAULT_REGION", "region of the object store", "s3fs, boto3"),
    Setting("AWS_ACCESS_KEY_ID", "user of the object store", "s3fs, boto3", secret=True),
    Setting("AWS_SECRET_ACCESS_KEY", "that user's key", "s3fs, boto3", secret=True),
    Setting("SPARK_LOCAL_IP", "address that Spark binds to", "spark"),
    Setting("SPARK_PUBLIC_DNS", "name that Spark's nodes give of themselves", "spark"),
    Setting("PYSPARK_PYTHON", "Python of the executors", "spark"),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}


def shown(environment: Mapping[str, str] = os.environ) -> list[tuple[str, str, str]]:
    """Return name, value and meaning of every setting; of a secret, whether it is set."""
    return [
        (setting.name, _value(setting, environment.get(setting.name, "")), setting.meaning)
        for setting in SETTINGS
    ]


def _value(setting: Setting, value: str) -> str:
    if not value:
        return "-"
    return "set" if setting.secret else value
