"""Who asks the API: a program with an API key, or a person signed in to the console."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar
from uuid import UUID

from django.conf import settings
from django.http import HttpRequest
from ninja.errors import AuthenticationError
from ninja.security import APIKeyCookie, HttpBearer

from tenants.actors import Actor, actor_context, actor_of_request
from tenants.api.limits import key_authenticate, request_count
from tenants.authentication import RecentAuthenticationMissing, recently_authenticated
from tenants.context import tenant_context
from tenants.roles import Capability, Scope, capability_known, capability_require, role_capabilities
from tenants.selectors.tenants import TenantRef
from tenants.services.api_keys import ApiKeyPrincipal

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, on whose behalf, and what they may do. Nothing in a request can name another tenant."""

    kind: Literal["api_key", "session"]
    tenant: TenantRef
    scopes: frozenset[str]
    api_key: ApiKeyPrincipal | None = None
    user_id: UUID | None = None
    email: str = ""
    name: str = ""
    role: str = ""

    @property
    def capabilities(self) -> frozenset[str]:
        """What the asker may do: a key what its scopes say, a person what their role says."""
        return self.scopes if self.kind == "api_key" else role_capabilities(self.role)


class BearerKey(HttpBearer):
    """`Authorization: Bearer mk_<prefix>_<secret>`."""

    def __call__(self, request: HttpRequest) -> Principal | None:
        if "Authorization" not in request.headers:
            return None
        principal: Principal | None = super().__call__(request)
        if principal is None:
            # A request that shows a key is judged by that key: a wrong one never falls back to the session.
            raise AuthenticationError
        return principal

    def authenticate(self, request: HttpRequest, token: str) -> Principal | None:
        api_key = key_authenticate(request, token.strip())
        if api_key is None:
            return None
        request_count(
            request,
            tenant_id=api_key.tenant.id,
            asker="key",
            asker_id=api_key.api_key_id,
            asker_limit=api_key.requests_per_minute,
        )
        return Principal(
            kind="api_key", tenant=api_key.tenant, scopes=api_key.scopes, api_key=api_key, name=api_key.name
        )


class SessionMember(APIKeyCookie):
    """The console's session, with CSRF protection for whatever writes."""

    def __init__(self) -> None:
        self.param_name = settings.SESSION_COOKIE_NAME
        super().__init__(csrf=True)

    def authenticate(self, request: HttpRequest, key: str | None) -> Principal | None:
        membership = getattr(request, "membership", None)
        if membership is None:
            return None
        user: Any = request.user
        request_count(request, tenant_id=membership.tenant.id, asker="person", asker_id=user.id)
        return Principal(
            kind="session",
            tenant=membership.tenant,
            scopes=membership.scopes,
            user_id=user.id,
            email=user.email,
            name=user.name,
            role=membership.role,
        )


def requires(
    capability: Scope | Capability | None, *, recent: bool = False, in_transaction: bool = True
) -> Callable[[Callable[Concatenate[HttpRequest, P], R]], Callable[Concatenate[HttpRequest, P], R]]:
    """Run an API operation in the asker's tenant, if they have `capability` (None: whoever is known may).

    `recent`: it is dangerous, so a session must have proved within five minutes whose it is; keys need not. Without
    `in_transaction` the operation opens its tenant's context itself, for the moments in which it needs the database: it
    waits for somebody else in between.
    Raises CapabilityMissing and RecentAuthenticationMissing. The operation's module must not postpone annotations:
    ninja would look their names up here.
    """
    asked = None if capability is None else capability_known(capability.value)

    def decorate(operation: Callable[Concatenate[HttpRequest, P], R]) -> Callable[Concatenate[HttpRequest, P], R]:
        @wraps(operation)
        def run(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> R:
            principal = principal_of(request)
            if asked is not None:
                capability_require(principal.capabilities, asked)
            if recent:
                recent_require(request)
            context = tenant_context(principal.tenant.id) if in_transaction else nullcontext()
            with actor_context(_actor(request, principal)), context:
                return operation(request, *args, **kwargs)

        run.capability = asked  # type: ignore[attr-defined]
        return run

    return decorate


def recent_require(request: HttpRequest) -> None:
    """Raises RecentAuthenticationMissing for a session whose person proved too long ago who they are; keys need not."""
    if principal_of(request).kind == "session" and not recently_authenticated(request):
        raise RecentAuthenticationMissing


def _actor(request: HttpRequest, principal: Principal) -> Actor:
    if principal.api_key is not None:
        key = principal.api_key
        return actor_of_request(request, kind="api_key", actor_id=key.api_key_id, label=f"{key.name} ({key.prefix})")
    assert principal.user_id is not None  # it is a key or a person
    return actor_of_request(request, kind="user", actor_id=principal.user_id, label=principal.email)


def principal_of(request: HttpRequest) -> Principal:
    """Who asks, once one of the API's authentications has accepted them."""
    principal = getattr(request, "auth", None)
    if not isinstance(principal, Principal):
        raise AuthenticationError
    return principal
