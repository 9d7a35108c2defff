"""Several gateways side by side that share nothing but their providers and their callers."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import anyio
from fault_table import Row, shows
from gateway_process import GatewayProcess
from scripted import CHAT, Fail, ScriptedProvider, make_router

from engine import ConnectError


@shows(Row(
    "D8", "all replicas restart together", "the answer of a provider that is well",
    "elsewhere", "nothing", "a failure", "Ejection times, health checks and restarts are jittered "
    "by a chance of each process's own.",
))  # fmt: skip
def test_d8_replicas_restart_together(virtual_time: Callable[..., None]) -> None:
    """D8: thirty gateways that meet the same outage at once come back at different times."""
    probes: list[float] = []

    async def replica() -> None:
        ejection = {"consecutive_failures": 1, "base": 10, "max": 300}
        provider = ScriptedProvider(
            "a", then=Fail(ConnectError("down")), ejection=ejection, max_retries=0
        )
        targets = [{"provider": "a"}, {"provider": "b", "tier": 1}]
        models = [{"name": "m", "targets": targets}]
        async with make_router(provider, ScriptedProvider("b"), models=models, seed=None) as router:
            # Asked ten times a second, for whoever is asked rarely is slow to notice.
            while len(provider.calls) < 2:
                await router.complete(CHAT)
                await anyio.sleep(0.1)
        probes.append(provider.calls[1].at - provider.calls[0].at)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(30):
                group.start_soon(replica)

    virtual_time(main)
    print(f"probes after {min(probes):.1f} to {max(probes):.1f} s")
    assert max(probes) - min(probes) > 1
    # No second sees more than a part of them.
    assert max(sum(at <= probe < at + 0.5 for probe in probes) for at in probes) <= 15


@shows(Row(
    "D9", "a load balancer goes on sending to a replica that drains", "the answer; after "
    "`server.pre_stop` 503 `server_draining`, `Retry-After: 1`, or a refused connection",
    "nothing", "the answer", "a success",
    "Readiness is red from SIGTERM on, and each answer closes its connection.",
))  # fmt: skip
def test_d9_draining_replica_is_still_asked(tmp_path: Path) -> None:
    """D9: between red readiness and the end of service, whoever comes is served."""
    settings = {
        "providers": [{"name": "a", "type": "mock"}],
        "telemetry": {"logs": "none"},
        "server": {"pre_stop": 2.0, "drain": 10},
    }
    with GatewayProcess(tmp_path, settings) as gateway:
        assert gateway.ask("/readyz").status == 200
        gateway.signal(signal.SIGTERM)
        end = time.perf_counter() + 10
        while gateway.ask("/readyz").status != 503:
            assert time.perf_counter() < end
        # Readiness is red, and the balancer has not looked yet.
        for _ in range(5):
            answer = gateway.ask()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert gateway.wait() == 0
