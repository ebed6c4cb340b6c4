"""One engine per policy version, model and agent's own settings, shared by all that is judged by them."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from typing import Any, Final

from supervision.engine.config import MirrorConfig
from supervision.engine.llm.openai import OpenAIPool
from supervision.engine.supervisor import Supervisor
from supervision.stream.directory import AgentBinding
from supervision.stream.limits import JudgeSlots

logger = logging.getLogger(__name__)

_SUPERVISORS: Final = 256  # in use at a time by one process


def supervisor_of(
    binding: AgentBinding,
    known: OrderedDict[tuple[Any, ...], Supervisor],
    llms: OpenAIPool,
    slots: JudgeSlots,
) -> Supervisor | None:
    """The engine of the agent's policy version, one of those `known` or a new one; None when it has none that can be
    used. `slots` are the places of the tenant's questions. Engines used longest ago are forgotten: calls that run on
    them keep theirs."""
    if binding.policy_version_id is None or binding.llm is None:
        return None
    key = (binding.policy_version_id, binding.llm, json.dumps(dict(binding.overrides), sort_keys=True))
    supervisor = known.get(key)
    if supervisor is None:
        try:
            config = MirrorConfig.from_stored(
                [dict(rule) for rule in binding.rules],
                dict(binding.config),
                llms.client(
                    api_key=binding.llm.api_key, model=binding.llm.model, base_url=binding.llm.base_url or None
                ),
                tenant_id=str(binding.tenant_id),
            )
        except ValueError:
            logger.exception("Policy version %s cannot be used", binding.policy_version_id)
            return None
        supervisor = known[key] = Supervisor(config, limiter=slots)
        while len(known) > _SUPERVISORS:
            known.popitem(last=False)
    known.move_to_end(key)
    return supervisor
