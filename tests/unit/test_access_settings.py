"""What the inventory says of keys and certificates: what can work, what can't, and that findings hold no key."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ascent_controller import access_settings, certificates, planning

KEY = "client-one-4f2a9c7be1d0"
ENGINE = "engine-9d8c7b6a5f4e3d2c1b0a"
NOW = time.time()
DAY = 86400


class Values:
    """A templar for values that have no templates."""

    @staticmethod
    def template(value: Any) -> Any:
        return value


class Files:
    """A loader of plain files."""

    @staticmethod
    def get_text_file_contents(path: str) -> str:
        return Path(path).read_text()


def settings(**variables: Any) -> access_settings.Settings:
    known = {"ascent_tls": "off", "ascent_gateway_image": "nginx:1", "ascent_tls_directory": "/nowhere"}
    return access_settings.read(Values(), {**known, **variables})


def plan_of(given: access_settings.Settings, recipe: str = "qwen3.5-397b-a17b-w8a8-pd-1p1d-a3") -> dict[str, Any]:
    hosts = planning.stand_ins(3 if "pd" in recipe else 1)
    plan, findings = planning.prepare(recipe, hosts, cluster="c", guard=given.guard())
    assert plan is not None, findings
    return plan


def found(given: access_settings.Settings, recipe: str = "qwen3.5-397b-a17b-w8a8-pd-1p1d-a3") -> dict[str, str]:
    told = access_settings.judge(given, plan_of(given, recipe), Files(), NOW)
    assert KEY not in str(told)
    assert ENGINE not in str(told)
    assert all(item["fix"] and item["cause"] and item["evidence"] for item in told)
    return {item["id"]: item["severity"] for item in told}


def certificate(folder: Path, *names: str, begin: float = -DAY, end: float = 90 * DAY) -> dict[str, str]:
    """Variables that name a certificate of the test's own and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server")])
    moment = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment + datetime.timedelta(seconds=begin))
        .not_valid_after(moment + datetime.timedelta(seconds=end))
        .add_extension(x509.SubjectAlternativeName([certificates._general(one) for one in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "own.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "own.key").write_bytes(certificates._pem(key))
    return {
        "ascent_tls": "own",
        "ascent_tls_certificate": str(folder / "own.crt"),
        "ascent_tls_private_key": str(folder / "own.key"),
    }


# -- keys --------------------------------------------------------------------------------------------------------------


def test_nothing_set_is_nothing_found() -> None:
    assert found(settings()) == {}
    assert settings().guard()["api_key"] is settings().guard()["tls"] is False


def test_a_bare_off_of_yaml_is_off() -> None:
    assert settings(ascent_tls=False).tls == "off"
    assert settings(ascent_tls=None).tls == "off"


def test_one_key_in_clear_is_told() -> None:
    assert found(settings(ascent_api_keys=[KEY], ascent_engine_key=KEY)) == {"api-key-in-clear": "warning"}


def test_one_key_as_a_text_is_a_list_of_one() -> None:
    assert settings(ascent_api_keys=KEY).client_keys == (KEY,)


@pytest.mark.parametrize(
    "bad", ["2short", "has a space in it, and more", 'quote"quote"quote"quote', "x" * 15, "ключ" * 8]
)
def test_a_key_that_guards_nothing_is_refused(bad: str) -> None:
    told = access_settings.judge(settings(ascent_api_keys=[bad], ascent_engine_key=bad), None, Files(), NOW)
    assert {item["id"] for item in told} == {"api-key-unfit"}
    assert bad not in str([{**item, "fix": ""} for item in told])


@pytest.mark.parametrize(
    "variables", [{"ascent_api_keys": [KEY], "ascent_engine_key": ""}, {"ascent_engine_key": ENGINE}]
)
def test_engines_and_clients_have_keys_both_or_none(variables: dict[str, Any]) -> None:
    assert "api-key-unfit" in found(settings(**variables))


def test_several_keys_need_a_router() -> None:
    given = settings(ascent_api_keys=[KEY, KEY + "2"], ascent_engine_key=ENGINE)
    assert found(given) == {"api-key-in-clear": "warning"}
    assert found(given, "qwen3.5-397b-a17b-w8a8-128k-a3")["api-keys-need-router"] == "error"


def test_settings_hide_their_keys() -> None:
    assert KEY not in repr(settings(ascent_api_keys=[KEY], ascent_engine_key=KEY))


# -- the operator's certificate ----------------------------------------------------------------------------------------


def test_a_certificate_that_fits(tmp_path: Path) -> None:
    given = settings(**certificate(tmp_path, "192.0.2.1"))
    assert found(given) == {}
    text, key, made = access_settings.material(given, plan_of(given), Files(), NOW, write=True)
    assert (text, key, made) == ((tmp_path / "own.crt").read_text(), (tmp_path / "own.key").read_text(), False)


@pytest.mark.parametrize(("name", "fits"), [("llm.example.org", True), ("a.llm.example.org", False), ("", False)])
def test_the_name_that_clients_use_is_compared(tmp_path: Path, name: str, fits: bool) -> None:
    told = found(settings(ascent_tls_name=name, **certificate(tmp_path, "*.example.org")))
    assert told == ({} if fits else {"certificate-name": "error"})


@pytest.mark.parametrize(
    ("begin", "end", "wanted"),
    [
        (-DAY, 31 * DAY, {}),
        (-DAY, 29 * DAY, {"certificate-expires": "warning"}),
        (-9 * DAY, -DAY, {"certificate-expired": "error"}),
        (DAY, 90 * DAY, {"certificate-expired": "error"}),
    ],
)
def test_the_end_of_a_certificate_is_seen_ahead(
    tmp_path: Path, begin: float, end: float, wanted: dict[str, str]
) -> None:
    assert found(settings(**certificate(tmp_path, "192.0.2.1", begin=begin, end=end))) == wanted


def test_another_key_than_the_certificates_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = certificate(tmp_path / "other", "192.0.2.1")["ascent_tls_private_key"]
    mixed = {**certificate(tmp_path, "192.0.2.1"), "ascent_tls_private_key": other}
    assert found(settings(**mixed)) == {"certificate-unusable": "error"}


@pytest.mark.parametrize("broken", ["own.crt", "own.key"])
@pytest.mark.parametrize("text", [None, "no PEM at all\n"])
def test_files_that_can_not_be_used_are_named(tmp_path: Path, broken: str, text: str | None) -> None:
    given = settings(**certificate(tmp_path, "192.0.2.1"))
    (tmp_path / broken).unlink()
    if text is not None:
        (tmp_path / broken).write_text(text)
    assert found(given) == {"certificate-unusable": "error"}


def test_an_unknown_way_to_a_certificate_is_refused() -> None:
    assert found(settings(ascent_tls="letsencrypt")) == {"tls-mode-unknown": "error"}


# -- an authority of the cluster's own ---------------------------------------------------------------------------------


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir() if not path.name.startswith(".")}


def test_an_authority_is_made_once_and_its_keys_are_the_owners_alone(tmp_path: Path) -> None:
    place = tmp_path / "c"
    assert certificates.ensure(place, "c", ["192.0.2.1", "llm.example.org"], NOW)
    assert place.stat().st_mode & 0o777 == 0o700
    assert modes(place) == {"ca.key": 0o600, "ca.pem": 0o644, "tls.key": 0o600, "tls.crt": 0o644}
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    assert not certificates.ensure(place, "c", ["llm.example.org", "192.0.2.1"], NOW)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_a_dry_run_makes_nothing(tmp_path: Path) -> None:
    assert certificates.ensure(tmp_path / "c", "c", ["192.0.2.1"], NOW, write=False)
    assert not (tmp_path / "c").exists()
    given = settings(ascent_tls="made", ascent_tls_directory=str(tmp_path))
    assert access_settings.material(given, plan_of(given), Files(), NOW, write=False) == ("", "", True)


@pytest.mark.parametrize(("later", "names"), [(370 * DAY, ["192.0.2.1"]), (0, ["192.0.2.2"])])
def test_the_certificate_is_renewed_before_its_end_and_for_other_names_under_the_same_authority(
    tmp_path: Path, later: float, names: list[str]
) -> None:
    certificates.ensure(tmp_path, "c", ["192.0.2.1"], NOW)
    authority, old = ((tmp_path / name).read_bytes() for name in ("ca.pem", "tls.crt"))
    assert certificates.ensure(tmp_path, "c", names, NOW + later)
    assert (tmp_path / "ca.pem").read_bytes() == authority
    assert (tmp_path / "tls.crt").read_bytes() != old
    assert certificates.certificate((tmp_path / "tls.crt").read_text()).names == frozenset(names)


def test_a_broken_certificate_is_made_anew(tmp_path: Path) -> None:
    certificates.ensure(tmp_path, "c", ["192.0.2.1"], NOW)
    (tmp_path / "tls.key").write_text("cut")
    assert certificates.ensure(tmp_path, "c", ["192.0.2.1"], NOW)
    assert certificates.private_key_fits((tmp_path / "tls.crt").read_text(), (tmp_path / "tls.key").read_text())


def test_what_is_made_is_for_the_endpoint(tmp_path: Path) -> None:
    given = settings(
        ascent_tls="made", ascent_tls_directory=str(tmp_path), ascent_tls_name="llm", ascent_tls_names=["llm2"]
    )
    assert found(given) == {}
    text, _, made = access_settings.material(given, plan_of(given), Files(), NOW, write=True)
    assert made
    assert certificates.certificate(text).names == {"llm", "llm2", "192.0.2.1"}
    alone = "qwen3.5-397b-a17b-w8a8-128k-a3"
    assert "192.0.2.1" in access_settings.certificate_names(given, plan_of(given, alone))
