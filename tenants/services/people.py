"""What people do to their own accounts: passwords and sessions."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib.auth.tokens import default_token_generator
from django.contrib.sessions.models import Session
from django.db import transaction
from django.urls import reverse
from django.utils import timezone

from mirror_saas.logging import mask_secrets
from tenants.models import User
from tenants.services.mails import mail_make
from tenants.services.people_audit import personevent_record

# One write per session and minute is enough to tell a used session from a forgotten one.
SEEN_EVERY: Final = timedelta(minutes=1)
USER_AGENT_CHARS: Final = 200


class SessionNotFound(LookupError):
    """The person has no such session."""

    def __init__(self) -> None:
        super().__init__("There is no such session; it may have ended already.")


class ResetLinkInvalid(ValueError):
    """A link of a password mail was used before, is too old, or is not one of ours."""

    def __init__(self) -> None:
        super().__init__("This link does not work any more. Ask for a new one.")


def password_change(*, user: User, password: str, keep_session_key: str | None) -> None:
    """Give `user` a new password, and end all of their sessions but the one named."""
    with transaction.atomic():
        user.set_password(password)
        user.save(update_fields=["password"])
        ended = _sessions_end(user, keep_session_key)
        personevent_record(user=user, action="user.password_change", after={"sessions_ended": ended})


def password_reset(*, key: str, password: str) -> User:
    """Give the person whose mailed `key` this is a new password, and end all of their sessions.

    Raises ResetLinkInvalid.
    """
    with transaction.atomic():
        user = password_reset_user(key=key, lock=True)
        user.set_password(password)
        user.save(update_fields=["password"])
        ended = _sessions_end(user, None)
        personevent_record(user=user, action="user.password_reset", after={"sessions_ended": ended})
    return user


def password_reset_user(*, key: str, lock: bool = False) -> User:
    """Whose password the mailed `key` may reset. Raises ResetLinkInvalid."""
    user_id, _, token = key.partition("-")
    try:
        people = User.objects.select_for_update(no_key=True) if lock else User.objects.all()
        user = people.get(id=UUID(hex=user_id), is_active=True)
    except (ValueError, User.DoesNotExist) as error:
        raise ResetLinkInvalid from error
    if not default_token_generator.check_token(user, token):
        raise ResetLinkInvalid
    return user


def password_reset_mail(*, email: str) -> bool:
    """Send a link to the person who signs in with `email`, if there is one; say whether it was sent."""
    user = User.objects.filter(email=email.strip().lower(), is_active=True).first()
    if user is None or not user.has_usable_password():
        return False
    key = f"{user.pk.hex}-{default_token_generator.make_token(user)}"
    url = settings.MIRROR.public_url + reverse("webui:reset_password", kwargs={"key": key})
    told = {"email": user.email, "link": url, "minutes": settings.PASSWORD_RESET_TIMEOUT // 60}
    mail_make(to=user.email, template="tenants/mail/password_reset", told=told).send()
    return True


def session_touch(*, user: User, session_key: str, ip: str, user_agent: str, now: datetime | None = None) -> bool:
    """Note that a session is in use, and put its end off; at most once a minute. Says whether it did."""
    now = now or timezone.now()
    agent = user_agent.replace("\x00", "")[:USER_AGENT_CHARS]
    found = UserSession.objects.filter(session_key=session_key).values("id", "last_seen_at", "ip").first()
    if found is not None and now - found["last_seen_at"] < SEEN_EVERY and found["ip"] == ip:
        return False
    with transaction.atomic():
        UserSession.objects.update_or_create(
            session_key=session_key,
            defaults={"user_id": user.pk, "ip": ip, "user_agent": agent, "last_seen_at": now},
            create_defaults={"user_id": user.pk, "ip": ip, "user_agent": agent, "last_seen_at": now, "created_at": now},
        )
        # Not through the session's own save: that would write back what another request has changed meanwhile.
        Session.objects.filter(session_key=session_key).update(
            expire_date=now + timedelta(seconds=settings.SESSION_COOKIE_AGE)
        )
    return True


def session_list(*, user: User) -> list[UserSession]:
    """The sessions of `user` that have not ended, last used first."""
    alive: list[UserSession] = UserSession.objects.purge_and_list(user)
    return sorted(alive, key=lambda session: session.last_seen_at, reverse=True)


def session_revoke(*, user: User, session_id: int) -> None:
    """End one session of `user`, at once on every node. Raises SessionNotFound."""
    with transaction.atomic():
        session = UserSession.objects.select_for_update(no_key=True).filter(user=user, id=session_id).first()
        if session is None:
            raise SessionNotFound
        described = _described(session)
        session.end()
        personevent_record(user=user, action="user.session_revoke", before=described)


def sessions_revoke_others(*, user: User, keep_session_key: str | None) -> int:
    """End all sessions of `user` but the one named; how many there were."""
    with transaction.atomic():
        ended = _sessions_end(user, keep_session_key)
        if ended:
            personevent_record(user=user, action="user.session_revoke", before={"sessions": ended})
    return ended


def _sessions_end(user: User, keep_session_key: str | None) -> int:
    others = list(UserSession.objects.filter(user=user).exclude(session_key=keep_session_key or ""))
    for session in others:
        session.end()
    return len(others)


def _described(session: UserSession) -> dict[str, str]:
    return {"ip": str(session.ip), "user_agent": mask_secrets(session.user_agent)}


def session_key_changed(*, before: str, after: str) -> None:
    """A session got another key, as it does with a new password: it is the same in the list of sessions."""
    UserSession.objects.filter(session_key=before).update(session_key=after)
