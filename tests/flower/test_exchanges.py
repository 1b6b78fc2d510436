"""Questions and answers are read off a slow link: names, bytes, and no more time than they were on the wire."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
import time

from tests.flower.exchanges import Exchange, Message, exchanges, messages
from tests.flower.slow_link import Fault, Link

THOUGHT = 0.3
UP, DOWN, DELAY = 4e5, 2e6, 0.03
ANSWERS = {"pull-object": 60_000}
ASK = """
import http.client, sys
link = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]))
for name in sys.argv[3:]:
    link.request("POST", "/v1/fleet/" + name, bytes(20_000 if name == "push-object" else 10))
    link.getresponse().read()
"""
TALK = ["pull-messages", "pull-messages", "pull-object", "confirm-message-received", "push-messages", "push-object"]


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        name = self.path.rpartition("/")[2]
        time.sleep(THOUGHT if name == "push-messages" else 0.0)
        body = bytes(ANSWERS.get(name, 20))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None: ...


def test_a_conversation(link: Link) -> None:
    link.fault = Fault(rate=DOWN, up=UP, delay=DELAY)
    with http.server.HTTPServer((link.here, 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = [sys.executable, "-c", ASK, link.here, str(server.server_port), *TALK]
        subprocess.run([*link.inside, *words], check=True, timeout=60)
        server.shutdown()
    found = exchanges(link)
    assert [one.name for one in found] == TALK
    assert len({one.port for one in found}) == 1
    for one in found:
        up, down = (20_000 if one.name == "push-object" else 10), ANSWERS.get(one.name, 20)
        assert up < one.up < up + 300
        assert down < one.down < down + 300
        assert one.seconds >= 2 * DELAY + 8 * one.up / UP + 8 * one.down / DOWN - 1e-6
        assert (one.thought >= THOUGHT) == (one.name == "push-messages")
    assert sum(one.seconds + one.thought for one in found) <= found[-1].end - found[0].start
    ((down,), (up,)) = messages(found)
    assert [one.name for one in down.each] == ["pull-messages", "confirm-message-received", "pull-object"]
    assert down.serial[0] is found[1]  # the poll that was followed by a question for the message
    assert up.each == found[4:]


def test_connections_side_by_side_take_as_long_as_the_longest() -> None:
    serial = [Exchange("push-messages", 1, start=0.0, end=2.0, asked=0.5, thought=1.0)]
    objects = [Exchange("push-object", port, start=2.0, end=2.0 + port, asked=2.0) for port in (1, 3, 1)]
    assert Message(serial, objects).seconds == 1.0 + 3.0
