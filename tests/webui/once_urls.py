"""Mirror's pages and one more, whose form makes an API key each time that it is let through (test_once.py)."""

from __future__ import annotations

import threading

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import include, path, reverse
from django.views.decorators.http import require_http_methods

from tenants.services.api_keys import api_key_create
from webui.access import MemberRequest, member_view, to_confirm
from webui.once import once

# What the view does before it is done, in tests that have two forms come at once.
entered = threading.Event()
go_on = threading.Event()
go_on.set()


@require_http_methods(["POST"])
@member_view(scope="calls:read")
@once
def make(request: MemberRequest) -> HttpResponse:
    match request.POST.get("do"):
        case "refuse":
            return HttpResponse("Give a name.")
        case "confirm":
            return to_confirm(reverse("made", args=["x"]))
        case "break":
            api_key_create(name="half", scopes=["judge"], held=["judge"])
            raise ValueError
    made = api_key_create(name=request.POST.get("name", "?"), scopes=["judge"], held=["judge"]).api_key
    request.session["newest"] = str(made.id)
    entered.set()
    assert go_on.wait(20)
    messages.success(request, "Made.")
    return redirect("made", made.id)


def made(request: MemberRequest, name: str) -> HttpResponse:
    said = " ".join(str(message) for message in messages.get_messages(request))
    return HttpResponse(f"{request.session.get('newest')}: {said}")


urlpatterns = [path("make", make), path("made/<str:name>", made, name="made"), path("", include("mirror_saas.urls"))]
