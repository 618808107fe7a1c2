"""The starvation of large LLMs beside small ones, replayed on a toy unit."""

from policy_toy import Tenant, ToyUnit, replay

SECONDS = 60.0
TENANTS = (
    Tenant("llm-0", "llama-7b", 2.14, 80, 30),
    Tenant("llm-1", "llama-13b", 1.65, 90, 30),
    Tenant("llm-2", "llama-30b", 1.56, 100, 30),
    Tenant("llm-3", "llama-30b", 1.48, 100, 30),
)


def run(policy: str, **switches: bool) -> dict[str, tuple[float, float]]:
    unit: ToyUnit = replay(policy, TENANTS, SECONDS, **switches)
    return unit.results()


def test_the_released_loop_starves_the_large_llms():
    found = run("adbs-released")
    assert min(found["llm-2"][0], found["llm-3"][0]) < 0.75
    assert min(found["llm-2"][1], found["llm-3"][1]) > 10
    assert found["llm-0"][0] > 0.9


def test_with_the_bug_mended_all_are_served_at_once():
    found = run("adbs-fixed", sequence_quota=False)
    for served, ttft in found.values():
        assert served > 0.98
        assert ttft < 0.3


def test_the_bug_is_what_starves_them_not_the_caps():
    found = run("adbs-fixed")
    for served, ttft in found.values():
        assert served > 0.98
        assert ttft < 2


def test_our_policy_serves_all_at_once_on_the_same_shares():
    found = run("adbs")
    for served, ttft in found.values():
        assert served > 0.98
        assert ttft < 0.3
