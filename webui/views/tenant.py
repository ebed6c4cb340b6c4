"""Which of their tenants a person is in."""

from __future__ import annotations

from uuid import UUID

from django.http import Http404, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_POST

from tenants.middleware import session_tenant_set
from tenants.selectors.memberships import membership_get
from webui.access import PersonRequest, person_view


@require_POST
@person_view
def tenant_switch(request: PersonRequest) -> HttpResponse:
    """Go on in another of one's own tenants. Somebody else's and a missing one are the same 404."""
    try:
        tenant_id = UUID(request.POST.get("tenant", ""))
    except ValueError as error:
        raise Http404("There is no such tenant.") from error
    membership = membership_get(user_id=request.user.pk, tenant_id=tenant_id)
    if membership is None or membership.tenant.id != tenant_id:
        raise Http404("There is no such tenant.")
    session_tenant_set(request, tenant_id)
    # Not back to where they were: what that page was about is in the other tenant.
    return redirect("webui:home")
