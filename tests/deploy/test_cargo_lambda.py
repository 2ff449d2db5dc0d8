"""cargo-lambda at the root of the project, without our scripts, as its users know it."""

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import time

import pytest

from conftest import ROOT


def handlers():
    """The functions of serverless.yml, by the names of their binaries."""
    return sorted(re.findall(r"^ *handler: (\S+)", (ROOT / "serverless.yml").read_text(), re.MULTILINE))


def environment(**variables):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MAKE", "MFLAGS"))}
    return inherited | {"PATH": f"{ROOT}/target/venv/package/bin:{os.environ['PATH']}"} | variables


def cargo_lambda(*arguments, **variables):
    """What a command prints, and what it says about its work."""
    command = ["cargo", "lambda", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout, result.stderr


@pytest.fixture(scope="session")
def built(architecture, tmp_path_factory):
    """The folder of a release build, and what the build printed. `make package` has compiled the same before."""
    folder = tmp_path_factory.mktemp("lambda")
    processor = "--" + architecture.replace("_", "-")
    arguments = ["--release", "--locked", processor, "--lambda-dir", folder, "--message-format", "json"]
    return folder, cargo_lambda("build", *arguments, RUST_LOG="cargo_lambda=debug")[0]


def test_a_build_makes_the_functions_and_nothing_else(built):
    folder, printed = built
    messages = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    made = [it["target"]["name"] for it in messages if it.get("executable") and it["target"]["kind"] == ["bin"]]
    assert sorted(made) == handlers()
    for handler in handlers():
        assert (folder / handler / "bootstrap").read_bytes().startswith(b"\x7fELF")


def test_a_release_build_lets_the_runtime_catch_panics(built):
    (optimizations,) = [line for line in built[1].splitlines() if "release optimizations" in line]
    assert "panic" not in optimizations


@pytest.fixture(scope="module")
def stack():
    """The addresses of the gateway and of DynamoDB of a local stack."""
    command = ["target/debug/switchboard-local", "--port", "0", "--dynamodb-port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    printed = ""
    while "Ctrl-C" not in printed:
        row = process.stdout.readline()
        assert row, printed
        printed += row
    gateway, dynamodb = re.search(r"ws://(localhost:\d+)", printed)[1], re.search(r"http://(localhost:\d+) ", printed)[1]
    yield gateway, dynamodb
    process.terminate()
    process.communicate()


@pytest.fixture(scope="module")
def watch(stack, tmp_path_factory):
    """The port of `cargo lambda watch` beside that stack, with the variables that the project offers."""
    gateway, dynamodb = stack
    variables = (ROOT / "tests/events/local.env").read_text()
    file = tmp_path_factory.mktemp("watch") / "local.env"
    file.write_text(variables.replace("localhost:3001", gateway).replace("localhost:8000", dynamodb))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["cargo", "lambda", "watch", "--invoke-address", "127.0.0.1", "--invoke-port", str(port), "--env-file", file]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True)
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    yield port
    process.terminate()
    process.wait()


def invoke(port, function, event):
    address = ["--invoke-address", "127.0.0.1", "--invoke-port", str(port)]
    return json.loads(cargo_lambda("invoke", function, "--data-file", f"tests/events/{event}", *address)[0])


class Client:
    """A WebSocket client that reads one short message."""

    def __init__(self, address, query):
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.reader = self.socket.makefile("rb")
        lines = ["GET /dev?" + query + " HTTP/1.1", "Host: " + address, "Connection: Upgrade", "Upgrade: websocket"]
        lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]
        self.socket.sendall("\r\n".join(lines).encode())
        assert b" 101 " in self.reader.readline()
        while self.reader.readline().strip():
            pass

    def next(self):
        _, length = self.reader.read(2)
        assert length < 126
        return json.loads(self.reader.read(length))


def test_a_function_answers_an_event_and_its_message_arrives(stack, watch):
    receiver = Client(stack[0], "userId=2")
    assert invoke(watch, "connect", "connect.json")["statusCode"] == 200
    assert invoke(watch, "send-message", "send-message.json")["statusCode"] == 200
    assert receiver.next() == {"senderId": "2", "body": "hello there!"}


def test_a_deployment_replaces_the_code_of_a_function_and_nothing_else(aws, built):
    functions = aws.client("lambda")
    document = {"Version": "2012-10-17", "Statement": []}
    role = aws.client("iam").create_role(RoleName="r", AssumeRolePolicyDocument=json.dumps(document))["Role"]["Arn"]
    name = "switchboard-dev-sendMessage"
    definition = {
        "FunctionName": name,
        "Runtime": "provided.al2023",
        "Handler": "send-message",
        "Role": role,
        "Timeout": 29,
        "MemorySize": 256,
        "Environment": {"Variables": {"CONNECTIONS_TABLE": "switchboard-dev-connections"}},
    }
    functions.create_function(**definition, Code={"ZipFile": b"PK\5\6" + bytes(18)})

    cargo_lambda("deploy", "--lambda-dir", built[0], "--binary-name", "send-message", name, **aws.environment)

    function = functions.get_function_configuration(FunctionName=name)
    assert {key: function[key] for key in definition} == definition
    zipped = (built[0] / "send-message/bootstrap.zip").read_bytes()
    assert function["CodeSha256"] == base64.b64encode(hashlib.sha256(zipped).digest()).decode()
    functions.delete_function(FunctionName=name)
    aws.client("iam").delete_role(RoleName="r")
