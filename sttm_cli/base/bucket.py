"""Clients of buckets (s3://, gs://, az://), through obstore, and its errors in plain words.

obstore's messages quote the endpoint, which may contain a password; none of them is passed on.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

from sttm_cli.base.errors import SttmError

CLIENTS = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
"""The schemes of buckets, and obstore's names of their clients."""
ENDPOINTS = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT",
)
"""Variables with the address of another server than the scheme's own; it may be one without TLS."""
_CREDENTIALS = {
    "s3": (
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION"),
        "~/.aws and the machine's role",
    ),
    "gs": (("GOOGLE_APPLICATION_CREDENTIALS",), "gcloud's login and the machine's account"),
    "az": (
        ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"),
        "the machine's identity",
    ),
}
_CODES = {
    301: "it is in another region (AWS_REGION)",
    307: "it is in another region (AWS_REGION)",
    400: "the request or the credentials are not accepted (status 400)",
    401: "the credentials are not accepted",
    403: "access is denied",
    404: "the bucket does not exist",
}


def open_client(
    scheme: str,
    bucket: str,
    *,
    prefix: str = "",
    seconds: float,
    retry_s: float,
    what: str,
    error: type[SttmError] = SttmError,
) -> Any:
    """Return obstore's client of a bucket; no request is made.

    `seconds`: the bound of one request, its body included. `retry_s`: a request that fails with
    5xx, or whose connection is cut, is repeated within this time. Credentials come from the
    environment, a profile or the machine's role. Raises `error` without the extra `cloud`, in a
    message that begins with `what` ("videos in a bucket need"), and for incomplete settings.
    """
    try:
        from obstore import exceptions, store
    except ImportError as missing:
        raise error(
            f"{what} what is not installed: {missing.name}",
            "python -m pip install obstore boto3",
        ) from None
    http = any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS)
    backoff = {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=4),
        "base": 2,
    }
    try:
        return getattr(store, CLIENTS[scheme])(
            bucket,
            **({"prefix": prefix} if prefix else {}),
            client_options={
                "timeout": timedelta(seconds=seconds),
                "connect_timeout": timedelta(seconds=5),
                **({"allow_http": True} if http else {}),
            },
            retry_config={
                "max_retries": 8,
                "retry_timeout": timedelta(seconds=retry_s),
                "backoff": backoff,
            },
            **(_s3_settings(error) if scheme == "s3" else {}),
        )
    except (exceptions.BaseError, ValueError):
        raise error(
            f"{scheme}://{bucket} cannot be opened: its settings in the environment are incomplete",
            credentials_of(scheme),
        ) from None


def credentials_of(scheme: str) -> str:
    """Return where credentials for a bucket are looked for, and which variables are set."""
    names, beside = _CREDENTIALS[scheme]
    states = (f"{name} ({'set' if os.environ.get(name) else 'not set'})" for name in names)
    return f"credentials are looked for in {', '.join(states)}, {beside}"


def reason_of(error: Exception) -> tuple[int, str]:
    """Return the HTTP status in an error of obstore, 0 without one, and its reason in words."""
    kind, text = type(error).__name__, str(error)
    if kind == "PermissionDeniedError":
        return 403, _CODES[403]
    if kind == "UnauthenticatedError":
        return 401, _CODES[401]
    if match := re.search(r"status(?: code)?:? (\d{3})", text):
        code = int(match[1])
        return code, _CODES.get(code, f"the server answers with status {code}")
    if "invalid path" in text:
        # Of somebody else's: everything but a listing still works.
        return 400, "an object below it has a name that cannot be read, such as one with '//'"
    if "credential" in text.lower() or "169.254.169.254" in text:
        return 0, "no credentials were found, or they cannot be used"
    if "kind: Connect," in text:
        return 0, "the server cannot be reached"
    if "kind: Timeout" in text or "timed out" in text:
        return 0, "the server does not answer in time"
    return 0, "the connection fails"


def _s3_settings(error: type[SttmError]) -> dict[str, Any]:
    """What obstore does not find by itself: the endpoint of the newer variables, and profiles."""
    settings: dict[str, Any] = {}
    if endpoint := next(filter(None, map(os.environ.get, ENDPOINTS[:2])), None):
        settings["endpoint"] = endpoint
    if not os.environ.get("AWS_ACCESS_KEY_ID") and _has_profiles():
        from boto3 import Session
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider

        try:
            session = Session()
            found = session.get_credentials() is not None
        except BotoCoreError as failed:
            # Of these messages only names of profiles and files are known to be in them.
            raise error(
                "the profile in AWS_PROFILE or the files in ~/.aws cannot be used"
                f" ({type(failed).__name__})",
                "aws configure list shows what they hold",
            ) from None
        if found:
            settings["credential_provider"] = Boto3CredentialProvider(session)
        if session.region_name:
            settings["region"] = session.region_name
    return settings


def _has_profiles() -> bool:
    names = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
    named = [Path(os.environ[name]) for name in names if os.environ.get(name)]
    usual = [Path.home() / ".aws" / name for name in ("config", "credentials")]
    return any(place.is_file() for place in named + usual)
