"""As much of S3 as reading takes, over the files of a folder: one bucket, no keys are checked."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

BUCKET = "bucket"
CHANGED = "Thu, 01 Jan 2026 00:00:00 GMT"
LIST = (
    '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
    "<IsTruncated>false</IsTruncated>{}</ListBucketResult>"
)
ITEM = (
    "<Contents><Key>{}</Key><Size>{}</Size>"
    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
)


@contextlib.contextmanager
def serve(root: Path) -> Iterator[str]:
    """While entered, answer requests; yields what follows an address of S3 to reach this server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            path, _, query = self.path.partition("?")
            key = unquote(path).removeprefix(f"/{BUCKET}").strip("/")
            file = root / key
            if "list-type" in query:
                prefix = parse_qs(query).get("prefix", [""])[0]
                files = [one for one in sorted(root.rglob("*")) if one.is_file()]
                names = [(str(one.relative_to(root)), one.stat().st_size) for one in files]
                items = [ITEM.format(escape(n), s) for n, s in names if n.startswith(prefix)]
                self._send(200, LIST.format("".join(items)).encode())
            elif key and file.is_file():
                self._send_part(file.read_bytes())
            else:
                self._send(404 if key else 200, b"")

        do_GET = do_HEAD

        def _send_part(self, data: bytes) -> None:
            asked = self.headers.get("Range", "")
            if not asked:
                self._send(200, data)
                return
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last or len(data)) + 1]
            where = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            self._send(206, part, **{"Content-Range": where})

        def _send(self, code: int, data: bytes, **headers: str) -> None:
            self.send_response(code)
            about = {"Content-Length": str(len(data)), "ETag": '"x"', "Last-Modified": CHANGED}
            for name, value in {**about, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
