"""A deployment is closed unless somebody opens it, and settings that cannot work are refused before anything is built."""

import base64
import datetime
import hashlib
import json
import os
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from conftest import PRIVATE, PUBLIC, ROOT, SECRET, jwks, line, package, replace


@pytest.fixture
def settings(make):
    """`make settings` of a stage, with parameters and keys; succeeds or not, and what it prints."""

    def run(stage, *parameters, keys="", succeeds=True, **environment):
        parameters = " ".join(f"--param={parameter}" for parameter in parameters)
        environment = {"TOKEN_KEYS": keys} | environment
        return make("settings", f"STAGE={stage}", f"ARGS={parameters}", environment=environment, succeeds=succeeds)

    return run


def check(service, keys=""):
    """The check on a changed copy: whether it passed, and what it printed."""
    environment = os.environ | {"STAGE": "production", "REGION": "us-east-1", "ARGS": "", "ARCH": "", "TOKEN_KEYS": keys}
    command = ["node", "infra/settings.mjs"]
    result = subprocess.run(command, cwd=service, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(result.stdout)
    return result.returncode == 0, result.stdout


def variables(template, function):
    return template["Resources"][f"{function}LambdaFunction"]["Properties"]["Environment"]["Variables"]


def summary(template):
    """How a stage is protected: the identity mode, what happens to the tables, and whether there are access logs."""
    tables = [it for it in template["Resources"].values() if it["Type"] == "AWS::DynamoDB::Table"]
    (policy,) = {table[key] for table in tables for key in ["DeletionPolicy", "UpdateReplacePolicy"]}
    logs, on = template["Conditions"]["AccessLogs"]["Fn::Equals"]
    return variables(template, "Connect")["IDENTITY_MODE"], policy, logs == on


# `make` refuses `Prod`; the framework alone does not.
@pytest.mark.parametrize("stage", ["prod", "production", "Prod", "prod-eu", "staging", "dev2", "Dev"])
def test_every_stage_but_dev_is_closed_and_keeps_its_data(service, stage):
    assert summary(package(service, stage)) == ("verified", "Retain", True)


def test_dev_is_open_and_leaves_nothing(service):
    assert summary(package(service, "dev")) == ("open", "Delete", False)


def test_verified_without_any_identity(settings):
    refusal = line(settings("production", succeeds=False))
    for word in ["production", "TOKEN_KEYS", "TOKEN_KEYS_PARAMETER", "TOKEN_KEYS_URL", "$connect", "every handshake", "--param=allowNoIdentity=yes"]:
        assert word in refusal
    settings("production", "allowNoIdentity=true", succeeds=False)
    settings("production", "allowNoIdentity=yes")
    settings("production", keys=jwks(PUBLIC))


def test_verified_with_an_authorizer_needs_no_keys(service):
    authorizer = "arn:aws:lambda:us-east-1:123456789012:function:guard"
    assert not check(service)[0]
    replace(service, "- websocket: $connect\n", f"- websocket: {{route: $connect, authorizer: '{authorizer}'}}\n")
    assert check(service) == (True, "")


@pytest.mark.parametrize("mode", ["open", "open-with-tokens"])
def test_open_outside_dev(settings, mode):
    keys = jwks(PUBLIC) if mode == "open-with-tokens" else ""
    refusal = line(settings("staging", f"identityMode={mode}", keys=keys, succeeds=False))
    for word in ["identityMode", mode, "staging", "--param=allowOpen=yes"]:
        assert word in refusal
    settings("staging", f"identityMode={mode}", "allowOpen=true", keys=keys, succeeds=False)
    settings("staging", f"identityMode={mode}", "allowOpen=yes", keys=keys)


@pytest.mark.parametrize("stage, parameters", [("dev", []), ("staging", ["identityMode=open", "allowOpen=yes"])])
def test_open_although_there_are_keys(settings, stage, parameters):
    settings(stage, *parameters)
    refusal = line(settings(stage, *parameters, keys=jwks(PUBLIC), succeeds=False))
    for word in ["identityMode", "open-with-tokens", "verified", "TOKEN_KEYS"]:
        assert word in refusal
    settings("dev", "identityMode=open-with-tokens", keys=jwks(PUBLIC))


def test_an_identity_mode_that_does_not_exist(settings):
    refusal = line(settings("dev", "identityMode=Open", succeeds=False))
    for word in ["identityMode", "'Open'", "verified, open or open-with-tokens"]:
        assert word in refusal


def test_a_secret_is_refused_and_not_shown(settings):
    output = settings("prod", keys=jwks(PUBLIC, SECRET), succeeds=False)
    for word in ["keys[1]", "secret", "SecureString", "TOKEN_KEYS_PARAMETER"]:
        assert word in line(output)
    assert SECRET["k"] not in output


PLACES = {
    "TOKEN_KEYS": jwks(PUBLIC),
    "TOKEN_KEYS_PARAMETER": "/switchboard/prod/keys",
    "TOKEN_KEYS_URL": "https://issuer.example.org/jwks.json",
}


@pytest.mark.parametrize("one", PLACES)
def test_one_place_has_the_keys(settings, one):
    settings("prod", **{"TOKEN_KEYS": "", one: PLACES[one]})
    for other in PLACES.keys() - {one}:
        refusal = line(settings("prod", **{"TOKEN_KEYS": "", one: PLACES[one], other: PLACES[other]}, succeeds=False))
        assert one in refusal and other in refusal and "Only one place" in refusal
    refusal = line(settings("dev", **{"TOKEN_KEYS": "", one: PLACES[one]}, succeeds=False))
    assert f"the variable {one}) is set" in refusal and "open-with-tokens" in refusal


@pytest.mark.parametrize("name", ["keys", "/", "/a//b", "/a/*", "arn:aws:ssm:us-east-1:123456789012:parameter/keys"])
def test_a_parameter_whose_name_is_wrong(settings, name):
    assert "/switchboard/prod/keys" in line(settings("prod", TOKEN_KEYS_PARAMETER=name, succeeds=False))


@pytest.mark.parametrize("url", ["http://issuer.example.org/", "https://u:p@issuer.example.org/", "https://", "issuer.example.org"])
def test_an_address_of_keys_that_is_not_safe(settings, url):
    assert "https://" in line(settings("prod", TOKEN_KEYS_URL=url, succeeds=False))


def test_only_connect_may_read_the_parameter_and_only_where_it_is_set(service):
    def statement(template):
        """Its condition decides whether the statement is there."""
        off, on = template["Conditions"]["KeysInParameter"]["Fn::Not"][0]["Fn::Equals"]
        roles = [(name, it) for name, it in template["Resources"].items() if it["Type"] == "AWS::IAM::Role"]
        found = [(name, it) for name, role in roles for it in json.loads(json.dumps(role))["Properties"]["Policies"][0]["PolicyDocument"]["Statement"] if "ssm:" in json.dumps(it)]
        ((role, it),) = found
        condition, value, nothing = it["Fn::If"]
        assert (role, condition, nothing) == ("ConnectRole", "KeysInParameter", {"Ref": "AWS::NoValue"})
        return value if off != on else None

    assert statement(package(service, "prod", jwks(PUBLIC))) is None
    found = statement(package(service, "prod", TOKEN_KEYS_PARAMETER="/switchboard/prod/keys"))
    assert found["Action"] == "ssm:GetParameter"
    arn = "arn:${AWS::Partition}:ssm:${AWS::Region}:${AWS::AccountId}:parameter/switchboard/prod/keys"
    assert found["Resource"] == {"Fn::Sub": arn}


def test_a_private_key_is_refused_and_not_shown(settings):
    output = settings("prod", keys=jwks(PUBLIC, PRIVATE), succeeds=False)
    assert "keys[1]" in line(output) and "private" in line(output)
    assert PRIVATE["d"] not in output


@pytest.mark.parametrize("keys", ["s3cr3t", '["s3cr3t"]', '{"keys": ["s3cr3t"]}', "null"])
def test_keys_that_are_none_are_refused_and_not_shown(settings, keys):
    output = settings("prod", keys=keys, succeeds=False)
    assert "tokenKeys" in line(output) and "JWK Set" in line(output)
    assert "s3cr3t" not in output


@pytest.fixture(scope="module")
def azure():
    """A set of six RSA keys with their certificates, as large identity providers publish it."""
    keys = []
    for number in range(6):
        private = rsa.generate_private_key(65537, 2048)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "accounts.accesscontrol.example.net")])
        now = datetime.datetime(2026, 1, 1)
        certificate = x509.CertificateBuilder(name, name, private.public_key(), number + 1, now, now.replace(year=2031))
        certificate = certificate.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
        modulus = private.public_key().public_numbers().n.to_bytes(256, "big")
        thumbprint = base64.urlsafe_b64encode(hashlib.sha1(certificate).digest()).decode().rstrip("=")
        keys.append({
            "kty": "RSA",
            "use": "sig",
            "kid": thumbprint,
            "x5t": thumbprint,
            "n": base64.urlsafe_b64encode(modulus).decode().rstrip("="),
            "e": "AQAB",
            "x5c": [base64.b64encode(certificate).decode()],
        })
    return keys


def size(template, function):
    """What Lambda measures: its refusal quotes the variables as one JSON text."""
    return len(json.dumps(variables(template, function), separators=(",", ":"), ensure_ascii=False).encode())


def test_more_variables_than_lambda_takes(service, settings, azure):
    refusal = line(settings("prod", keys=jwks(*azure), succeeds=False))
    total = size(package(service, "prod", jwks(*azure)), "Connect")
    for word in ["connect", f"{total:,} bytes", "4,096", "TOKEN_KEYS", "x5c, x5t and x5u", "kty, n, e, kid, alg, use, crv, x and y"]:
        assert word in refusal
    # These are known only on AWS.
    assert "CONNECTIONS_TABLE" in refusal and "estimated" in refusal
    stripped = [{name: key[name] for name in ["kty", "n", "e", "kid", "use"]} for key in azure]
    settings("prod", keys=json.dumps({"keys": stripped}, separators=(",", ":")))


def test_the_last_byte_that_fits(service, settings):
    free = 4096 - size(package(service, "prod", jwks(PUBLIC)), "Connect")
    settings("prod", keys=jwks(PUBLIC), TOKEN_AUDIENCE="a" * free)
    # A quotation mark is two bytes in JSON.
    for audience in ["a" * (free + 1), '"' + "a" * (free - 1)]:
        refusal = line(settings("prod", keys=jwks(PUBLIC), TOKEN_AUDIENCE=audience, succeeds=False))
        assert "4,097 bytes" in refusal and "x5c" not in refusal


def test_every_function_is_measured(service):
    replace(service, "    handler: publish\n", f"    handler: publish\n    environment:\n      TOPIC_RULES: {'r' * 5000}\n")
    passed, output = check(service, jwks(PUBLIC))
    refusal = line(output)
    assert not passed and "the function publish" in refusal and "TOPIC_RULES" in refusal


@pytest.mark.parametrize("target", ["package", "deploy"])
def test_nothing_is_built_and_nothing_is_asked_of_aws(make, target):
    output = make(target, "STAGE=production", environment={"TOKEN_KEYS": ""}, succeeds=False)
    assert "allowNoIdentity" in line(output)
    assert "infra/build.sh" not in output and "AWS_PROFILE" not in output
