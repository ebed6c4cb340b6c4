"""No stream key, token or password reaches a log line, whichever way it comes."""

import io
import json
import logging
import logging.config

import pytest

from mirror_saas.logging import JSONFormatter, MaskSecrets, logging_config, mask_secrets

KEY = "sk_" + "Ab1-_" * 9


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"/stream/demo/{KEY}", "/stream/demo/***"),
        ("/stream/demo/mistyped-key", "/stream/demo/***"),
        ("/stream/demo/any%20key?x=1", "/stream/demo/***?x=1"),
        (f"/plivo/demo/{KEY}/answer", "/plivo/demo/***/answer"),
        (f"path=b'/stream/demo/{KEY}' gone", "path=b'/stream/demo/***' gone"),
        (f"wss://m.example.com/stream/demo/{KEY}", "wss://m.example.com/stream/demo/***"),
        ("/plivo/demo/x/answer?mt=abc.def-g&From=1", "/plivo/demo/***/answer?mt=***&From=1"),
        (f"the key {KEY} alone", "the key *** alone"),
        ("Bearer mk_ab12cd_Zm9vYmFy-_x", "Bearer mk_ab12cd_***"),
        ("redis://:hunter2@127.0.0.1:6379/0", "redis://:***@127.0.0.1:6379/0"),
        ("postgresql://mirror_app:p%40ss@db/mirror", "postgresql://mirror_app:***@db/mirror"),
        ("Not Found: /invitation/Zm9vYmFy-_x/more?x=1", "Not Found: /invitation/***/more?x=1"),
        ("/reset-password/3f-c9a8-b7", "/reset-password/***"),
        ("https://m.example.com/invitation/abc: no", "https://m.example.com/invitation/*** no"),
        ("Authorization: Bearer abcdefgh1234", "Authorization: Bearer ***"),
        ("b'authorization', b'Basic dXNlcjpwYXNz'", "b'authorization', b'Basic ***'"),
        ("Incorrect API key provided: sk-proj-abcdefghijklmnop.", "Incorrect API key provided: sk-***."),
        ("signed with whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw/+=.", "signed with whsec_***."),
        ("/invitations/0193 and /invitation", "/invitations/0193 and /invitation"),
        ("/calls/0193/turns at 10:20:30", "/calls/0193/turns at 10:20:30"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/"),
    ],
)
def test_secrets_are_masked_and_nothing_else(text: str, masked: str) -> None:
    assert mask_secrets(text) == masked


@pytest.fixture
def lines() -> tuple[logging.Logger, io.StringIO]:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.addFilter(MaskSecrets())
    handler.setFormatter(JSONFormatter())
    logger = logging.Logger("test")  # noqa: LOG001  (one of its own, without parents)
    logger.addHandler(handler)
    return logger, written


def test_a_key_is_masked_in_message_arguments_fields_and_traceback(
    lines: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, written = lines
    try:
        raise ValueError(f"No route found for path '/stream/demo/{KEY}'")
    except ValueError:
        logger.exception("refused %s", f"/stream/demo/{KEY}", extra={"path": f"/plivo/demo/{KEY}/status"})
    text = written.getvalue()
    assert KEY not in text
    line = json.loads(text)
    assert line["message"] == "refused /stream/demo/***"
    assert line["path"] == "/plivo/demo/***/status"
    assert "ValueError: No route found for path '/stream/demo/***'" in line["error"]
    assert line["level"] == "error"


def test_every_line_is_one_json_object(lines: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = lines
    logger.info("two\nlines", extra={"call_id": "c1", "request": object()})
    logger.info("wrong format %d", "x")
    first, second = (json.loads(line) for line in written.getvalue().splitlines())
    assert first["message"] == "two\nlines"
    assert first["call_id"] == "c1"
    assert "request" not in first
    assert second["message"].startswith("wrong format %d")


def test_what_libraries_log_is_masked_too(capsys: pytest.CaptureFixture[str]) -> None:
    saved = logging.root.handlers[:]
    try:
        logging.config.dictConfig(logging_config())
        for name in ("django.request", "daphne.server", "channels", "twisted"):
            logging.getLogger(name).error("Forbidden: /stream/demo/%s", KEY)
    finally:
        logging.root.handlers[:] = saved
    printed = capsys.readouterr().err
    assert KEY not in printed
    assert [json.loads(line)["message"] for line in printed.splitlines()] == ["Forbidden: /stream/demo/***"] * 4


def test_what_django_refuses_is_one_line_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    saved = logging.root.handlers[:]
    try:
        logging.config.dictConfig(logging_config())
        try:
            raise ValueError("foreign")
        except ValueError:
            logging.getLogger("django.security.DisallowedHost").exception("Invalid HTTP_HOST header")
            logging.getLogger("django.request").exception("Bad Request", extra={"status_code": 400})
            logging.getLogger("django.request").exception("a failure", extra={"status_code": 500})
    finally:
        logging.root.handlers[:] = saved
    *refused, failed = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert [line["message"] for line in refused] == ["Invalid HTTP_HOST header", "Bad Request"]
    assert not any("error" in line for line in refused)
    assert "ValueError" in failed["error"]


def test_tasks_that_come_every_few_seconds_are_told_of_when_they_fail(capsys: pytest.CaptureFixture[str]) -> None:
    saved = logging.root.handlers[:]
    try:
        logging.config.dictConfig(logging_config())
        sweep, other = {"name": "supervision.webhooks_sweep"}, {"name": "supervision.calls_prune"}
        for logger, context in (("celery.app.trace", sweep), ("celery.app.trace", other)):
            logging.getLogger(logger).info("Task %(name)s succeeded", context)
            logging.getLogger(logger).error("Task %(name)s raised", context)
        logging.getLogger("celery.beat").info("Sending due task %s (%s)", "sweep", "supervision.webhooks_sweep")
    finally:
        logging.root.handlers[:] = saved
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == [
        "Task supervision.webhooks_sweep raised",
        "Task supervision.calls_prune succeeded",
        "Task supervision.calls_prune raised",
    ]


def test_access_lines_of_the_server_are_off(capsys: pytest.CaptureFixture[str]) -> None:
    saved = logging.root.handlers[:]
    try:
        logging.config.dictConfig(logging_config())
        logging.getLogger("daphne.access").info("GET /plivo/demo/x/answer")
        logging.getLogger("django.server").info("GET /")
    finally:
        logging.root.handlers[:] = saved
    assert capsys.readouterr().err == ""


def test_a_probes_503_is_no_line_but_any_other_503_is(capsys: pytest.CaptureFixture[str]) -> None:
    saved = logging.root.handlers[:]
    try:
        logging.config.dictConfig(logging_config())
        for path in ("/readyz", "/api/v1/calls"):
            logging.getLogger("django.request").error("Service Unavailable: %s", path, extra={"status_code": 503})
    finally:
        logging.root.handlers[:] = saved
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == [
        "Service Unavailable: /api/v1/calls"
    ]
