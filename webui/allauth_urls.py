"""The few names that allauth looks up, for pages that are ours. None of allauth's own URLs is included."""

from django.urls import path

from webui.views import account, session

urlpatterns = [
    path("sign-in", session.SignIn.as_view(), name="account_login"),
    path("sign-in/code", session.SignInCode.as_view(), name="mfa_authenticate"),
    path("account/confirm", account.confirm, name="account_reauthenticate"),
]
