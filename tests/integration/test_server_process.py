"""The server as a process: signals and exit codes."""

import os
import signal
import socket
import subprocess
import sys
import textwrap

PROGRAM = textwrap.dedent(
    """
    import sys
    import anyio
    from adapters.frontdoor.border import exchange_of
    from adapters.frontdoor.listening_socket import open_listening_socket
    from adapters.frontdoor.server import ServerSettings, run_server

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        async def work():
            await anyio.sleep(float(scope["query_string"]))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})
        await exchange_of(scope).run(work)

    listener = open_listening_socket("127.0.0.1", 0)
    port = listener.getsockname()[1]
    sys.exit(run_server(app, listener=listener, settings=ServerSettings(drain_seconds=20),
                        on_started=lambda: print(port, flush=True)))
    """
)


def start_program() -> tuple[subprocess.Popen[str], int]:
    """Start the program above and wait for its port."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_sigterm_drains_and_exits_with_0() -> None:
    """A request in flight is answered after SIGTERM and the process ends cleanly."""
    process, port = start_program()
    with process, socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET /?1.0 HTTP/1.1\r\nHost: gateway\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as probe:
            probe.sendall(b"GET /?0 HTTP/1.1\r\nHost: gateway\r\n\r\n")
            assert probe.recv(1000).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        answer = b""
        while part := client.recv(1000):
            answer += part
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"done" in answer
        assert process.wait(10) == 0


def test_second_signal_ends_at_once() -> None:
    """The second signal cuts a request that would have taken a minute."""
    process, port = start_program()
    with process, socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET /?60 HTTP/1.1\r\nHost: gateway\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as probe:
            probe.sendall(b"GET /?0 HTTP/1.1\r\nHost: gateway\r\n\r\n")
            assert probe.recv(1000).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(6) in {128 + signal.SIGTERM, 128 + signal.SIGINT}
