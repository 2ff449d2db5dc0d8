"""What goes wrong before a deployment is said in one line, and nothing is deployed."""

import os
import shutil

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
    assert "lets API Gateway write no logs" in line(output)
    assert aws.client("cloudformation").describe_stacks()["Stacks"] == []


@pytest.mark.parametrize("program", ["npm", "python3"])
def test_a_missing_program(make, program, tmp_path):
    for name in ["make", "sh", "dirname", "sed"]:
        os.symlink(shutil.which(name), tmp_path / name)
    target = {"npm": "infra/node_modules", "python3": "target/venv/package"}[program]
    output = make("--always-make", target, environment={"PATH": str(tmp_path)}, succeeds=False)
    assert f"{program} is missing: install" in line(output)
    assert (ROOT / target).exists()
