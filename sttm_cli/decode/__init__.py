"""Video file -> frames: probe the file, plan the frames, and read them."""

from sttm_cli.decode.bucket import Object, in_bucket, object_at
from sttm_cli.decode.file import changed
from sttm_cli.decode.plan import plan_frames
from sttm_cli.decode.probe import REVISION, probe, remembered_probe
from sttm_cli.decode.read import read_frames
from sttm_cli.decode.source import Source, Sources, digest, video_version

__all__ = [
    "REVISION",
    "Object",
    "Source",
    "Sources",
    "changed",
    "digest",
    "in_bucket",
    "object_at",
    "plan_frames",
    "probe",
    "read_frames",
    "remembered_probe",
    "video_version",
]
