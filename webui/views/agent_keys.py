"""What opens the way to an agent: its stream keys, and the secret that Mirror signs its handshakes with."""

from __future__ import annotations

from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_http_methods

from supervision.models import Agent, StreamKey
from supervision.selectors.stream_keys import agent_stream_key_get, agent_stream_key_list
from supervision.services.agents import (
    agent_signing_secret_rotate,
    agent_stream_key_revoke,
    agent_stream_key_rotate,
    answer_url,
    stream_url,
    stream_xml,
)
from webui.access import MemberRequest, member_view, reauthenticated
from webui.agent_forms import SigningSecretForm, StreamKeyForm
from webui.once import once
from webui.presenters.agents import key_rows
from webui.shown_once import shown_once_keep
from webui.views.agents import SIGNING_SECRET, STREAM_KEY, agent_or_404


@never_cache
@sensitive_variables("made")
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
@reauthenticated
@once
def stream_key_new(request: MemberRequest, agent_id: UUID) -> HttpResponse:
    """Make a stream key. The agent's page, which comes next, shows the URLs that it stands in."""
    found = agent_or_404(agent_id)
    form = StreamKeyForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            made = agent_stream_key_rotate(agent_id=agent_id, overlap=form.overlap())
        except Agent.DoesNotExist as error:
            raise Http404("There is no such agent.") from error
        stream_key_show(request, agent=found, key=made.key)
        return redirect("webui:agent", agent_id=agent_id)
    working = [key for key in key_rows(agent_stream_key_list(agent_id=agent_id)) if key.works]
    return render(
        request,
        "webui/agents/stream_key.html",
        {"section": "agents", "agent": found, "form": form, "working_keys": len(working)},
    )


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
@reauthenticated
def stream_key_end(request: MemberRequest, agent_id: UUID, stream_key_id: UUID) -> HttpResponse:
    """Revoke a stream key, after one more question."""
    found = agent_or_404(agent_id)
    try:
        key = agent_stream_key_get(agent_id=agent_id, stream_key_id=stream_key_id)
    except StreamKey.DoesNotExist as error:
        raise Http404("There is no such stream key.") from error
    if request.method == "POST":
        agent_stream_key_revoke(stream_key_id=key.id)
        messages.success(request, "The stream key is revoked. Calls that came in with it end within five seconds.")
        return redirect("webui:agent", agent_id=agent_id)
    if key.state == "revoked":
        return redirect("webui:agent", agent_id=agent_id)
    keys = key_rows(agent_stream_key_list(agent_id=agent_id))
    return render(
        request,
        "webui/agents/revoke_key.html",
        {
            "section": "agents",
            "agent": found,
            "key": key_rows([key])[0],
            "last": not any(other.works for other in keys if other.id != key.id),
        },
    )


@never_cache
@sensitive_post_parameters("signing_secret")
@sensitive_variables("made")
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope="admin")
@reauthenticated
@once
def signing_secret(request: MemberRequest, agent_id: UUID) -> HttpResponse:
    """Sign with another secret from the next call on. The agent's page, which comes next, shows it."""
    found = agent_or_404(agent_id)
    form = SigningSecretForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            made = agent_signing_secret_rotate(
                agent_id=agent_id, signing_secret=form.cleaned_data["signing_secret"] or None
            )
        except Agent.DoesNotExist as error:
            raise Http404("There is no such agent.") from error
        except ValidationError as error:
            form.refuse(error)
        else:
            shown_once_keep(request, kind=SIGNING_SECRET, object_id=agent_id, secrets={"secret": made.signing_secret})
            return redirect("webui:agent", agent_id=agent_id)
    return render(request, "webui/agents/signing_secret.html", {"section": "agents", "agent": found, "form": form})


def stream_key_show(request: MemberRequest, *, agent: Agent, key: str) -> None:
    """Keep what a new stream key stands in for the agent's page, which shows it once."""
    where = {"public_url": settings.MIRROR.public_url, "tenant_slug": request.membership.tenant.slug, "key": key}
    urls = {"stream_url": stream_url(**where), "answer_url": answer_url(**where)}
    shown_once_keep(
        request,
        kind=STREAM_KEY,
        object_id=agent.id,
        secrets={**urls, "xml": stream_xml(**urls, audio_format=agent.audio_format)},
    )
