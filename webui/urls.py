"""Pages of the console."""

from django.urls import path
from django.views.generic import RedirectView

from webui.views import calls, session

app_name = "webui"

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="webui:calls"), name="home"),
    path("sign-in", session.SignIn.as_view(), name="sign_in"),
    path("sign-out", session.SignOut.as_view(), name="sign_out"),
    path("no-tenant", session.no_tenant, name="no_tenant"),
    path("calls", calls.call_list, name="calls"),
    path("calls/<uuid:call_id>", calls.call_detail, name="call"),
]
