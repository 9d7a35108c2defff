"""SIGHUP in a process of its own: held back, taken, and never deadly."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PROGRAM = textwrap.dedent(
    """
    import os, signal, threading
    import anyio
    from adapters.cli.hang_up import hang_ups_held, on_hang_up

    def hang_up():
        os.kill(os.getpid(), signal.SIGHUP)

    async def serve():
        count, begun = 0, anyio.Event()

        async def action():
            nonlocal count
            count += 1
            begun.set()
            if count == 1:
                for _ in range(50):
                    hang_up()
                    await anyio.sleep(0)
                # The event loop has heard of all of them when it has looked once more.
                await anyio.sleep(0.05)

        async with anyio.create_task_group() as group:
            group.start_soon(on_hang_up, action)
            with anyio.move_on_after(10):
                while count < 2:
                    await anyio.sleep(0.01)
            await anyio.sleep(0.05)
            group.cancel_scope.cancel()
        print(count, flush=True)

    with hang_ups_held():
        threading.Thread(target=threading.Event().wait, args=(0.1,)).start()
        hang_up()
        anyio.run(serve, backend_options={"use_uvloop": UVLOOP})
        hang_up()
    print(signal.getsignal(signal.SIGHUP) is signal.SIG_DFL, flush=True)
    """
)


@pytest.mark.parametrize("uvloop", [True, False])
def test_hang_ups_are_held_back_taken_and_counted_once(uvloop: bool) -> None:
    """One from before is delivered, 50 at once are one more, one from after is dropped."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("UVLOOP", str(uvloop))],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "2\nTrue\n"), done.stderr
