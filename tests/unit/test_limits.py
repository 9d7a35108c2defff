"""Rate limits: requests and tokens per minute; requests on asyncio only."""

import anyio
import pytest
from scripted import CHAT, Hang, Ok, ScriptedProvider, make_router, until

from engine import (
    ChatRequest,
    ConfigurationError,
    ConnectError,
    LimitsConfig,
    NoProviderAvailableError,
    ProviderConfig,
    Usage,
)
from engine.resilience.limits import (
    ProviderRateLimits,
    TokenBucket,
    Unlimited,
    estimated_tokens,
    rate_limits,
)

ASYNCIO_ONLY = pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "uvloop"],
)
TRIO_ONLY = pytest.mark.parametrize("anyio_backend", [("trio", {})], ids=["trio"])


class Clock:
    """Time by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def request(text: str = "x", **fields: object) -> ChatRequest:
    """A chat request."""
    return ChatRequest("m", [{"role": "user", "content": text}], **fields)


def test_bucket_lets_through_a_tenth_of_a_minute_at_once() -> None:
    """The bucket holds a tenth of a minute's tokens and fills with the rate."""
    clock = Clock()
    bucket = TokenBucket(6_000, clock)
    bucket.take(600)
    assert bucket.wait_time() > 0
    clock.now += 1
    assert bucket.wait_time() == 0
    bucket.take(100)
    assert bucket.wait_time() == pytest.approx(1 / 100)
    clock.now += 3_600
    bucket.take(599)
    assert bucket.wait_time() == 0


def test_request_larger_than_the_bucket_may_pass_a_full_one() -> None:
    """A debt is paid by those who come later."""
    clock = Clock()
    bucket = TokenBucket(600, clock)
    assert bucket.wait_time() == 0
    bucket.take(1_060)
    assert bucket.wait_time() == pytest.approx(1_001 / 10)
    clock.now += 100.2
    assert bucket.wait_time() == 0


def test_reservation_is_settled_by_true_usage() -> None:
    """What was reserved too much comes back, what was too little is taken."""
    clock = Clock()
    bucket = TokenBucket(6_000, clock)
    bucket.take(500)
    bucket.settle(500, 20)
    bucket.take(579)
    assert bucket.wait_time() == 0
    bucket.settle(579, 1_579)
    assert bucket.wait_time() == pytest.approx((1 + 999) / 100)


def test_settling_never_overfills_the_bucket() -> None:
    """Giving back does not make room for more than the bucket holds."""
    clock = Clock()
    bucket = TokenBucket(6_000, clock)
    bucket.take(600)
    clock.now += 600
    bucket.settle(600, 0)
    bucket.take(600)
    assert bucket.wait_time() > 0


def test_estimate_counts_text_and_allowed_output() -> None:
    """A reservation is the body's size in tokens and the output the caller allows."""
    small, large = request(max_tokens=1), request("y" * 4_000, max_tokens=1)
    assert 990 <= estimated_tokens(large) - estimated_tokens(small) <= 1_010
    assert estimated_tokens(request(max_completion_tokens=900)) > 900
    assert estimated_tokens(request()) > 500
    assert estimated_tokens(request(max_tokens="many")) > 500
    raw = ChatRequest.from_body({**CHAT, "max_tokens": 10}, b"z" * 400)
    assert estimated_tokens(raw) == 110


async def test_without_limits_nothing_is_counted() -> None:
    """A provider without limits has none."""
    limits = rate_limits("a", LimitsConfig(), Clock())
    assert isinstance(limits, Unlimited)
    assert limits.wait_time() == 0
    assert limits.take(request()) == 0
    limits.settle(0, None)


async def test_token_limit_works_on_every_event_loop() -> None:
    """Tokens per minute need no particular event loop."""
    clock = Clock()
    limits = rate_limits("a", LimitsConfig(tokens_per_minute=6_000), clock)
    reserved = limits.take(request(max_tokens=700))
    assert reserved > 700
    assert limits.wait_time() > 0
    limits.settle(reserved, Usage(5, 5))
    assert limits.wait_time() == 0
    reserved = limits.take(request(max_tokens=700))
    limits.settle(reserved, None)
    assert limits.wait_time() > 0


@TRIO_ONLY
async def test_request_limit_is_refused_on_trio() -> None:
    """Where aiolimiter cannot run, the configuration is refused with what to do."""
    provider = ScriptedProvider("a", limits={"requests_per_minute": 60})
    with pytest.raises(ConfigurationError, match=r"'a': limits\.requests_per_minute.*asyncio"):
        async with make_router(provider):
            pass


@ASYNCIO_ONLY
async def test_request_limit_lets_a_tenth_through_at_once() -> None:
    """Sixty a minute are six at once, and then one a second."""
    limits = ProviderRateLimits(LimitsConfig(requests_per_minute=60), Clock())
    for _ in range(6):
        assert limits.wait_time() == 0
        limits.take(request())
    assert 0 < limits.wait_time() <= 1


@ASYNCIO_ONLY
async def test_rate_limited_provider_is_passed_over() -> None:
    """Beyond its rate a provider is not eligible: others serve, and no one waits."""
    limited = ScriptedProvider("limited", limits={"requests_per_minute": 30})
    other = ScriptedProvider("other")
    targets = [{"provider": "limited", "tier": 0}, {"provider": "other", "tier": 1}]
    async with make_router(limited, other, models=[{"name": "m", "targets": targets}]) as router:
        served = [(await router.complete(CHAT)).provider for _ in range(6)]
    assert served == ["limited"] * 3 + ["other"] * 3


@ASYNCIO_ONLY
async def test_all_rate_limited_is_a_429_with_a_hint() -> None:
    """When the rate is the only reason, the caller is told to slow down."""
    provider = ScriptedProvider("a", limits={"requests_per_minute": 10})
    async with make_router(provider) as router:
        await router.complete(CHAT)
        with pytest.raises(NoProviderAvailableError) as caught:
            await router.complete(CHAT)
    assert caught.value.status == 429
    assert caught.value.type == "rate_limit_error"
    assert caught.value.reason == "rate_limited"
    assert caught.value.passed_over == {"a": "rate_limited"}
    assert caught.value.retry_after == pytest.approx(6, abs=0.5)


async def test_router_settles_tokens_by_the_answers_usage() -> None:
    """An answer that used less than was reserved lets the next request through."""
    provider = ScriptedProvider("a", Ok(tokens=(3, 4)), Ok(), limits={"tokens_per_minute": 6_000})
    body = {**CHAT, "max_tokens": 700}
    async with make_router(provider) as router:
        await router.complete(body)
        await until(lambda: router.status().actors[0].in_flight == 0)
        await router.complete(body)
        with pytest.raises(NoProviderAvailableError) as caught:
            await router.complete(body)
    assert caught.value.reason == "rate_limited"


async def test_stream_settles_tokens_by_its_usage() -> None:
    """The usage of a stream's last chunk settles its reservation."""
    provider = ScriptedProvider("a", then=Ok(tokens=(3, 4)), limits={"tokens_per_minute": 6_000})
    body = {**CHAT, "max_tokens": 700}
    async with make_router(provider) as router:
        for _ in range(3):
            async with router.stream(body) as stream:
                async for _ in stream:
                    pass
            await until(lambda: router.status().actors[0].in_flight == 0)
    assert len(provider.calls) == 3


async def test_never_sent_gives_its_tokens_back() -> None:
    """Who leaves the mailbox unserved, or was refused upstream, used no tokens."""
    limits = {"tokens_per_minute": 60_000, "concurrency": 1}
    provider = ScriptedProvider("a", Hang(), ConnectError, limits=limits, max_retries=0)
    body = {**CHAT, "max_tokens": 3_000}
    async with make_router(provider) as router, anyio.create_task_group() as group:
        group.start_soon(router.complete, {**CHAT, "max_tokens": 10})
        await until(lambda: provider.running == 1)
        for _ in range(5):
            async with anyio.create_task_group() as leaving:
                leaving.start_soon(router.complete, body)
                await until(lambda: router.status().actors[0].mailbox.depth == 1)
                leaving.cancel_scope.cancel()
        group.cancel_scope.cancel()
    assert router.status().actors[0].picked == 6


def test_limits_configuration_is_finite() -> None:
    """All limits but the rates have finite defaults."""
    limits = ProviderConfig(name="a", type="mock").limits
    assert (limits.concurrency, limits.queue) == (64, 128)
