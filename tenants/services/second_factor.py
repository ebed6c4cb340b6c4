"""The second factor of people: codes of an authenticator app (TOTP, RFC 6238) and recovery codes.

allauth's models keep them; the rules are here: a code counts once, for one step before and after the clock's, and
recovery codes are shown once.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Final

from allauth.core.internal.cryptokit import compare_user_code
from allauth.mfa import app_settings
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP, format_hotp_value, generate_totp_secret, hotp_value
from django.db import transaction

from tenants.envelope import KeyRing, SealBroken
from tenants.mfa import is_sealed_with_current, text_open, text_seal
from tenants.models import User
from tenants.services.people_audit import personevent_record

# RFC 6238, section 5.2: one step for a code that was read at the end of its time, or a clock that is a little off.
TOLERANCE_STEPS: Final = 1
_SEPARATORS: Final = re.compile(r"[\s.-]+")
_SECRETS: Final = ("secret", "seed")


class CodeWrong(ValueError):
    """The code is not one of the person's, was used before, or is too old."""

    def __init__(self) -> None:
        super().__init__("This code is wrong, was used already, or is too old. Wait for the app's next code.")


class SecondFactorOn(ValueError):
    """There is an authenticator app already."""

    def __init__(self) -> None:
        super().__init__("An authenticator app is set up already. Turn it off before you set up another one.")


class SecondFactorOff(ValueError):
    """There is no authenticator app."""

    def __init__(self) -> None:
        super().__init__("No authenticator app is set up. Set one up first.")


@dataclass(frozen=True, slots=True)
class Resealed:
    """What `second_factors_reseal` did; `broken` names the values that do not open."""

    resealed: int = 0
    broken: tuple[str, ...] = field(default=())


def totp_secret_new() -> str:
    """A secret of 160 bits, in base32, as authenticator apps take it."""
    return str(generate_totp_secret())


def totp_activate(*, user: User, secret: str, code: str, now: float | None = None) -> None:
    """Turn the second factor of `user` on, once `code` shows that their app has `secret`; makes recovery codes too.

    `now` is in seconds since the epoch. Raises CodeWrong and SecondFactorOn.
    """
    step = _step_of(secret, code, after=-1, now=now)
    if step is None:
        raise CodeWrong
    with transaction.atomic():
        _lock(user)
        if second_factor_is_on(user=user):
            raise SecondFactorOn
        authenticator = TOTP.activate(user, secret).instance
        authenticator.data["last_step"] = step
        authenticator.save(update_fields=["data"])
        Authenticator.objects.filter(user=user, type=Authenticator.Type.RECOVERY_CODES).delete()
        RecoveryCodes.activate(user)
        personevent_record(user=user, action="user.second_factor_on", after={"kind": "totp"})


def second_factor_off(*, user: User) -> None:
    """Take the authenticator app and the recovery codes of `user` away. Raises SecondFactorOff."""
    with transaction.atomic():
        _lock(user)
        if not second_factor_is_on(user=user):
            raise SecondFactorOff
        Authenticator.objects.filter(user=user).delete()
        personevent_record(user=user, action="user.second_factor_off", before={"kind": "totp"})


def code_verify(*, user: User, code: str, now: float | None = None) -> Authenticator:
    """The authenticator of `user` that `code` is of; the code cannot be used again. Raises CodeWrong.

    Raises SealBroken when the stored secret does not open.
    """
    with transaction.atomic():
        # Locked: the same code sent twice at once counts once.
        locked = Authenticator.objects.select_for_update(no_key=True).filter(user=user).order_by("id")
        for authenticator in locked:
            if authenticator.type == Authenticator.Type.TOTP:
                data = authenticator.data
                step = _step_of(text_open(data["secret"]), code, after=data.get("last_step", -1), now=now)
                if step is not None:
                    data["last_step"] = step
                    authenticator.save(update_fields=["data"])
                    return authenticator
            elif authenticator.type == Authenticator.Type.RECOVERY_CODES:
                recovery_codes = RecoveryCodes(authenticator)
                if recovery_codes.validate_code(code):
                    left = len(recovery_codes.get_unused_codes())
                    personevent_record(user=user, action="user.recovery_code_use", after={"left": left})
                    return authenticator
    raise CodeWrong


def recovery_codes_renew(*, user: User) -> None:
    """Make new recovery codes for `user`; the ones before stop working. Raises SecondFactorOff."""
    with transaction.atomic():
        _lock(user)
        if not second_factor_is_on(user=user):
            raise SecondFactorOff
        Authenticator.objects.filter(user=user, type=Authenticator.Type.RECOVERY_CODES).delete()
        RecoveryCodes.activate(user)
        personevent_record(user=user, action="user.recovery_codes_renew")


def recovery_codes_show(*, user: User) -> list[str] | None:
    """The recovery codes of `user`, the first time that they are asked for; None after that, or without any."""
    with transaction.atomic():
        authenticator = (
            Authenticator.objects.select_for_update(no_key=True)
            .filter(user=user, type=Authenticator.Type.RECOVERY_CODES)
            .first()
        )
        if authenticator is None:
            return None
        recovery_codes = RecoveryCodes(authenticator)
        if recovery_codes.did_view:
            return None
        recovery_codes.mark_as_viewed()
        codes: list[str] = recovery_codes.get_unused_codes()
        return codes


def recovery_codes_left(*, user: User) -> int:
    """How many recovery codes of `user` are still to be used."""
    authenticator = Authenticator.objects.filter(user=user, type=Authenticator.Type.RECOVERY_CODES).first()
    if authenticator is None:
        return 0
    return int(app_settings.RECOVERY_CODE_COUNT) - int(authenticator.data["used_mask"]).bit_count()


def second_factor_is_on(*, user: User) -> bool:
    """Whether sign-in asks `user` for a code."""
    return bool(Authenticator.objects.filter(user=user, type=Authenticator.Type.TOTP).exists())


def second_factors_reseal(*, ring: KeyRing, batch: int) -> Resealed:
    """Seal every person's secrets with the current key of `ring`, `batch` rows in a transaction."""
    resealed, broken, after = 0, [], 0
    while True:
        with transaction.atomic():
            rows = list(
                Authenticator.objects.select_for_update(no_key=True).filter(id__gt=after).order_by("id")[:batch]
            )
            for row in rows:
                changed = False
                for name in _SECRETS:
                    sealed = row.data.get(name)
                    if sealed is None or is_sealed_with_current(sealed, ring):
                        continue
                    try:
                        row.data[name] = text_seal(text_open(sealed, ring=ring), ring=ring)
                    except SealBroken:
                        broken.append(f"mfa_authenticator.data:{row.id}")
                        continue
                    changed = True
                if changed:
                    row.save(update_fields=["data"])
                    resealed += 1
        if len(rows) < batch:
            return Resealed(resealed, tuple(broken))
        after = rows[-1].id


def _step_of(secret: str, code: str, *, after: int, now: float | None) -> int | None:
    """The step later than `after` whose code `code` is, or None."""
    typed = _SEPARATORS.sub("", code)
    current = int(time.time() if now is None else now) // app_settings.TOTP_PERIOD
    found: int | None = None
    for step in range(current - TOLERANCE_STEPS, current + TOLERANCE_STEPS + 1):
        # All are compared, so that the time this takes tells nothing.
        fits = compare_user_code(actual=typed, expected=format_hotp_value(hotp_value(secret, step)))
        if fits and step > after and found is None:
            found = step
    return found


def _lock(user: User) -> None:
    User.objects.select_for_update(no_key=True).get(pk=user.pk)
