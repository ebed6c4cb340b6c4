"""`manage.py member`: who belongs to a tenant, for operators; also when nobody in the tenant can do it any more."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError

from mirror_saas.errors import Conflict, InvalidInput
from tenants.context import tenant_context
from tenants.mail_limits import TooManyMails
from tenants.models import Membership, User
from tenants.roles import ROLE_CAPABILITIES, Role
from tenants.selectors.tenants import TenantNotFound, tenant_by_slug
from tenants.services.invitations import invitation_create
from tenants.services.memberships import membership_create, membership_remove, membership_role_change

OWNER = ROLE_CAPABILITIES[Role.OWNER]


class Command(BaseCommand):
    help = (
        "List a tenant's members, add somebody who has an account, give a member another role, remove one, or invite"
        " somebody by mail. A tenant keeps its last owner."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("what", choices=["list", "add", "role", "remove", "invite"])
        parser.add_argument("--tenant", required=True, help="its slug")
        parser.add_argument("--email", help="whose membership; not for list")
        parser.add_argument("--role", choices=Role.values, help="for add, role and invite")

    def handle(self, *args: Any, **options: Any) -> None:
        what, email, role = options["what"], (options["email"] or "").strip().lower(), options["role"]
        if what != "list" and not email:
            raise CommandError("--email is missing: whose membership?")
        if what in ("add", "role", "invite") and role is None:
            raise CommandError(f"--role is missing: one of {', '.join(Role.values)}.")
        try:
            tenant = tenant_by_slug(slug=options["tenant"])
            with tenant_context(tenant.id):
                done = self._do(what, email, Role(role) if role else None)
        except (TenantNotFound, Conflict, TooManyMails) as error:
            raise CommandError(str(error)) from error
        except InvalidInput as error:
            raise CommandError(f"--{error.field}: {error}") from error
        except (OperationalError, InterfaceError) as error:
            raise CommandError(
                "The database does not answer. Start Mirror first, or check DATABASE_URL and MIRROR_HOME."
            ) from error
        self.stdout.write(done)

    def _do(self, what: str, email: str, role: Role | None) -> str:
        if what == "list":
            members = Membership.objects.select_related("user").order_by("created_at", "id")
            return "\n".join(f"{member.role:<9} {member.user.email}" for member in members)
        if what == "invite":
            assert role is not None  # handle() has asked for it
            made = invitation_create(email=email, role=role, capabilities=OWNER)
            # Printed to the operator's terminal on purpose, as create_tenant prints a password.
            return f"{email} is invited as {role.value}. The link, besides the one in the mail: {made.link}"
        if what == "add":
            assert role is not None
            user = User.objects.filter(email=email).first()
            if user is None:
                raise CommandError(f"{email} has no account; use `manage.py member invite` instead.")
            if Membership.objects.filter(user=user).exists():
                raise CommandError(f"{email} is a member already; use `manage.py member role` instead.")
            membership_create(user=user, role=role)
            return f"{email} is {role.value} now."
        member = Membership.objects.filter(user__email=email).first()
        if member is None:
            raise CommandError(f"{email} is no member of this tenant.")
        if what == "remove":
            membership_remove(membership_id=member.id, capabilities=OWNER)
            return f"{email} is no member any more."
        assert role is not None
        membership_role_change(membership_id=member.id, role=role, capabilities=OWNER)
        return f"{email} is {role.value} now."
