"""A reward server for TailorPO: how red a picture is, from 0 to 1. Run it: python reward_server.py 8080"""

import base64
import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image, ImageStat


def score(picture: Image.Image, prompt: str) -> float:
    """Put your own reward here; the server calls it once a picture, from several threads."""
    red, green, blue = ImageStat.Stat(picture).mean
    return max(0.0, red - (green + blue) / 2) / 255


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open between batches

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            request = json.loads(body)
            if request["version"] != 1:
                raise ValueError(f"version {request['version']} is not spoken here")
            pictures = [Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB") for png in request["images"]]
            scores = [score(picture, prompt) for picture, prompt in zip(pictures, request["prompts"], strict=True)]
        except (
            ValueError,
            KeyError,
            TypeError,
            OSError,
        ) as error:  # the sender's fault: no use in trying again
            self.answer(400, "text/plain", f"{type(error).__name__}: {error}")
        else:
            self.answer(200, "application/json", json.dumps({"scores": scores}))

    def answer(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


if __name__ == "__main__":
    server = ThreadingHTTPServer(("", int(sys.argv[1])), Handler)
    print(f"listening on port {server.server_port}", flush=True)
    server.serve_forever()
