"""The environment is typed, and every mistake in it is named at once."""

import base64
from pathlib import Path

import pytest

from mirror_saas.env import Environment, EnvironmentInvalid, MailServer, address_in_use, environment_parse

BASE = Path("/srv/mirror")
KEY = base64.b64encode(bytes(range(32))).decode()
OUTSIDE = {
    "DATABASE_URL": "postgresql://mirror_app:p@db:5432/mirror",
    "REDIS_URL": "redis://cache:6379/0",
    "MIRROR_SECRET_KEY": "s" * 50,
    "MIRROR_ENCRYPTION_KEY": KEY,
}


def parse(environ: dict[str, str], files: dict[str, str] | None = None) -> Environment:
    def read_text(path: Path) -> str:
        if files is None or str(path) not in files:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return files[str(path)]

    return environment_parse(environ, base_dir=BASE, read_text=read_text)


def problems(environ: dict[str, str], files: dict[str, str] | None = None) -> dict[str, str]:
    with pytest.raises(EnvironmentInvalid) as caught:
        parse(environ, files)
    return {problem.name: problem.message for problem in caught.value.problems}


def test_nothing_set_means_embedded_servers_in_production_mode() -> None:
    env = parse({})
    assert env.mode == "production"
    assert env.embedded
    assert not env.loopback_upstreams_allowed
    assert env.home == BASE / ".mirror"
    assert env.journal_dir == BASE / ".mirror" / "journal"
    assert env.public_url == "http://127.0.0.1:8000"
    assert env.tts is None


def test_the_public_url_follows_the_port_unless_it_is_set() -> None:
    assert parse({"PORT": "9001"}).public_url == "http://127.0.0.1:9001"
    assert parse({"PORT": "9001", "MIRROR_PUBLIC_URL": "https://m.example.com/"}).public_url == "https://m.example.com"


def test_blank_values_count_as_unset() -> None:
    assert parse({"PORT": " ", "DATABASE_URL": "", "REDIS_URL": ""}).port == 8000


def test_outside_servers_are_taken_as_given() -> None:
    env = parse(OUTSIDE)
    assert not env.embedded
    assert env.database_url == OUTSIDE["DATABASE_URL"]
    assert env.encryption_key == bytes(range(32))


def test_every_bad_variable_is_named_in_one_error() -> None:
    found = problems(
        {
            "MIRROR_ENV": "staging",
            "PORT": "70000",
            "DATABASE_URL": "mysql://db/mirror",
            "REDIS_URL": "memcached://x",
            "MIRROR_PUBLIC_URL": "mirror.example.com",
            "MIRROR_ENCRYPTION_KEY": "c2hvcnQ=",
            "MIRROR_EGRESS_ALLOW": "10.0.0.0/8, http://agent:80, ok.example.com:443",
            "MIRROR_HANDSHAKE_SIGNATURE": "maybe",
            "MIRROR_TTS": "loud",
            "MIRROR_DRAIN_S": "soon",
            "MIRROR_DRAIN_ACCEPT_S": "-1",
            "MIRROR_LOG_LEVEL": "CHATTY",
        }
    )
    assert set(found) == {
        "MIRROR_ENV",
        "PORT",
        "DATABASE_URL",
        "REDIS_URL",
        "MIRROR_PUBLIC_URL",
        "MIRROR_ENCRYPTION_KEY",
        "MIRROR_EGRESS_ALLOW",
        "MIRROR_HANDSHAKE_SIGNATURE",
        "MIRROR_TTS",
        "MIRROR_DRAIN_S",
        "MIRROR_DRAIN_ACCEPT_S",
        "MIRROR_LOG_LEVEL",
    }
    assert "development, production" in found["MIRROR_ENV"]
    assert "1 to 65535" in found["PORT"]
    assert "http://agent:80" in found["MIRROR_EGRESS_ALLOW"]
    assert "ok.example.com" not in found["MIRROR_EGRESS_ALLOW"]
    assert "openssl rand -base64 32" in found["MIRROR_ENCRYPTION_KEY"]


@pytest.mark.parametrize("choice", ["check", "require", "ignore"])
def test_what_becomes_of_a_handshakes_signature_can_be_chosen(choice: str) -> None:
    assert parse({"MIRROR_HANDSHAKE_SIGNATURE": choice}).handshake_signature == choice
    assert parse({}).handshake_signature == "check"


def test_a_token_for_the_figures_is_long_and_fits_a_header() -> None:
    assert parse({}).metrics_token is None
    assert parse({"MIRROR_METRICS_TOKEN": "0123456789abcdef"}).metrics_token == "0123456789abcdef"
    token = parse({"MIRROR_METRICS_TOKEN_FILE": "/run/token"}, {"/run/token": "from-a-secret-file\n"})
    assert token.metrics_token == "from-a-secret-file"
    for value in ("short", "sixteen chars and blanks", "\u00fc" * 20):
        said = problems({"MIRROR_METRICS_TOKEN": value})["MIRROR_METRICS_TOKEN"]
        assert "at least 16 characters" in said
        assert value not in said


def test_all_tenants_together_may_ask_a_thousand_questions_unless_it_is_said_otherwise() -> None:
    assert parse({}).judge_calls_total == 1000
    assert parse({"MIRROR_JUDGE_CALLS_TOTAL": "unlimited"}).judge_calls_total is None
    assert "whole number" in problems({"MIRROR_JUDGE_CALLS_TOTAL": "-1"})["MIRROR_JUDGE_CALLS_TOTAL"]


def test_the_error_text_lists_each_variable_on_its_own_line() -> None:
    with pytest.raises(EnvironmentInvalid) as caught:
        parse({"PORT": "x", "MIRROR_ENV": "y"})
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["MIRROR_ENV", "PORT"]


@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL"])
def test_one_outside_server_without_the_other_is_refused(name: str) -> None:
    environ = {key: value for key, value in OUTSIDE.items() if key != name}
    assert "set both" in problems(environ)[name]


@pytest.mark.parametrize("name", ["MIRROR_SECRET_KEY", "MIRROR_ENCRYPTION_KEY"])
def test_production_with_an_outside_database_needs_its_keys(name: str) -> None:
    environ = {key: value for key, value in OUTSIDE.items() if key != name}
    assert f"{name}_FILE" in problems(environ)[name]
    assert parse({**environ, "MIRROR_ENV": "development"}).mode == "development"


def test_a_secret_may_come_from_a_file_and_its_line_end_is_dropped() -> None:
    environ = {key: value for key, value in OUTSIDE.items() if key != "MIRROR_ENCRYPTION_KEY"}
    env = parse({**environ, "MIRROR_ENCRYPTION_KEY_FILE": "/run/key"}, {"/run/key": KEY + "\n"})
    assert env.encryption_key == bytes(range(32))


def test_a_secret_file_that_is_missing_empty_or_doubled_is_named() -> None:
    environ = {key: value for key, value in OUTSIDE.items() if key != "MIRROR_SECRET_KEY"}
    missing = problems({**environ, "MIRROR_SECRET_KEY_FILE": "/run/none"})
    assert "No such file" in missing["MIRROR_SECRET_KEY_FILE"]
    assert "MIRROR_SECRET_KEY" not in missing
    empty = problems({**environ, "MIRROR_SECRET_KEY_FILE": "/run/e"}, {"/run/e": "\n"})
    assert "empty" in empty["MIRROR_SECRET_KEY_FILE"]
    assert "keep one" in problems({**OUTSIDE, "MIRROR_SECRET_KEY_FILE": "/run/e"}, {"/run/e": "x"})["MIRROR_SECRET_KEY"]


def test_secrets_stay_out_of_error_texts_and_out_of_repr() -> None:
    secret = "hunter2-and-some-more"
    with pytest.raises(EnvironmentInvalid) as caught:
        parse({**OUTSIDE, "MIRROR_SECRET_KEY": secret, "DATABASE_URL": f"mysql://u:{secret}@db/x"})
    assert secret not in str(caught.value)
    env = parse({**OUTSIDE, "OPENAI_API_KEY": secret})
    assert secret not in repr(env)
    assert "p@db" not in repr(env)


def test_a_migrating_process_needs_the_owner_url() -> None:
    assert "mirror_owner" in problems({**OUTSIDE, "MIRROR_DATABASE_ROLE": "owner"})["DATABASE_OWNER_URL"]


@pytest.mark.parametrize(
    "entry", ["agent.internal", "agent.internal:8080", "10.1.0.0/16", "10.0.0.7:9000", "fd00::/8", "[::1]:9000", "::1"]
)
def test_egress_entries_name_hosts_ports_and_networks(entry: str) -> None:
    assert parse({"MIRROR_EGRESS_ALLOW": entry}).egress_allow == (entry,)


@pytest.mark.parametrize("entry", ["10.0.0.0/33", "ws://agent", "host:port", "host:0", "user@host", "a b", "-x"])
def test_what_is_no_egress_entry_is_refused(entry: str) -> None:
    assert entry in problems({"MIRROR_EGRESS_ALLOW": entry})["MIRROR_EGRESS_ALLOW"]


def test_a_postgres_url_may_name_a_socket_folder() -> None:
    url = "postgresql://mirror_app@/mirror?host=/var/run/postgresql"
    assert parse({**OUTSIDE, "DATABASE_URL": url}).database_url == url


def test_the_public_host_is_allowed_and_a_path_in_the_public_url_is_not() -> None:
    assert "m.example.com" in parse({"MIRROR_PUBLIC_URL": "https://m.example.com"}).allowed_hosts
    assert "path" in problems({"MIRROR_PUBLIC_URL": "https://m.example.com/mirror"})["MIRROR_PUBLIC_URL"]


def test_commands_beside_a_running_mirror_print_its_address() -> None:
    environment = environment_parse({}, base_dir=Path("/srv/mirror"))
    files = {Path("/srv/mirror/.mirror/address"): "http://127.0.0.1:9000\n"}

    def read(path: Path) -> str:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    assert address_in_use(environment, {}, read_text=read).public_url == "http://127.0.0.1:9000"
    assert address_in_use(environment, {"PORT": "8001"}, read_text=read) is environment
    files.clear()
    assert address_in_use(environment, {}, read_text=read) is environment
    files[Path("/srv/mirror/.mirror/address")] = "half a li"
    assert address_in_use(environment, {}, read_text=read) is environment


# -- mail ---------------------------------------------------------------------------------------------------------

FROM = {"MIRROR_EMAIL_FROM": "Mirror <mirror@example.com>"}


def test_without_a_mail_server_mails_are_printed() -> None:
    assert parse({}).email is None
    assert parse(FROM).email_from == "Mirror <mirror@example.com>"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.example.com", MailServer("mail.example.com", 587, "starttls")),
        ("smtps://mail.example.com", MailServer("mail.example.com", 465, "tls")),
        ("smtp://localhost:1025?tls=off", MailServer("localhost", 1025, "off")),
        ("smtp://relay?tls=off", MailServer("relay", 25, "off")),
        ("smtp://me%40example.com:p%2Fw%3A@mail.example.com:2525", MailServer("mail.example.com", 2525, "starttls")),
        ("smtps://[::1]:4650/", MailServer("::1", 4650, "tls")),
    ],
)
def test_a_mail_server_is_one_url(url: str, expected: MailServer) -> None:
    email = parse({"MIRROR_EMAIL_URL": url, **FROM}).email
    assert email is not None
    assert (email.host, email.port, email.security) == (expected.host, expected.port, expected.security)
    if "@mail" in url:
        assert (email.username, email.password) == ("me@example.com", "p/w:")
    assert parse({"MIRROR_EMAIL_URL_FILE": "/run/mail", **FROM}, {"/run/mail": f"{url}\n"}).email == email


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mail.example.com:25", "does not start with smtp:// or smtps://"),
        ("http://mail.example.com", "does not start with"),
        ("smtp://", "names no host"),
        ("smtp://mail:port", "is not a URL"),
        ("smtp://mail/box", "has more than a mail server"),
        ("smtp://mail?tls=on", "has more than a mail server"),
        ("smtps://mail?tls=off", "has more than a mail server"),
        ("smtp://me@mail", "a user without a password"),
        ("smtp://me:hidden-word@mail?tls=off", "in the clear"),
    ],
)
def test_a_mail_server_that_cannot_be_one_is_told_without_its_password(url: str, said: str) -> None:
    found = problems({"MIRROR_EMAIL_URL": url, **FROM})
    assert said in found["MIRROR_EMAIL_URL"]
    assert "hidden-word" not in str(found)


@pytest.mark.parametrize(
    "sender", ["mirror", "a@b@c", "Mirror <mirror>", "a@x.example, b@x.example", "a@x.example\x0bBcc"]
)
def test_mails_are_from_one_address(sender: str) -> None:
    assert "give an address" in problems({"MIRROR_EMAIL_FROM": sender})["MIRROR_EMAIL_FROM"]


def test_a_mail_server_needs_to_know_who_mails_are_from() -> None:
    assert problems({"MIRROR_EMAIL_URL": "smtp://mail.example.com"}).keys() == {"MIRROR_EMAIL_FROM"}
    assert "hidden-word" not in repr(parse({"MIRROR_EMAIL_URL": "smtp://me:hidden-word@mail", **FROM}))


def test_sign_up_is_open_where_one_tries_things_out_and_else_needs_a_mail_server() -> None:
    mails = {"MIRROR_EMAIL_URL": "smtp://mail.example.com", "MIRROR_EMAIL_FROM": "mirror@example.com"}
    assert parse({}).sign_up == "closed"
    assert parse({"MIRROR_ENV": "development"}).sign_up == "open"
    assert parse({"MIRROR_ENV": "development", "MIRROR_SIGN_UP": "closed"}).sign_up == "closed"
    assert parse({"MIRROR_SIGN_UP": "open", **mails}).sign_up == "open"
    assert "MIRROR_EMAIL_URL" in problems({"MIRROR_SIGN_UP": "open"})["MIRROR_SIGN_UP"]
    assert set(problems({"MIRROR_SIGN_UP": "open", "MIRROR_EMAIL_URL": "mail"})) == {"MIRROR_EMAIL_URL"}
    assert "open, closed" in problems({"MIRROR_SIGN_UP": "yes"})["MIRROR_SIGN_UP"]


def test_the_demos_agent_and_its_judge_are_named_together() -> None:
    both = {"MIRROR_DEMO_AGENT_URL": "ws://127.0.0.1:9001/", "MIRROR_DEMO_JUDGE_URL": "http://127.0.0.1:9002/v1"}
    env = parse(both)
    assert (env.demo_agent_url, env.demo_judge_url) == tuple(both.values())
    assert parse({}).demo_agent_url is None
    assert set(problems({"MIRROR_DEMO_AGENT_URL": both["MIRROR_DEMO_AGENT_URL"]})) == {"MIRROR_DEMO_JUDGE_URL"}
    assert set(problems({"MIRROR_DEMO_JUDGE_URL": both["MIRROR_DEMO_JUDGE_URL"]})) == {"MIRROR_DEMO_AGENT_URL"}
    assert set(problems({**both, "MIRROR_DEMO_AGENT_URL": "http://x"})) == {"MIRROR_DEMO_AGENT_URL"}
