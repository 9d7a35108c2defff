"""The demo: a real model of 270 million parameters, asked one question."""

from __future__ import annotations

import pathlib
import subprocess
import sys


def test_demo_answers_and_says_who_answered(free_port: int) -> None:
    """`inference-gateway demo --once` shows a curl line, an answer and its provider, and ends."""
    command = pathlib.Path(sys.executable).with_name("inference-gateway")
    ran = subprocess.run(
        [command, "demo", "--once", "--port", str(free_port)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    shown = ran.stdout + ran.stderr
    assert ran.returncode == 0, shown
    assert f"curl http://127.0.0.1:{free_port}/v1/chat/completions" in shown
    assert "Paris" in shown
    assert "Traceback" not in shown
