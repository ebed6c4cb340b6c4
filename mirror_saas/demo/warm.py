"""Lets a local model read the demo's prompts before the demo's call, so that in the call it reads only what was said.

    python -m mirror_saas.demo.warm --base-url http://127.0.0.1:8001/v1

On a CPU the rules and instructions take it half a minute; its server remembers what it has read.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from mirror_saas.local_model import QWEN
from supervision.engine import MirrorConfig, Supervisor, SupervisorContext, ToolCallIntent
from supervision.engine.environment import rules_from
from supervision.engine.llm.openai import OpenAIClient

# As mirror_saas.demo.seed, which needs Django.
RULES_FILE = Path(__file__).resolve().parent / "policies.txt"
TIMEOUT_MS = 60_000
TIMEOUT_S = TIMEOUT_MS / 1000


async def warm(base_url: str, rules: list[str]) -> None:
    """Asks one question of each kind that a call asks, about nothing in particular; the answers do not matter."""
    llm = OpenAIClient(api_key="none", model=QWEN.name, base_url=base_url)
    config = MirrorConfig(
        llm=llm,
        policies=rules,
        scoring="logprob",
        tiered_scoring_enabled=False,
        semantic_review_timeout_s=TIMEOUT_S,
        tool_gate_timeout_ms=TIMEOUT_MS,
    )
    supervisor = Supervisor(config)
    call = supervisor.call(SupervisorContext(call_id="warm-up"))
    await call.judge_turn(call.payload(customer_text="Hello?", agent_text="Hello, how can I help you?"))
    tool = ToolCallIntent("1", "warm_up", {}, irreversible=True)
    await call.gate_tools([tool], customer_text="Hello?", agent_text="One moment, please.")
    await supervisor.aclose()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Let a local model read the demo's prompts.")
    parser.add_argument("--base-url", required=True)
    options = parser.parse_args()
    print("the local model reads the demo's rules", flush=True)
    asyncio.run(warm(options.base_url, rules_from(RULES_FILE.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
