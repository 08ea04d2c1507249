"""`docs/nginx.conf` in a real nginx, on free ports of this machine and with a certificate of its own."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.serving.processes import Served, export_text, serving

triton_grpc = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
pytestmark = [
    pytest.mark.skipif(find_spec("mlserver") is None, reason="needs the extra serve"),
    pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx: apt-get install nginx"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, which makes the certificate"),
]

CONF = Path(__file__).parents[2] / "docs" / "nginx.conf"
TOKEN, OTHER = "5c1f" * 16, "77aa" * 16
BODY = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["good film"]}]}
INFER = "/v2/models/model/infer"


@dataclass(frozen=True)
class Front:
    """nginx before a server."""

    address: str
    certificate: Path
    served: Served

    def client(self, token: str | None = TOKEN) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        context = ssl.create_default_context(cafile=str(self.certificate))
        return httpx.Client(base_url=f"https://{self.address}", headers=headers, verify=context, timeout=60)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("nginx")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    subprocess.run(
        ["openssl", "req", "-x509", *curve, *names, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    (folder / "tokens").write_text(f'"Bearer {TOKEN}" alice;\n"Bearer {OTHER}" bob;\n', encoding="ascii")
    artifact = export_text("text-classification", tmp_path_factory.mktemp("behind"))
    with serving(artifact.directory) as served, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        text = CONF.read_text(encoding="utf-8")
        for written, here in {
            "listen 443 ": f"listen 127.0.0.1:{port} ", "127.0.0.1:8080": served.http, "127.0.0.1:8081": served.grpc,
            "/etc/nginx/instatune-tokens": folder / "tokens", "/etc/nginx/instatune-cert.pem": certificate,
            "/etc/nginx/instatune-key.pem": key,
        }.items():  # fmt: skip
            assert text.count(written) == 1, written
            text = text.replace(written, str(here))
        (folder / "instatune.conf").write_text(text, encoding="utf-8")
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.getuid() == 0 else ""  # whose the folder is
        main = f"daemon off; {user} pid {folder}/pid; events {{}} http {{ access_log off; {temporary} include {folder}/instatune.conf; }}"
        (folder / "nginx.conf").write_text(main, encoding="utf-8")
        command = ["nginx", "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"]
        checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        free.close()
        process = subprocess.Popen(command)
        try:
            end = time.monotonic() + 30
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    assert process.poll() is None, (folder / "error.log").read_text()
                    assert time.monotonic() < end
                    time.sleep(0.05)
            yield Front(f"localhost:{port}", certificate, served)
        finally:
            process.terminate()
            process.wait(30)


def test_the_right_token_is_answered_as_the_server_answers(front: Front) -> None:
    with front.client() as client:
        found = client.post(INFER, json=BODY)
        assert found.status_code == 200
        assert found.json()["outputs"] == httpx.post(f"http://{front.served.http}{INFER}", json=BODY).json()["outputs"]
        assert client.get("/v2/health/ready").status_code == 200
        assert client.post(INFER, content=b"{").json()["error"].startswith("the body is not JSON")
        assert client.get("/metrics").status_code == 404


@pytest.mark.parametrize("token", [None, "x", "5c1f", OTHER[:-1] + "b"])
def test_no_token_or_a_wrong_one_is_refused(front: Front, token: str | None) -> None:
    with front.client(token) as client:
        for found in (client.post(INFER, json=BODY), client.get("/v2"), client.get("/elsewhere")):
            assert (found.status_code, found.headers["www-authenticate"]) == (401, "Bearer")
            assert "no such token" in found.json()["error"]


def test_nothing_is_answered_without_tls(front: Front) -> None:
    found = httpx.post(f"http://{front.address}{INFER}", json=BODY, headers={"Authorization": f"Bearer {TOKEN}"})
    assert found.status_code == 400


def test_a_body_that_is_too_large_is_refused(front: Front) -> None:
    with front.client() as client:
        found = client.post(INFER, content=b" " * (16 * 2**20 + 1))
        assert (found.status_code, found.json()) == (413, {"error": "the body is too large"})
        assert client.post(INFER, json=BODY).status_code == 200


def test_too_many_requests_of_one_client_are_refused_and_not_those_of_others(front: Front) -> None:
    with front.client(OTHER) as busy, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: busy.get("/v2"), range(400)))
        statuses = [one.status_code for one in found]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 50
        assert all(one.json()["error"].startswith("too many") for one in found if one.status_code == 429)
        with front.client() as quiet:
            assert quiet.post(INFER, json=BODY).status_code == 200


def test_grpc_goes_through_too(front: Front) -> None:
    tensor = triton_grpc.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"good film"], dtype=object))
    with triton_grpc.InferenceServerClient(front.address, ssl=True, root_certificates=str(front.certificate)) as client:
        found = client.infer("model", [tensor], headers={"authorization": f"Bearer {TOKEN}"}).as_numpy("logits")
        assert found.shape == (1, 3)
        with pytest.raises(triton_grpc.InferenceServerException) as caught:
            client.infer("model", [tensor], headers={"authorization": "Bearer none"})
        assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
