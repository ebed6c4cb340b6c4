"""Pages of the console."""

from django.urls import path
from django.views.generic import RedirectView

from webui.views import account, api_keys, approvals, audit, calls, invitation, live, members, session, tenant

app_name = "webui"

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="webui:calls"), name="home"),
    path("sign-in", session.SignIn.as_view(), name="sign_in"),
    path("sign-out", session.SignOut.as_view(), name="sign_out"),
    path("sign-in/code", session.SignInCode.as_view(), name="sign_in_code"),
    path("forgot-password", session.forgot_password, name="forgot_password"),
    path("forgot-password/sent", session.forgot_password_sent, name="forgot_password_sent"),
    path("reset-password/new", session.reset_password_new, name="reset_password_new"),
    path("reset-password/<str:key>", session.reset_password, name="reset_password"),
    path("account", account.account, name="account"),
    path("account/confirm", account.confirm, name="confirm"),
    path("account/password", account.password, name="password"),
    path("account/two-factor", account.two_factor, name="two_factor"),
    path("account/two-factor/off", account.two_factor_off, name="two_factor_off"),
    path("account/recovery-codes", account.recovery_codes, name="recovery_codes"),
    path("account/recovery-codes/new", account.recovery_codes_new, name="recovery_codes_new"),
    path("account/sessions/end", account.sessions_end, name="sessions_end"),
    path("account/sessions/<int:session_id>/end", account.session_end, name="session_end"),
    path("no-tenant", session.no_tenant, name="no_tenant"),
    path("tenant/switch", tenant.tenant_switch, name="tenant_switch"),
    path("members", members.members, name="members"),
    path("members/invite", members.invite, name="invite"),
    path("members/leave", members.leave, name="leave"),
    path("members/<uuid:membership_id>/role", members.role, name="member_role"),
    path("members/<uuid:membership_id>/remove", members.remove, name="member_remove"),
    path("invitations/<uuid:invitation_id>/resend", members.resend, name="invitation_resend"),
    path("invitations/<uuid:invitation_id>/revoke", members.revoke, name="invitation_revoke"),
    path("invitation/<str:token>", invitation.invitation, name="invitation"),
    path("api-keys", api_keys.api_keys, name="api_keys"),
    path("api-keys/new", api_keys.api_key_new, name="api_key_new"),
    path("api-keys/<uuid:api_key_id>", api_keys.api_key, name="api_key"),
    path("api-keys/<uuid:api_key_id>/revoke", api_keys.api_key_end, name="api_key_revoke"),
    path("audit", audit.audit, name="audit"),
    path("audit/verify", audit.verify, name="audit_verify"),
    path("calls", calls.call_list, name="calls"),
    path("live", live.live, name="live"),
    path("approvals", approvals.approvals, name="approvals"),
    path("approvals/decide", approvals.approval_decision, name="approval_decide"),
    path("calls/<uuid:call_id>", calls.call_detail, name="call"),
]
