"""A draft from the system prompt that an agent already has."""

from __future__ import annotations

import json
from dataclasses import asdict
from http import HTTPStatus

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods

from mirror_saas.errors import InvalidInput, UpstreamFailed
from mirror_saas.pages import MAX_LIMIT
from supervision.engine.policy.derive import DerivedPolicy
from supervision.models import Policy
from supervision.selectors.policies import policy_list
from supervision.services.derivation import Derivable, derivation_ask, derivation_prepare, derivation_store
from tenants.api.limits import RateLimited, request_count
from tenants.context import tenant_context
from webui.access import MemberRequest, member_view
from webui.formats import count_of
from webui.once import once
from webui.plain import plain, plain_errors
from webui.policy_forms import DeriveForm
from webui.shown_once import shown_once_keep
from webui.views.policies import MAY_WRITE, llm_credentials, llm_first, to_version
from webui.views.policy_versions import DERIVED


@never_cache
@sensitive_post_parameters("prompt")
@require_http_methods(["GET", "HEAD", "POST"])
@member_view(scope=MAY_WRITE, in_transaction=False)
def policy_derive(request: MemberRequest) -> HttpResponse:
    """Ask the model for rules; what it finds is a draft, which comes next. The database waits for nothing meanwhile."""
    tenant_id = request.membership.tenant.id
    asked: Derivable | None = None
    with tenant_context(tenant_id):
        credentials = llm_credentials()
        form = DeriveForm(
            request.POST if request.method == "POST" else None,
            policies=[(row.policy.id, row.policy.name) for row in policy_list(limit=MAX_LIMIT).items],
            credentials=credentials,
            initial={"llm": llm_first(credentials), "policy": request.GET.get("policy", "")},
        )
        if request.method == "POST" and form.is_valid():
            policy_id = form.cleaned_data["policy"]
            try:
                asked = derivation_prepare(
                    agent_prompt=form.cleaned_data["prompt"],
                    llm_credential_id=form.cleaned_data["llm"],
                    policy_id=policy_id,
                    name=None if policy_id is not None else form.cleaned_data["name"],
                )
            except InvalidInput as error:
                form.refuse_field(form.service_fields.get(error.field, error.field), plain(str(error)))
            except ValidationError as error:
                form.refuse(plain_errors(error))
    status = HTTPStatus.OK
    derived: DerivedPolicy | None = None
    if asked is not None:
        try:
            request_count(request, tenant_id=tenant_id, asker="person", asker_id=request.user.pk)
            derived = derivation_ask(asked)
        except InvalidInput as error:
            form.refuse_field("prompt", plain(str(error)))
        except UpstreamFailed as error:
            form.refuse_field("llm", f"{plain(str(error))} Nothing was made; what you typed is kept.")
            status = HTTPStatus.BAD_GATEWAY
        except RateLimited as error:
            form.refuse_field(None, str(error))
            status = HTTPStatus.TOO_MANY_REQUESTS
    with tenant_context(tenant_id):
        if asked is not None and derived is not None:
            try:
                return _stored(request, asked, derived)
            except (ValidationError, Policy.DoesNotExist) as error:
                # Somebody took the name, or the policy out of use, while the model was reading.
                form.refuse(plain_errors(error) if isinstance(error, ValidationError) else ValidationError(str(error)))
        return render(request, "webui/policies/derive.html", {"section": "policies", "form": form}, status=status)


# The waiting is not done once; what comes of it is.
policy_derive.sent_once = True  # type: ignore[attr-defined]


@once
def _stored(request: MemberRequest, asked: Derivable, derived: DerivedPolicy) -> HttpResponse:
    made = derivation_store(asked=asked, derived=derived)
    found = {
        "rules": [asdict(rule) for rule in derived.rules],
        "dropped": [asdict(rule) for rule in derived.dropped],
    }
    shown_once_keep(request, kind=DERIVED, object_id=made.version.id, secrets={"found": json.dumps(found)})
    messages.success(
        request,
        f"{count_of(len(derived.rules), 'rule')} found. Read the draft, try it on turns, and publish it when it is"
        " right.",
    )
    return to_version(made.version.policy_id, made.version.number)
