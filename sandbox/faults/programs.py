"""Small programs that faults start on a node. Each says `READY=1` to systemd when what it is for has come about.

They are sent as text: standard library only, Python 3.9. Arguments follow as in `sys.argv[1:]`.
"""

from __future__ import annotations

_READY = """
import os, socket, sys, time
def ready():
    place = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(chr(0) + place[1:] if place[0] == "@" else place)
        notify.send(b"READY=1")
def named(name):
    open("/proc/self/comm", "w").write(name)
"""

#: NAME PORT...: listens on ports of all addresses and never answers.
LISTEN = (
    _READY
    + """
named(sys.argv[1])
held = [socket.create_server(("", int(port))) for port in sys.argv[2:]]
ready()
while True:
    time.sleep(3600)
"""
)

#: NAME LEASE JSON: holds a lease on device memory as a live engine does.
HOLD_MEMORY = (
    _READY
    + """
import fcntl, signal
named(sys.argv[1])
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
with open(sys.argv[2], "w") as lease:
    fcntl.flock(lease, fcntl.LOCK_EX)
    lease.write(sys.argv[3])
    lease.flush()
    ready()
    signal.sigwait({signal.SIGTERM})
    os.unlink(sys.argv[2])
"""
)

#: NAME FILE: holds a lock as a program does that never ends.
HOLD_LOCK = (
    _READY
    + """
import fcntl
named(sys.argv[1])
with open(sys.argv[2], "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    ready()
    while True:
        time.sleep(3600)
"""
)

#: PORT: a proxy that answers everything with 503 and a header of its own.
PROXY = (
    _READY
    + """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503)
        self.send_header("Via", "1.1 proxy.corp.example (squid)")
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_POST = do_HEAD = do_CONNECT = do_GET
    def log_message(self, *words):
        pass
server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
ready()
server.serve_forever()
"""
)

#: STATE PHYSICAL_ID COUNTER SECONDS: a counter of one port that goes up, a step at a time.
COUNT_UP = (
    _READY
    + """
import fcntl, json
state, device, counter, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
def step():
    with open(os.path.join(os.path.dirname(state), "state.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(state) as file:
            document = json.load(file)
        port = next(each for each in document["devices"] if each["phy_id"] == device)["roce"]
        port["counters"][counter] += 17
        with open(state + ".count", "w") as file:
            json.dump(document, file, indent=1)
            file.write(chr(10))
        os.replace(state + ".count", state)
ready()
while True:
    time.sleep(seconds)
    step()
"""
)

#: A service that is there and does nothing.
IDLE = (
    _READY
    + """
named(sys.argv[1])
ready()
while True:
    time.sleep(3600)
"""
)

#: NAME PATH: keeps a device file open.
HOLD_DEVICE = (
    _READY
    + """
named(sys.argv[1])
held = open(sys.argv[2], "rb")
ready()
while True:
    time.sleep(3600)
"""
)
