"""The router as an application uses it: answers, refusals, tiers, weights."""

import random
from functools import partial

import anyio
import pytest
from scripted import (
    CHAT,
    ChatOnlyProvider,
    Hang,
    Ok,
    ScriptedProvider,
    assert_settled,
    make_router,
    until,
)

from engine import (
    ChatRequest,
    ConnectError,
    EmbeddingRequest,
    InvalidRequestError,
    ModelNotFoundError,
    NoProviderAvailableError,
    OverloadedError,
    ProviderRegistry,
    Router,
    UnsupportedOperationError,
)


async def test_complete_answers_a_plain_mapping() -> None:
    """A JSON object of a chat completion is enough to get an answer with its record."""
    provider = ScriptedProvider("a", Ok("hi there", tokens=(3, 5)))
    async with make_router(provider) as router:
        response = await router.complete(CHAT)
    assert response.text == "hi there"
    assert response.provider == "a"
    assert response.attempts == 1
    assert response.request_id.startswith("req-")
    assert response.upstream_seconds >= 0
    assert response.usage is not None
    assert response.usage.total_tokens == 8
    assert_settled(router, completed=1)


async def test_the_adapter_gets_the_request_as_it_came() -> None:
    """The request object reaches the adapter itself, with its id and its model name."""
    provider = ScriptedProvider()
    request = ChatRequest("m", [{"role": "user", "content": "x"}], unknown_field={"a": 1})
    async with make_router(provider) as router:
        await router.complete(request, request_id="my-id")
    attempt = provider.calls[0].attempt
    assert attempt.request is request
    assert attempt.request_id == "my-id"
    assert attempt.model == "m"
    assert attempt.timeouts is provider.config.timeouts


async def test_complete_never_asks_for_a_stream() -> None:
    """A request that says `stream: true` is sent without it when a whole answer is wanted."""
    provider = ScriptedProvider()
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    async with make_router(provider) as router:
        await router.complete(body)
    assert provider.calls[0].attempt.request.body == CHAT


async def test_embed_sends_an_embedding_request() -> None:
    """`embed` makes an `EmbeddingRequest` of a mapping."""
    provider = ScriptedProvider()
    async with make_router(provider) as router:
        await router.embed({"model": "m", "input": ["a", "b"]})
    assert isinstance(provider.calls[0].attempt.request, EmbeddingRequest)


async def test_target_names_the_model_at_its_provider() -> None:
    """The adapter is given the target's model name, not the public one."""
    provider = ScriptedProvider()
    models = [{"name": "chat", "targets": [{"provider": "a", "model": "upstream-name"}]}]
    async with make_router(provider, models=models) as router:
        await router.complete({**CHAT, "model": "chat"})
        assert router.models == ("chat",)
    assert provider.calls[0].attempt.model == "upstream-name"


async def test_unknown_model_is_the_callers_mistake() -> None:
    """A model that is not configured is a 404 that names the field and the known models."""
    models = [{"name": "chat", "targets": [{"provider": "a"}]}]
    async with make_router(ScriptedProvider(), models=models) as router:
        with pytest.raises(ModelNotFoundError, match="chat") as caught:
            await router.complete({**CHAT, "model": "other"})
    assert caught.value.status == 404
    assert caught.value.param == "model"
    assert_settled(router, rejected=1)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
async def test_a_timeout_that_is_no_time_is_refused(timeout: float) -> None:
    """A timeout must be a positive, finite number of seconds."""
    provider = ScriptedProvider()
    async with make_router(provider) as router:
        with pytest.raises(InvalidRequestError) as caught:
            await router.complete(CHAT, timeout=timeout)
    assert caught.value.param == "timeout"
    assert provider.calls == []


async def test_an_operation_nobody_offers_is_refused() -> None:
    """With no provider for the operation the answer is a 404 and nothing is sent."""
    provider = ChatOnlyProvider()
    async with make_router(provider) as router:
        with pytest.raises(UnsupportedOperationError, match="embeddings"):
            await router.embed({"model": "m", "input": "x"})
    assert provider.calls == []


async def test_an_operation_goes_only_to_who_offers_it() -> None:
    """Providers without the operation are passed over."""
    chat_only, both = ChatOnlyProvider("a", weight=100), ScriptedProvider("b")
    async with make_router(chat_only, both) as router:
        for _ in range(10):
            response = await router.embed({"model": "m", "input": "x"})
            assert response.provider == "b"
    assert chat_only.calls == []


async def test_lower_tier_serves_only_when_the_upper_cannot() -> None:
    """While somebody of the first tier is eligible, the second tier is not used."""
    first = ScriptedProvider("first", Ok(), Ok(), Ok(), then=ConnectError, max_retries=0)
    second = ScriptedProvider("second")
    targets = [{"provider": "second", "tier": 1, "weight": 1000}, {"provider": "first", "tier": 0}]
    models = [{"name": "m", "targets": targets}]
    async with make_router(first, second, models=models) as router:
        served = [(await router.complete(CHAT)).provider for _ in range(4)]
    assert served == ["first", "first", "first", "second"]


async def test_full_upper_tier_spills_into_the_lower() -> None:
    """A full mailbox makes a target ineligible, so the next tier serves at once."""
    first = ScriptedProvider("first", then=Hang(), limits={"concurrency": 1, "queue": 0})
    second = ScriptedProvider("second")
    targets = [{"provider": "first", "tier": 0}, {"provider": "second", "tier": 1}]
    models = [{"name": "m", "targets": targets}]
    async with (
        make_router(first, second, models=models) as router,
        anyio.create_task_group() as group,
    ):
        group.start_soon(router.complete, CHAT)
        await until(lambda: first.running == 1)
        assert (await router.complete(CHAT)).provider == "second"
        group.cancel_scope.cancel()


async def test_a_full_router_says_which_bound_was_hit() -> None:
    """The request beyond concurrency and queue is refused at once with reason and hint."""
    provider = ScriptedProvider("a", then=Hang(), limits={"concurrency": 2, "queue": 3})
    async with make_router(provider) as router, anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(router.complete, CHAT)
        await until(lambda: provider.running == 2)
        with pytest.raises(NoProviderAvailableError) as caught:
            await router.complete(CHAT)
        assert caught.value.status == 503
        assert caught.value.reason == caught.value.code == "mailbox_full"
        assert caught.value.passed_over == {"a": "mailbox_full"}
        assert caught.value.retry_after is not None
        assert caught.value.retry_after > 0
        actor = router.status().actors[0]
        assert (actor.in_flight, actor.mailbox.depth, actor.workers) == (2, 3, 2)
        group.cancel_scope.cancel()
    assert provider.peak == 2
    assert_settled(router, cancelled=5, rejected=1)


async def test_refusal_names_each_providers_own_reason() -> None:
    """Where the reasons differ, the error lists every provider with its own."""
    full = ScriptedProvider("full", then=Hang(), limits={"concurrency": 1, "queue": 0})
    closed = ScriptedProvider("closed", OverloadedError("later", retry_after=50), max_retries=0)
    other = ChatOnlyProvider("other")
    models = [
        {"name": "m", "targets": [{"provider": name} for name in ("full", "closed", "other")]},
        {"name": "only-closed", "targets": [{"provider": "closed"}]},
        {"name": "only-full", "targets": [{"provider": "full"}]},
    ]
    async with (
        make_router(full, closed, other, models=models) as router,
        anyio.create_task_group() as group,
    ):
        with pytest.raises(OverloadedError):
            await router.complete({**CHAT, "model": "only-closed"})
        group.start_soon(router.complete, {**CHAT, "model": "only-full"})
        await until(lambda: full.running == 1)
        with pytest.raises(NoProviderAvailableError) as caught:
            await router.embed({"model": "m", "input": "x"})
        assert caught.value.passed_over == {
            "full": "mailbox_full",
            "closed": "overloaded",
            "other": "unsupported_operation",
        }
        assert caught.value.reason == "no_provider_available"
        group.cancel_scope.cancel()


async def test_queued_requests_are_served_in_their_order() -> None:
    """One worker serves the mailbox first in, first out."""
    provider = ScriptedProvider("a", limits={"concurrency": 1})

    async def ask(request_id: str) -> None:
        await router.complete(CHAT, request_id=request_id)

    def accepted(count: int) -> bool:
        return router.status().ledger.accepted == count

    async with make_router(provider) as router, anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(ask, str(number))
            await until(partial(accepted, number + 1))
    assert [call.attempt.request_id for call in provider.calls] == [str(n) for n in range(20)]
    assert provider.peak == 1


async def test_shares_follow_the_weights() -> None:
    """The picks of 3,000 requests lie within 4 standard deviations of their weights."""
    providers = [ScriptedProvider(name, weight=w) for name, w in [("a", 5), ("b", 3), ("c", 2)]]
    async with make_router(*providers) as router:
        for _ in range(3_000):
            await router.complete(CHAT)
        status = router.status()
    for provider, share in zip(providers, (0.5, 0.3, 0.2), strict=True):
        deviation = (3_000 * share * (1 - share)) ** 0.5
        assert abs(len(provider.calls) - 3_000 * share) <= 4 * deviation
    assert sum(actor.share for actor in status.actors) == pytest.approx(1)
    assert [actor.picked for actor in status.actors] == [len(p.calls) for p in providers]


async def test_weight_zero_is_never_picked_by_chance() -> None:
    """A provider of weight 0 gets no request, also when all others fail."""
    zero = ScriptedProvider("zero", weight=0)
    bad = ScriptedProvider("bad", then=ConnectError, max_retries=0)
    async with make_router(zero, bad) as router:
        with pytest.raises(ConnectError):
            await router.complete(CHAT)
    assert zero.calls == []


async def test_a_disabled_provider_takes_no_part() -> None:
    """A provider that is not enabled is neither asked nor shown."""
    off, on = ScriptedProvider("off", enabled=False), ScriptedProvider("on")
    async with make_router(off, on) as router:
        for _ in range(10):
            await router.complete(CHAT)
        assert [actor.name for actor in router.status().actors] == ["on"]
    assert off.calls == []


@pytest.mark.parametrize("balancer", ["weighted_random", "smooth_weighted", "least_loaded"])
async def test_every_balancer_serves(balancer: str) -> None:
    """Each balancer of the configuration spreads requests over equal providers."""
    providers = [ScriptedProvider(name) for name in "abc"]
    async with make_router(*providers, balancer=balancer) as router:
        for _ in range(90):
            await router.complete(CHAT)
    assert all(len(provider.calls) >= 10 for provider in providers)


NEVER = {"consecutive_failures": 0, "failure_rate": 0}
DECISIONS: dict[str, list[str]] = {}


async def test_same_seed_makes_the_same_decisions_on_every_event_loop() -> None:
    """Seed 7 sends the same requests to the same providers wherever it runs."""
    providers = [
        ScriptedProvider("a", weight=3),
        ScriptedProvider("b", *[ConnectError] * 9, weight=2, max_retries=0, ejection=NEVER),
        ScriptedProvider("c", weight=1),
    ]
    async with make_router(*providers) as router:
        decided = [(await router.complete(CHAT)).provider for _ in range(60)]
    reference = DECISIONS.setdefault("decisions", decided)
    assert decided == reference
    assert set(decided) == {"a", "b", "c"}


async def test_another_seed_makes_other_decisions() -> None:
    """The seed matters, and `status` tells it."""
    outcomes = []
    for seed in (1, 2):
        providers = [ScriptedProvider("a"), ScriptedProvider("b")]
        async with make_router(*providers, seed=seed) as router:
            outcomes.append([(await router.complete(CHAT)).provider for _ in range(40)])
            assert router.status().seed == seed
    assert outcomes[0] != outcomes[1]


async def test_random_source_can_be_injected() -> None:
    """A `random.Random` of the application decides in place of the seed."""
    config = {"providers": [{"name": n, "type": "mock"} for n in "ab"]}
    served = []
    for _ in range(2):
        registry = ProviderRegistry()
        for name in "ab":
            registry.register_provider(name, ScriptedProvider(name))
        rng = random.Random(5)
        async with Router.from_config(config, registry=registry, rng=rng) as router:
            served.append([(await router.complete(CHAT)).provider for _ in range(30)])
    assert served[0] == served[1]
