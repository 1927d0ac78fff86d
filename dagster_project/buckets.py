"""``python -m dagster_project.buckets NAME ...``: make the buckets that an object store lacks.

Address and keys are the AWS_ variables. For a new deployment; twice equals once.
"""

import sys
import time
from collections.abc import Sequence

from schemas.errors import AmbientOmniError

_WAIT_SECONDS = 60.0


class StoreNotReached(AmbientOmniError):
    """The object store does not answer, or refuses."""


def make_buckets(names: Sequence[str], wait_seconds: float = _WAIT_SECONDS) -> list[str]:
    """Make the buckets that are not there and return them; a store that starts is waited for.

    Raises:
        StoreNotReached: it did not answer in that time, or refused.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    give_up = time.monotonic() + wait_seconds
    while True:
        try:
            client = boto3.client("s3")
            known = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            missing = [name for name in names if name not in known]
            for name in missing:
                client.create_bucket(Bucket=name)
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ClientError) or time.monotonic() > give_up:
                raise StoreNotReached(f"the object store refuses or is silent: {error}") from error
            time.sleep(1)
        else:
            return missing


if __name__ == "__main__":
    try:
        made = make_buckets(sys.argv[1:])
    except StoreNotReached as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(f"made: {', '.join(made) or 'none'}\n")
