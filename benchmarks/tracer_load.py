"""Asks the server of tracer_torch.py all the time, by so many connections: python tracer_load.py PORT CONNECTIONS.
Ends with 1 at the first answer that is not one."""

import http.client
import json
import os
import sys
import threading

port, connections = int(sys.argv[1]), int(sys.argv[2])
BODY = json.dumps({"tokens": [i * 7 % 1024 for i in range(64)]}).encode()


def ask() -> None:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while True:
            connection.request("POST", "/complete", BODY, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if len(json.loads(response.read())["next"]) != 5 or response.status != 200:
                raise ValueError("no answer")
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        print(f"load: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)


for _ in range(connections):
    threading.Thread(target=ask).start()
