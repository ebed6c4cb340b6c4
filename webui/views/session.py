"""Signing in and out."""

from __future__ import annotations

from django.contrib.auth import views as auth_views
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.decorators import method_decorator
from django.views.decorators.http import require_safe

from webui.forms import SignInForm


@method_decorator(login_not_required, name="dispatch")
class SignIn(auth_views.LoginView):
    """Email and password. A wrong pair keeps the email and says so; which of the two was wrong is not told."""

    template_name = "webui/sign_in.html"
    authentication_form = SignInForm
    redirect_authenticated_user = True
    next_page = "webui:calls"


class SignOut(auth_views.LogoutView):
    """Ends the session; POST only, so that no link or image of another site can."""

    next_page = "webui:sign_in"


@require_safe
def no_tenant(request: HttpRequest) -> HttpResponse:
    """For a person whose last membership ended, or who was never invited."""
    if not request.user.is_authenticated:
        return redirect("webui:sign_in")
    if getattr(request, "membership", None) is not None:
        return redirect("webui:calls")
    return render(request, "webui/no_tenant.html", status=403)
