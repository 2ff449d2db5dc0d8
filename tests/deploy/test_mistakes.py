"""What goes wrong before a deployment is said in one line, and nothing is deployed."""

import html
import http.server
import json
import os
import shutil
import subprocess
import threading

import pytest

from conftest import KEYS, ROOT, line, package, replace


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
    """Answers three questions: whose account this is, how many functions it may run at once, and what a stage was deployed with."""

    def do_POST(self):
        question = self.rfile.read(int(self.headers["Content-Length"]))
        if b"GetTemplate" not in question:
            self.answer(b"<R><GetCallerIdentityResult><Account>123456789012</Account></GetCallerIdentityResult></R>")
        elif self.server.template is None:
            missing = b"<Code>ValidationError</Code><Message>Stack with id switchboard-prod does not exist</Message>"
            self.answer(b"<ErrorResponse><Error><Type>Sender</Type>" + missing + b"</Error></ErrorResponse>", 400)
        elif self.server.template == "denied":
            denied = b"<Code>AccessDenied</Code><Message>You may not call cloudformation:GetTemplate</Message>"
            self.answer(b"<ErrorResponse><Error><Type>Sender</Type>" + denied + b"</Error></ErrorResponse>", 403)
        else:
            body = html.escape(json.dumps(self.server.template)).encode()
            self.answer(b"<R><GetTemplateResult><TemplateBody>" + body + b"</TemplateBody></GetTemplateResult></R>")

    def do_GET(self):
        assert self.path.startswith("/2016-08-19/account-settings"), self.path
        limit, unreserved = self.server.limit, self.server.limit - self.server.reserved
        self.answer(b'{"AccountLimit":{"ConcurrentExecutions":%d,"UnreservedConcurrentExecutions":%d}}' % (limit, unreserved))

    def answer(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def preflight(tmp_path):
    """The questions before a deployment, answered by an account of our own: whether it may go on, and what was printed."""

    def ask(template, deployed=None, limit=1000, reserved=0, **environment):
        file = tmp_path / "template.json"
        file.write_text(json.dumps(template))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Account) as server:
            server.limit, server.reserved, server.template = limit, reserved, deployed
            threading.Thread(target=server.serve_forever).start()
            keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
            where = {"REGION": "us-east-1", "STAGE": "prod", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
            command = ["node", "infra/preflight.mjs", file]
            quiet = {"AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED": "true"}
            environment = os.environ | keys | where | quiet | environment
            result = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            server.shutdown()
        print(result.stdout)
        return result.returncode == 0, result.stdout

    return ask


# moto does not know the limit, so this account is our own.
@pytest.mark.parametrize("limit, is_low", [(10, True), (99, True), (100, False), (1000, False)])
def test_an_account_that_runs_few_functions_at_once(preflight, limit, is_low):
    passed, output = preflight({"Conditions": {}}, limit=limit)
    assert passed
    assert (f"{limit} function" in output) == is_low
    assert not is_low or "Warning" in line(output)


RESERVED = ["--param=connectConcurrency=50", "--param=disconnectConcurrency=20"]


@pytest.mark.parametrize("limit, room", [(1000, True), (170, True), (169, False), (100, False), (10, False)])
def test_executions_can_be_reserved_where_100_are_left(preflight, template, limit, room):
    assert preflight(template(), None, limit)[0]
    passed, output = preflight(template(*RESERVED), None, limit)
    assert passed == room
    assert room or "reserve 70 executions" in output and f"has room for {max(0, limit - 100)} in" in output


def test_executions_that_are_reserved_already_count_once(preflight, template):
    before, after = template(*RESERVED), template("--param=connectConcurrency=70")
    # The account has 170, and 70 of these are reserved.
    assert preflight(after, before, 170, 70) == (True, "")
    passed, output = preflight(after, None, 170, 70)
    assert not passed and "has room for 0 in" in line(output)


def test_nothing_is_reserved_unless_somebody_sets_it(template):
    reserved = lambda template: {
        it["Properties"]["Handler"]: it["Properties"]["ReservedConcurrentExecutions"]
        for it in template["Resources"].values()
        if it["Type"] == "AWS::Lambda::Function" and "ReservedConcurrentExecutions" in it["Properties"]
    }
    assert reserved(template()) == {}
    assert reserved(template(*RESERVED)) == {"connect": 50, "disconnect": 20}


SETTINGS = {
    "domain": "--param=domain=chat.example.org",
    "alarmEmail": "--param=alarmEmail=me@example.org",
    "keys": "--param=tokenKeysUrl=https://issuer.example.org/",
    "tokenAudience": "--param=tokenAudience=chat",
    "tokenIssuer": "--param=tokenIssuer=us",
    "allowedOrigins": "--param=allowedOrigins=https://chat.example.org",
}


@pytest.fixture
def template(service):
    """The template of the stage prod with these parameters, and with an authorizer or without."""

    def make(*parameters, authorizer=False):
        if authorizer:
            arn = "arn:aws:lambda:us-east-1:123456789012:function:guard"
            guarded = f"{{route: $connect, authorizer: {{name: guard, arn: '{arn}', identitySource: [route.request.querystring.x]}}}}"
            replace(service, "- websocket: $connect\n", f"- websocket: {guarded}\n")
        return package(service, "prod", "", *parameters, "--param=accessLogs=off")

    return make


def test_what_a_stage_has_cannot_be_lost_by_accident(preflight, template):
    bare, full = template(), template(*SETTINGS.values())
    assert preflight(full, None) == preflight(full, bare) == preflight(full, full) == preflight(bare, bare) == (True, "")
    passed, output = preflight(bare, full)
    assert not passed and f"has {', '.join(SETTINGS)}, and" in line(output) and f"DROP={','.join(SETTINGS)}" in line(output)
    assert preflight(bare, full, DROP=" ".join(SETTINGS)) == preflight(bare, full, DROP=",".join(SETTINGS)) == (True, "")
    for name in SETTINGS:
        without = template(*[value for key, value in SETTINGS.items() if key != name])
        passed, output = preflight(without, full)
        assert not passed and f"The stage 'prod' has {name}, and" in line(output), name
        assert preflight(without, full, DROP=name) == (True, "")


def test_a_setting_that_changes_is_not_lost(preflight, template):
    before = template("--param=tokenKeysUrl=https://issuer.example.org/", SETTINGS["alarmEmail"])
    after = template("--param=tokenKeysParameter=/switchboard/prod/keys", "--param=alarmEmail=you@example.org")
    assert preflight(after, before) == (True, "")


def test_an_authorizer_cannot_be_lost_by_accident(preflight, template):
    without, with_authorizer = template(), template(authorizer=True)
    passed, output = preflight(without, with_authorizer)
    assert not passed and "has authorizer, and" in line(output)
    assert preflight(with_authorizer, with_authorizer) == (True, "")


def test_a_name_that_cannot_be_dropped(preflight, template):
    passed, output = preflight(template(), None, DROP="alarmMail")
    assert not passed and "DROP has alarmMail, and it may have domain, alarmEmail, keys" in line(output)


def test_a_stage_that_cannot_be_compared_is_not_deployed(preflight, template):
    passed, output = preflight(template(), "denied")
    assert not passed and "cannot be read" in line(output) and "cloudformation:GetTemplate" in line(output)


@pytest.mark.parametrize("program", ["npm", "python3"])
def test_a_missing_program(make, program, tmp_path):
    for name in ["make", "sh", "dirname", "sed"]:
        os.symlink(shutil.which(name), tmp_path / name)
    target = {"npm": "infra/node_modules", "python3": "target/venv/package"}[program]
    output = make("--always-make", target, environment={"PATH": str(tmp_path)}, succeeds=False)
    assert f"{program} is missing: install" in line(output)
    assert (ROOT / target).exists()
