"""Listing and pruning a bucket of many entries: `python -m tests.store.measure_rows [ENTRIES]`.

The server is a sorted list of names in another process, which answers as S3 does: a thousand names
a request. Seconds are thus this program's own, with a server that takes nearly no time.
"""

from __future__ import annotations

import bisect
import multiprocessing
import os
import re
import resource
import sys
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from urllib.parse import parse_qs, urlsplit

from sttm_cli.base.types import TokenCounts
from sttm_cli.store.bucket import FOLDER
from sttm_cli.store.bucket_rows import artifact_path, row_path, use_path
from sttm_cli.store.cloud import BucketStore
from sttm_cli.store.protocol import Entry, Uses
from tests.store.bucket import environment

SIZE = 200_000_000


def names(entries: int) -> list[str]:
    """The objects of so many entries, half of which were used."""
    from blake3 import blake3

    found, counts = list[str](), TokenCounts(12_544, 3763, 3790, 9000, 0.83, 0.61)
    label = {"model": "llava-onevision-7b", "budget": 0.3, "method": "sttm", "duration_s": 61.2}
    one = Entry("", "", SIZE, "", label, counts, "bfloat16", 0, 0.0, Uses())
    for number in range(entries):
        key, video = (str(blake3(f"{what}{number}".encode()).hexdigest()) for what in "kv")
        label = {"video": f"/data/library/part-{number % 97}/film-{number}.mp4", **one.label}
        row = row_path(replace(one, key=key, video=video, label=label))
        found += [artifact_path(key), row] if row else [artifact_path(key)]
        if number % 2:
            found.append(use_path(key, Uses(3, 12.5)))
    return sorted(f"{FOLDER}/{name}" for name in found)


def serve(entries: int, ready: Connection) -> None:
    held = names(entries)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = {
                name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()
            }
            prefix = asked.get("prefix", "")
            after = asked.get("continuation-token") or asked.get("start-after") or prefix
            begin = bisect.bisect_right(held, after)
            page = [name for name in held[begin : begin + 1000] if name.startswith(prefix)]
            more = len(page) == 1000 and held[begin + 1000 : begin + 1001]
            token = f"<NextContinuationToken>{page[-1] if more else ''}</NextContinuationToken>"
            self._answer(
                "<ListBucketResult>"
                + f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"
                + (token if more else "")
                + "".join(
                    f"<Contents><Key>{name}</Key><LastModified>2026-11-01T12:{n % 60:02}:00.000Z"
                    f"</LastModified><ETag>&quot;{n:032x}&quot;</ETag>"
                    f"<Size>{SIZE if name.endswith('.safetensors') else 0}</Size>"
                    "<StorageClass>STANDARD</StorageClass></Contents>"
                    for n, name in enumerate(page)
                )
                + "</ListBucketResult>"
            )

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            gone = re.findall(r"<Key>(.*?)</Key>", body)
            for name in gone:
                place = bisect.bisect_left(held, name)
                if held[place : place + 1] == [name]:
                    del held[place]
            deleted = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in gone)
            self._answer(f"<DeleteResult>{deleted}</DeleteResult>")

        def _answer(self, text: str) -> None:
            data = text.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *said: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ready.send((server.server_port, len(held)))
    server.serve_forever()


def main(entries: int) -> None:
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(entries, there), daemon=True)
    server.start()
    port, objects = here.recv()
    os.environ.update(environment(f"http://127.0.0.1:{port}"))
    print(f"{entries:,} entries, {objects:,} objects")
    with BucketStore("s3://videos", warn=print) as store:
        steps = {
            "list (cache ls)": lambda: len(store.entries()),
            "count bytes": lambda: store.bytes,
            "prune a tenth": lambda: len(store.prune(entries * SIZE * 9 // 10)),
        }
        for name, step in steps.items():
            before, started = store.traffic.requests.copy(), time.perf_counter()
            busy = time.process_time()
            result = step()
            seconds = time.perf_counter() - started
            asked = dict(store.traffic.requests - before)
            busy = time.process_time() - busy
            print(f"{name:<16} {seconds:6.1f} s, {busy:5.1f} s of it busy  {asked}  -> {result:,}")
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10:,} MiB")
    server.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 100_000)
