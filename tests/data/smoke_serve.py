"""Start `inference-gateway serve` as installed, ask it one thing, and end it.

Usage: python smoke_serve.py PATH_OF_THE_COMMAND. Needs nothing but the standard library.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request


def main(command: str) -> int:
    """Return 0 if the gateway answered and ended cleanly."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([command, "serve", "--port", str(port)])
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{url}/readyz", timeout=2).read()
                break
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        body = {"model": "any", "messages": [{"role": "user", "content": "Hello"}]}
        asked = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:
            text = json.load(answer)["choices"][0]["message"]["content"]
            provider = answer.headers["x-gateway-provider"]
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(30)
    print(f"smoke: {provider} answered {text!r}; the server ended with {code}")
    return 0 if text and provider and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
