"""A `MirrorConfig` from environment variables: `MIRROR_` and a field's name, `MIRROR_INTERVENTION_THRESHOLD` say."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from supervision.engine.llm.protocol import LLMClient
from supervision.engine.policy.rule_lines import rule_lines

OPENAI_URL = "https://api.openai.com/v1"
MAX_FILE_BYTES = 4 * 1024 * 1024

# Fields whose value may be in a file, named by the variable with this suffix.
_FILE = "_FILE"
_IN_FILES = ("policies", "judging_prompt")
# Fields that are no text: given in code.
_IN_CODE = ("llm", "secrets")
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


class ConfigError(ValueError):
    """An environment variable is missing, or cannot be what it says. The message names the variable and the field, and
    never repeats a value."""


def fields_from(env: Mapping[str, str], fields: Mapping[str, FieldInfo], prefix: str) -> dict[str, Any]:
    """The fields of a configuration that the environment sets, by name. Blank variables count as not set.

    Raises `ConfigError` for a value that is not of its field's kind, and for a variable that looks like a misspelt one.
    """
    found: dict[str, Any] = {}
    for name, field in fields.items():
        if name in _IN_CODE:
            continue
        variable = prefix + name.upper()
        text = env.get(variable, "").strip()
        if name in _IN_FILES:
            path = env.get(variable + _FILE, "").strip()
            if path and text:
                raise ConfigError(f"{variable} and {variable}{_FILE} exclude each other; set one of them ({name})")
            if path:
                variable, text = variable + _FILE, _read(path, variable + _FILE, name)
        if text:
            found[name] = _value(text, field.annotation, variable, name)
    _check_spelling(env, fields, prefix)
    return found


def explained(error: ValidationError, prefix: str) -> ConfigError:
    """A refusal of `MirrorConfig` in terms of the variables that it was made from."""
    problems = []
    for problem in error.errors():
        message = problem["msg"].removeprefix("Value error, ")
        if problem["loc"]:
            field = str(problem["loc"][0])
            message = f"{prefix}{field.upper()} ({field}): {message}"
        else:
            # The one thing that fields have to agree about.
            message = f"{prefix}POLICIES (policies), {prefix}JUDGING_PROMPT (judging_prompt): {message}"
        problems.append(message)
    return ConfigError("; ".join(problems))


def client_from(env: Mapping[str, str], prefix: str) -> LLMClient:
    """The LLM client that the environment names: Azure's variables go before OpenAI's. Raises `ConfigError`."""
    azure = env.get("AZURE_OPENAI_ENDPOINT", "").strip()
    key_name = "AZURE_OPENAI_API_KEY" if azure else "OPENAI_API_KEY"
    key = env.get(key_name, "").strip()
    if not key:
        raise ConfigError(f"{key_name} is missing (llm): set it, or give from_env(llm=...)")
    models = (f"{prefix}MODEL", "AZURE_OPENAI_DEPLOYMENT" if azure else "OPENAI_MODEL")
    model = next(filter(None, (env.get(name, "").strip() for name in models)), None)
    if model is None and azure:
        raise ConfigError("AZURE_OPENAI_DEPLOYMENT is missing (llm): set it to the name of the deployment")
    from supervision.engine.llm.openai import OpenAIClient

    try:
        if azure:
            version = env.get("OPENAI_API_VERSION", "").strip() or None
            return OpenAIClient(api_key=key, model=model, azure_endpoint=azure, api_version=version)
        base_url = env.get("OPENAI_BASE_URL", "").strip() or OPENAI_URL
        return OpenAIClient(api_key=key, model=model or "gpt-4o-mini", base_url=base_url)
    except ValueError as error:
        named = "AZURE_OPENAI_ENDPOINT" if azure else "OPENAI_BASE_URL"
        raise ConfigError(f"{named} (llm): {error}") from error


def rules_from(text: str) -> list[Any]:
    """Rules as a JSON list of texts or `{"text", "severity"}`, or as lines; blank lines and lines that begin with # are
    left out. Raises `ValueError` for a list that is no JSON."""
    text = text.lstrip("\ufeff").strip()
    if text.startswith("["):
        rules: list[Any] = json.loads(text)
        return rules
    return [line for _, line in rule_lines(text)]


def _value(text: str, annotation: Any, variable: str, name: str) -> Any:
    if name == "policies":
        try:
            return rules_from(text)
        except ValueError as error:
            raise ConfigError(f"{variable} ({name}) begins like a JSON list and is none: {error}") from error
    kind = _kind(annotation)
    if kind is bool:
        if text.lower() in _TRUE:
            return True
        if text.lower() in _FALSE:
            return False
        raise ConfigError(f"{variable} ({name}) has to be true or false")
    if kind is int or kind is float:
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ConfigError(f"{variable} ({name}) has to be {what}") from None
    if kind is tuple:
        if text.startswith("["):
            try:
                return json.loads(text)
            except ValueError as error:
                raise ConfigError(f"{variable} ({name}) begins like a JSON list and is none: {error}") from error
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


def _kind(annotation: Any) -> type:
    """What a field is made of: bool, int, float, tuple, or else str."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(arg for arg in get_args(annotation) if arg is not type(None))
    origin = get_origin(annotation)
    if origin is Literal:
        return str
    if origin is tuple:
        return tuple
    return annotation if annotation in (bool, int, float) else str


def _read(path: str, variable: str, name: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{variable} ({name}) names a file of more than {MAX_FILE_BYTES // 1024 // 1024} MiB")
        text = data.decode("utf-8-sig").strip()
    except OSError as error:
        raise ConfigError(f"{variable} ({name}) names a file that cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{variable} ({name}) names a file that is not UTF-8 text") from error
    if not text:
        raise ConfigError(f"{variable} ({name}) names a file with nothing in it")
    return text


def _check_spelling(env: Mapping[str, str], fields: Mapping[str, FieldInfo], prefix: str) -> None:
    """Refuses variables that somebody meant for a field. Others of the same prefix belong to somebody else."""
    known: Sequence[str] = [name.upper() for name in fields if name not in _IN_CODE]
    taken = {*known, *(name.upper() + _FILE for name in _IN_FILES), "MODEL"}
    for variable in env:
        name = variable.removeprefix(prefix)
        if name == variable or name in taken:
            continue
        if name.lower() in _IN_CODE:
            raise ConfigError(f"{variable} ({name.lower()}) is nothing that a variable can hold: give it in code")
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        close = close or [field for field in known if len(name) >= 6 and field.endswith(f"_{name}")]
        if close:
            raise ConfigError(f"{variable} is not a setting; {prefix}{close[0]} ({close[0].lower()}) may be meant")
