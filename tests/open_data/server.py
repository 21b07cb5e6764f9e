"""A file server on loopback that knows byte ranges and counts what it sends."""

import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Served:
    """Files and answers by path, and what was asked of them."""

    def __init__(self):
        self.files = {}
        self.bytes_sent = Counter()
        self.requests = []
        self.refuse = set()
        self.break_after = None  # GET requests of files that are still answered
        self.url = ""

    def add_json(self, path, data):
        self.files[path] = json.dumps(data).encode()


@contextmanager
def serve():
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def do_POST(self):
            length = int(self.headers.get("Content-Length", 0))
            served.requests.append((self.path, json.loads(self.rfile.read(length))))
            self.answer(body=True)

        def answer(self, body):
            path = self.path.split("?")[0]
            served.requests.append((self.path, self.headers.get("Range")))
            data = served.files.get(path)
            if served.break_after is not None and body and path.endswith(".tif"):
                if served.break_after == 0:
                    data = None
                else:
                    served.break_after -= 1
            if data is None or path in served.refuse:
                self.send_response(403 if path in served.refuse else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if wanted:
                first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
                part = data[first : last + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
            else:
                part = data
                self.send_response(200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Type", "image/tiff" if path.endswith(".tif") else "application/json")
            self.end_headers()
            if body:
                served.bytes_sent[path] += len(part)
                self.wfile.write(part)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
