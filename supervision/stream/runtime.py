"""What the calls of one process share: recorder, directory, models, voices.

Made on the first handshake, on the loop that serves it: importing this opens nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final
from uuid import UUID

from django.conf import settings

from mirror_saas.draining import drain
from mirror_saas.egress import egress_http_client
from supervision.audio.format import MediaFormat
from supervision.engine.config import DEFAULT_IRREVERSIBLE_TOOLS, PolicyConfig
from supervision.engine.context import SupervisorContext
from supervision.engine.intervention import templates
from supervision.engine.llm.openai import OpenAIPool, warm_up
from supervision.engine.supervisor import CallSupervisor
from supervision.engine.tts.protocol import TTSProvider
from supervision.engine.tts.voice import CallVoice, LineCache
from supervision.recorder.events import CallLog
from supervision.recorder.recorder import JournalLimits, Recorder, RecorderCounts
from supervision.redaction import Redaction
from supervision.stream.approvals import ApprovalCall, CallApprovals, PostgresApprovals
from supervision.stream.database import TenantDatabase
from supervision.stream.directory import AgentBinding, StreamDirectory
from supervision.stream.heap import Heap
from supervision.stream.ledger import CallLedger, LedgerCall, PostgresLedger
from supervision.stream.limits import CallLeases
from supervision.stream.mailbox import Mailbox
from supervision.stream.owners import CallOwners
from supervision.stream.plivo_rest import PlivoDoor
from supervision.stream.revocation import KeyWatch
from supervision.stream.supervisors import Supervisors, scoring_pool
from supervision.stream.takeover import Takeovers
from supervision.stream.voices import Voices

logger = logging.getLogger(__name__)

WARM_LANGUAGE: Final = "en"
CLOSE_S: Final = 5.0
_APPROVAL_TIMEOUT_MS: Final = PolicyConfig.model_fields["approval_timeout_ms"].default


class StreamRuntime:
    """The shared parts of a stream process."""

    def __init__(self) -> None:
        self.node = f"{socket.gethostname()}:{os.getpid()}"
        self.redaction = Redaction()
        self.recorder = Recorder(
            settings.MIRROR.journal_dir,
            settings.DATABASE_URL,
            redact=self.redaction.event,
            limits=JournalLimits(max_bytes=settings.MIRROR.journal_mib << 20),
        )
        self.directory = StreamDirectory(settings.DATABASE_URL)
        self.database = TenantDatabase(self.directory.connection)
        self.ledger = PostgresLedger(self.database)
        self.approvals = PostgresApprovals(self.database)
        self.mailbox = Mailbox(settings.REDIS_URL)
        self.plivo = PlivoDoor()
        self.keys = KeyWatch(self.directory.keys_revoked)
        self.calls = CallLeases(settings.REDIS_URL)
        self.takeovers = Takeovers(CallOwners(settings.REDIS_URL, self.node), self.mailbox, self.directory)
        self.lines = LineCache()
        self.tts = _tts()
        self.voices = Voices(egress_http_client)
        self._llms = OpenAIPool(http_client=egress_http_client)
        self.supervisors = Supervisors(self._llms, scoring_pool())
        self._is_warm = False
        self.heap = Heap(lambda: drain.streams)

    async def start(self) -> None:
        """Open what calls need. A database that is down does not stop calls."""
        await self.recorder.start()

    async def warm(self) -> None:
        """Load what the first judged call would wait for, and render the lines of the commonest language; once."""
        if self._is_warm:
            return
        self._is_warm = True
        await asyncio.to_thread(warm_up)
        if self.tts is None:
            return
        spoken = self.tts.languages()
        if spoken is not None and WARM_LANGUAGE not in spoken:
            return
        lines = (
            *templates.buffer_lines(WARM_LANGUAGE),
            *templates.correction_lines(WARM_LANGUAGE)[:1],
            *templates.opener_lines(WARM_LANGUAGE)[:1],
        )
        for line in lines:
            await self.lines.rendered(self.tts, line, WARM_LANGUAGE, None, MediaFormat())

    def call_voice(self, binding: AgentBinding, media_format: MediaFormat) -> CallVoice:
        """Mirror's voice in a call of this agent: its tenant's own speech provider, else this process's."""
        own = self.voices.of(binding.tts) if binding.tts is not None else None
        tts, lines = own if own is not None else (self.tts, self.lines)
        return CallVoice(
            tts=tts,
            cache=lines,
            media_format=media_format,
            language=binding.language or "en",
            voice=binding.voice or None,
        )

    async def aclose(self) -> None:
        """Close what calls shared; what is not in the database yet stays in the journal."""
        self.heap.close()
        await self.takeovers.aclose()
        await self.mailbox.aclose()
        await self.recorder.aclose(CLOSE_S)
        await self.ledger.aclose()
        await self.database.aclose()
        await self.directory.aclose()
        await self.calls.aclose()
        await self.plivo.aclose()
        await self.supervisors.aclose()
        await self._llms.aclose()
        await self.voices.aclose()
        if self.tts is not None:
            await self.tts.aclose()

    def call_ledger(self, binding: AgentBinding, plivo_call_id: str, call_id: UUID) -> CallLedger | None:
        """Where a call's irreversible tools are written down; None for a call in which nothing is acted on."""
        if binding.mode == "shadow":
            return None
        return CallLedger(self.ledger, LedgerCall(binding.tenant_id, plivo_call_id, call_id))

    def call_approvals(self, binding: AgentBinding, log: CallLog, at_ms: Callable[[], int]) -> CallApprovals:
        """Where a call's tools wait for a person."""
        call = ApprovalCall(binding.tenant_id, log.call_id, binding.agent_id)
        return CallApprovals(self.approvals, call, log=log, redact=self.redaction.event, at_ms=at_ms)

    def call_supervisor(
        self, binding: AgentBinding, call_id: str, ledger: CallLedger | None = None
    ) -> CallSupervisor | None:
        """The engine for one call under the agent's live policy; None when it has none that can be used."""
        supervisor = self.supervisors.get(binding)
        if supervisor is None:
            return None
        call = supervisor.call(
            SupervisorContext(
                call_id=call_id,
                tenant_id=str(binding.tenant_id),
                agent_id=str(binding.agent_id),
                policy_id=str(binding.policy_id),
                policy_version=binding.policy_version,
            ),
            journal=ledger,
            digest=ledger.digest if ledger is not None else None,
        )
        if ledger is not None:
            ledger.open(call.ledger)
        return call

    def ready(self, binding: AgentBinding, call_id: str) -> dict[str, Any]:
        """The fields of `mirror.ready`."""
        config = binding.config
        gated = config.get("irreversible_tools")
        if gated is None:
            gated = DEFAULT_IRREVERSIBLE_TOOLS
        approved = config.get("approval_tools") or ()
        policy = None
        if binding.policy_version_id is not None:
            policy = {"id": str(binding.policy_id), "version": binding.policy_version}
        return {
            "v": 1,
            "call_id": call_id,
            "mode": binding.mode,
            "policy": policy,
            "gated_tools": list(dict.fromkeys((*gated, *approved))),
            "approvals": {
                "tools": list(approved),
                "timeout_ms": config.get("approval_timeout_ms", _APPROVAL_TIMEOUT_MS),
            },
            "resumed": False,
            "notes": [],
        }

    def arm_lines(self, binding: AgentBinding, language: str) -> dict[str, Any]:
        """The lines that a call in ``language`` needs before it may intervene; empty where there are none."""
        own = binding.config.get("buffer_text")
        return {
            "buffers": templates.buffer_lines(language, own),
            "fallback": next(iter(templates.correction_lines(language)), ""),
            "opener": next(iter(templates.opener_lines(language)), ""),
        }


def _tts() -> TTSProvider | None:
    kind = settings.MIRROR.tts
    if kind is None:
        kind = "offline" if find_spec("hibari") is not None else "off"
    if kind == "offline":
        from supervision.engine.tts.offline import HibariTTS

        return HibariTTS()
    if kind == "openai":
        from supervision.engine.tts.openai import OpenAITTS

        return OpenAITTS(
            api_key=settings.MIRROR.openai_tts_api_key or settings.MIRROR.openai_api_key or "",
            model=settings.MIRROR.openai_tts_model,
            voice=settings.MIRROR.openai_tts_voice,
            base_url=settings.MIRROR.openai_tts_base_url,
        )
    return None


_runtime: tuple[asyncio.AbstractEventLoop, StreamRuntime] | None = None


async def stream_runtime() -> StreamRuntime:
    """This process's runtime, made when the first call comes."""
    global _runtime
    loop = asyncio.get_running_loop()
    if _runtime is None or _runtime[0] is not loop:
        _runtime = (loop, StreamRuntime())
        await _runtime[1].start()
    return _runtime[1]


def recorder_counts() -> RecorderCounts | None:
    """What became of the events of this process's calls; None in a process that has carried none."""
    return None if _runtime is None else _runtime[1].recorder.counts


async def stream_runtime_open() -> None:
    """Prepare for calls when the server starts."""
    runtime = await stream_runtime()
    await runtime.warm()
    runtime.heap.open()


async def stream_runtime_close() -> None:
    """Close what calls shared, when the server stops."""
    global _runtime
    if _runtime is not None:
        made, _runtime = _runtime[1], None
        await made.aclose()
