"""Manifests: what is wrong with one site is said of it, and what is wrong with all ends the command."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from fedcondense.errors import SettingError
from fedcondense.flower.manifest import NAMESPACE, Listed, read_manifest, signature_fault

A, B = "a" * 64, "b" * 64


def written(folder: Path, text: str, name: str = "sites.json") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def signed(folder: Path, blob: bytes, key: str = "key", namespace: str = NAMESPACE) -> Path:
    """Sign bytes with a key that is made if need be, and return the path of the signature."""
    if not (folder / key).exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    file = folder / f"{key}-{namespace}.safetensors"
    file.write_bytes(blob)
    subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-n", namespace, "-f", folder / key, file], check=True, capture_output=True
    )
    return file.with_name(f"{file.name}.sig")


class TestReading:
    def test_toml_and_json_of_the_same_keys_say_the_same(self, tmp_path: Path) -> None:
        (tmp_path / "signers").write_text("a ssh-ed25519 AAAA")
        toml = (
            f'allowed_signers = "signers"\n[sites]\nb = "{B.upper()}"\n[sites.a]\nsha256 = "{A}"\nsignature = "a.sig"\n'
        )
        given = {"allowed_signers": "signers", "sites": {"b": B, "a": {"sha256": A, "signature": "a.sig"}}}
        found = read_manifest(written(tmp_path, toml, "sites.toml"))
        assert found == read_manifest(written(tmp_path, json.dumps(given)))
        assert found.sites == {"a": Listed(A, tmp_path / "a.sig"), "b": Listed(B)}
        assert found.allowed_signers == tmp_path / "signers"

    @pytest.mark.parametrize(
        ("name", "entry", "says"),
        [
            ("a", "12", "needed: 64 hexadecimal digits"),
            ("a", {"sha256": A, "size": 1}, "needed: a SHA-256"),
            ("a", {"signature": "x"}, "needed: 64 hexadecimal digits"),
            ("a", ["x"], "needed: a SHA-256"),
            ("a", 7, "needed: a SHA-256"),
            ("a", {"sha256": A, "signature": 5}, "needed: the path of a file"),
            ("a", {"sha256": A, "signature": "a.sig"}, "no allowed_signers"),
            ("../a", A, "is no name of a site"),
            ("b.", A, "is no name of a site"),
            ("z", B, "has the very file of b in the manifest"),
            ("b9", B, "has the very file of b in the manifest"),
        ],
    )
    def test_what_is_wrong_with_one_site_leaves_the_others(
        self, name: str, entry: object, says: str, tmp_path: Path
    ) -> None:
        found = read_manifest(written(tmp_path, json.dumps({"sites": {name: entry, "b": B}})))
        assert set(found.sites) == {"b"}
        assert says in found.faults[name]

    def test_a_site_that_stands_there_twice_counts_for_neither(self, tmp_path: Path) -> None:
        """Python's own reader would take the last and say nothing."""
        found = read_manifest(written(tmp_path, f'{{"sites": {{"a": "{A}", "b": "{B}", "a": "{"c" * 64}"}}}}'))
        assert set(found.sites) == {"b"}
        assert found.faults == {"a": "stands in the manifest twice: it counts for neither"}

    @pytest.mark.parametrize(
        ("text", "name", "says"),
        [
            ("{", "sites.json", "is no JSON"),
            ("[" * 100_000, "sites.json", "is no JSON"),
            ("[]", "sites.json", "holds a list"),
            ("{}", "sites.json", "no sites; needed"),
            ('{"sites": {}}', "sites.json", "no sites; needed"),
            ('{"sites": ["a"]}', "sites.json", "no sites; needed"),
            (f'{{"sites": {{"a": "{A}"}}, "site": 1}}', "sites.json", "did you mean 'sites'"),
            (f'{{"sites": {{"a": "{A}"}}, "sites": {{"b": "{B}"}}}}', "sites.json", "'sites' stands there twice"),
            (f'{{"sites": {{"a": "{A}"}}, "allowed_signers": "none"}}', "sites.json", "none is no file"),
            (f'{{"sites": {{"a": "{A}"}}, "allowed_signers": 1}}', "sites.json", "allowed_signers is no path"),
            (f'[sites]\na = "{A}"\na = "{B}"', "sites.toml", "is no TOML"),
            ("a,b", "sites.csv", "needed: a manifest as .toml or .json"),
        ],
    )
    def test_what_is_wrong_with_all_of_it_is_one_line(self, text: str, name: str, says: str, tmp_path: Path) -> None:
        with pytest.raises(SettingError) as caught:
            read_manifest(written(tmp_path, text, name))
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_missing_one_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SettingError, match="No such file"):
            read_manifest(tmp_path / "none.toml")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
class TestSignatures:
    def test_a_sites_own_signature_counts_and_no_other(self, tmp_path: Path) -> None:
        blob = b"a set" * 100
        mine, foreign = signed(tmp_path, blob), signed(tmp_path, blob, "other")
        mail = signed(tmp_path, blob, namespace="email")
        signers = tmp_path / "signers"
        signers.write_text(
            "".join(f"{n} {(tmp_path / f'{k}.pub').read_text()}" for n, k in [("a", "key"), ("b", "other")])
        )
        assert signature_fault(blob, mine, signers, "a") == ""
        assert signature_fault(blob, foreign, signers, "b") == ""
        for signature, site, given in (
            (foreign, "a", blob),
            (mine, "b", blob),
            (mail, "a", blob),
            (mine, "a", blob + b"x"),
        ):
            assert f"is no signature of {site} on this file" in signature_fault(given, signature, signers, site)

    def test_what_is_no_signature_is_said(self, tmp_path: Path) -> None:
        signers = written(tmp_path, "a ssh-ed25519 AAAA\n", "signers")
        assert "is not there" in signature_fault(b"x", tmp_path / "none.sig", signers, "a")
        assert "is no signature of a" in signature_fault(b"x", written(tmp_path, "junk", "x.sig"), signers, "a")


def test_without_ssh_keygen_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingError, match=r"install OpenSSH 8\.2 or later, or leave allowed_signers out"):
        signature_fault(b"x", written(tmp_path, "junk", "x.sig"), written(tmp_path, "", "signers"), "a")
