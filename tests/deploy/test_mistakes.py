"""What goes wrong before a deployment is said in one line, and nothing is deployed."""

import http.server
import os
import shutil
import subprocess
import threading

import pytest

from conftest import KEYS, ROOT, line


@pytest.mark.parametrize("stage", ["Prod", "a b", "1st", "a_b", "x" * 20])
def test_a_stage_that_aws_would_refuse(make, stage):
    assert "STAGE is" in line(make("deploy", f"STAGE={stage}", succeeds=False))


def test_an_architecture_that_lambda_does_not_have(make):
    assert "ARCH is arm64 or x86_64" in line(make("package", "ARCH=riscv64", succeeds=False))


def test_an_architecture_that_rust_cannot_build_for(make, architecture):
    if architecture == "arm64":
        pytest.skip("this machine can build for both")
    assert "rustup target add aarch64-unknown-linux-gnu" in line(make("package", "ARCH=arm64", succeeds=False))


@pytest.mark.parametrize("target", ["deploy", "remove", "logs"])
def test_no_credentials(make, target):
    output = make(target, succeeds=False)
    assert "set AWS_PROFILE" in line(output)
    assert "Deploying" not in output and "Removing" not in output


def test_access_logs_in_an_account_that_cannot_have_them(make, aws):
    aws.client("apigateway").update_account(
        patchOperations=[{"op": "replace", "path": "/cloudwatchRoleArn", "value": ""}]
    )
    output = make("deploy", "STAGE=prod", environment=aws.environment | KEYS, succeeds=False)
    assert "API Gateway may not write logs" in line(output)
    assert aws.client("cloudformation").describe_stacks()["Stacks"] == []


class Account(http.server.BaseHTTPRequestHandler):
    """Answers two questions: whose account this is, and how many functions it may run at once."""

    def do_POST(self):
        self.answer(b"<R><GetCallerIdentityResult><Account>123456789012</Account></GetCallerIdentityResult></R>")

    def do_GET(self):
        assert self.path.startswith("/2016-08-19/account-settings"), self.path
        self.answer(b'{"AccountLimit":{"ConcurrentExecutions":%d}}' % self.server.limit)

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


# moto does not know the limit, so this account is our own.
@pytest.mark.parametrize("limit, is_low", [(10, True), (99, True), (100, False), (1000, False)])
def test_an_account_that_runs_few_functions_at_once(tmp_path, limit, is_low):
    template = tmp_path / "template.json"
    template.write_text('{"Conditions": {}}')
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Account) as server:
        server.limit = limit
        threading.Thread(target=server.serve_forever).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        environment = os.environ | keys | {"REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint}
        command = ["node", "infra/preflight.mjs", template]
        result = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        server.shutdown()
    assert result.returncode == 0, result.stdout
    assert (f"{limit} function" in result.stdout) == is_low
    assert not is_low or "Warning" in line(result.stdout)


@pytest.mark.parametrize("program", ["npm", "python3"])
def test_a_missing_program(make, program, tmp_path):
    for name in ["make", "sh", "dirname", "sed"]:
        os.symlink(shutil.which(name), tmp_path / name)
    target = {"npm": "infra/node_modules", "python3": "target/venv/package"}[program]
    output = make("--always-make", target, environment={"PATH": str(tmp_path)}, succeeds=False)
    assert f"{program} is missing: install" in line(output)
    assert (ROOT / target).exists()
